"""A module together with its weights, as tasks call it."""

from typing import Any

import flax.linen as nn
import jax

from jaxdl.api import Tree


class Applied:
    """A module with the weights of the moment; see jaxdl.api.Apply.

    Args:
        model: the module.
        params: its parameters.
        model_state: its other variables.
        rng: key of the random stream 'dropout' of calls with train=True; None: there is none.

    Attributes:
        model_state: the other variables after the newest call with train=True.
    """

    def __init__(
        self, model: nn.Module, params: Tree, model_state: Tree, rng: jax.Array | None = None
    ):
        self.model, self.params, self.model_state, self.rng = model, params, model_state, rng

    @classmethod
    def of(cls, model: nn.Module, variables: Tree) -> 'Applied':
        """`model` with all its variables, {'params': …, …}."""
        rest = {name: value for name, value in variables.items() if name != 'params'}
        return cls(model, variables['params'], rest)

    def __call__(
        self,
        *args: Any,
        train: bool,
        rngs: dict[str, jax.Array] | None = None,
        method: str | None = None,
        **kwargs: Any,
    ) -> Any:
        streams = dict(rngs or {})
        if train and self.rng is not None:
            streams.setdefault('dropout', self.rng)
        variables = {'params': self.params, **self.model_state}
        call = {'rngs': streams or None, 'method': method, 'train': train, **kwargs}
        if not train:
            return self.model.apply(variables, *args, **call)
        outputs, changed = self.model.apply(
            variables, *args, mutable=list(self.model_state), **call
        )
        self.model_state = {**self.model_state, **changed}
        return outputs
