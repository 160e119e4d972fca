"""How a training step changes the weights: the gradient of a task's loss, and the update.

`StepLearner.descend` is the ordinary step. A task that learns in another way defines `Task.learn`
and puts its step together from the same parts (see jaxdl.api.Learner).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdl.api import Batch, Learner, Tree
from jaxdl.core.config import Config
from jaxdl.errors import UserError
from jaxdl.metrics import Mean
from jaxdl.models.applied import Applied
from jaxdl.models.float8 import quantized

GRAD_NORM = 'grad_norm'


class StepLearner(Learner):
    """The parts of one step of a config, while it is traced.

    Args:
        config: the run's config; its scalars may be traced values.
        axis: name of the device axis under pmap.
        place: moves gradients to the sharding of their parameters before they are used.
    """

    def __init__(self, config: Config, axis: str | None, place: Callable[[Tree], Tree]):
        self.config, self.axis, self.place = config, axis, place
        self.model = quantized(config.model) if config.float8 else config.model
        self.rules = {
            group: one.build(config.steps * config.task.updates(group))
            for group, one in config.optimizer.for_model(config.model).groups().items()
        }
        # The arrays of the newest ordinary step whose sums tell whether it was finite.
        self.checked: list[jax.Array] = []

    def sum(self, tree: Tree) -> Tree:
        """The sums over the devices of a pmap; under jit every value is already global."""
        return jax.lax.psum(tree, self.axis) if self.axis else tree

    # ---- the ordinary step ----

    def descend(self, state: Any, batch: Batch, rng: jax.Array) -> tuple[Any, dict[str, Mean]]:
        """See jaxdl.api.Learner."""
        grads, model_state, metrics = self._accumulated(state, batch, rng)
        grads, weight = self.sum((grads, metrics['loss'].weight))
        weight = jnp.maximum(weight, 1e-9)
        grads = jax.tree.map(lambda g: (g / weight).astype(g.dtype), grads)
        sizes = squares(grads)
        updates, opt_state = self._updates(state, grads)
        params = optax.apply_updates(state.params, updates)
        # The sum of an array that holds a non-finite number is not finite. Gradients and updates
        # are read anyway for the norm and the update, so the check costs no further memory traffic.
        self.checked = [*sizes, *sums(model_state), metrics['loss'].total, *squares(updates)]
        metrics = {**metrics, GRAD_NORM: Mean(jnp.sqrt(sum(sizes)), jnp.ones((), jnp.float32))}
        return state.replace(params=params, model_state=model_state, opt_state=opt_state), metrics

    def _totals(
        self,
        params: Tree,
        model_state: Tree,
        batch: Batch,
        rng: jax.Array,
        scale: jax.Array | None,
    ) -> tuple[Tree, Tree, dict[str, Mean]]:
        """The gradient of the loss TOTAL of one (micro-)batch, the new model state, the metrics.

        The mean loss of the part is multiplied by `scale` and the float32 gradient of each
        parameter divided by it, so that float16 values in between neither vanish nor overflow.
        """

        def total_loss(params):
            apply = Applied(self.model, params, model_state, rng)
            metrics = self.config.task.losses(apply, batch, jax.random.fold_in(rng, 1))
            total, factor = metrics['loss'].total, None
            if scale is not None:
                factor = scale / jnp.maximum(jax.lax.stop_gradient(metrics['loss'].weight), 1.0)
                total = total * factor
            return total, (apply.model_state, metrics, factor)

        grads, (new_state, metrics, factor) = jax.grad(total_loss, has_aux=True)(params)
        if factor is not None:
            grads = jax.tree.map(lambda g: g / factor, grads)
        return self.place(grads), new_state, metrics

    def _accumulated(self, state, batch, rng):
        """Gradient totals over `accumulate` parts of the batch, taken one after the other."""
        config = self.config
        augment_key, rng = jax.random.split(rng)
        # Augmented before it is cut, because the number of parts must not change the data.
        batch = config.task.augment(batch, augment_key)
        scale = None if state.loss_scale is None else state.loss_scale.factor
        if config.accumulate == 1:
            return self._totals(state.params, state.model_state, batch, rng, scale)

        # Part j takes rows j, j + parts, …, so each device keeps its rows and nothing is exchanged.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, config.accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )

        def one(model_state, j, part):
            return self._totals(state.params, model_state, part, jax.random.fold_in(rng, j), scale)

        first = jax.tree.map(lambda x: x[0], parts)
        rest = jax.tree.map(lambda x: x[1:], parts)

        def body(carry, part):
            grads, model_state, metrics = carry
            new_grads, model_state, new_metrics = one(model_state, part['_j'], part['batch'])
            return (
                jax.tree.map(jnp.add, grads, new_grads),
                model_state,
                {name: metrics[name].merge(new_metrics[name]) for name in metrics},
            ), None

        carry = one(state.model_state, 0, first)
        numbers = jnp.arange(1, config.accumulate)
        carry, _ = jax.lax.scan(body, carry, {'_j': numbers, 'batch': rest})
        return carry

    # ---- the parts, for a task's own step ----

    def gradient(self, loss: Callable[[Tree], tuple[Mean, Any]], at: Tree) -> tuple[Tree, Any]:
        """See jaxdl.api.Learner."""
        for name, neutral in (('accumulate', 1), ('loss_scale', 0.0)):
            value = getattr(self.config, name)
            if isinstance(value, jax.Array) or value != neutral:
                raise UserError(
                    f'--config.{name}: {type(self.config.task).__name__} takes its gradients '
                    f'itself; {name} must be {neutral:g}'
                )

        def total(values):
            mean, extra = loss(values)
            return mean.total, (mean.weight, extra)

        grads, (weight, extra) = jax.grad(total, has_aux=True)(at)
        grads, weight = self.sum((grads, weight))
        weight = jnp.maximum(weight, 1e-9)
        return jax.tree.map(lambda g: (g / weight).astype(g.dtype), grads), extra

    def update(self, state: Any, grads: Tree, group: str = '') -> Any:
        """See jaxdl.api.Learner."""
        if group in self.rules:  # the optimizer of one group, or the only one
            params, opt_state = self._of(state, group)
            updates, opt_state = self.rules[group].update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            if group:
                params = {**state.params, group: params}
                opt_state = {**state.opt_state, group: opt_state}
            return state.replace(params=params, opt_state=opt_state)
        if group:
            raise UserError(
                f'--config.optimizer: {type(self.config.task).__name__} updates the group '
                f'{group!r}, so it must be an optim.Groups with that field; its groups are '
                f'{", ".join(self.rules) if "" not in self.rules else "none"}'
            )
        updates, opt_state = self._updates(state, grads)
        return state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)

    # ---- optimizers and their states ----

    def begin(self, params: Tree) -> Any:
        """The state of a fresh optimizer; with groups {name: state}.

        Raises:
            UserError: the groups are not the parameters' top-level names.
        """
        if '' in self.rules:
            return self.rules[''].init(params)
        if set(self.rules) != set(params):
            raise UserError(
                f'--config.optimizer: its groups are {", ".join(self.rules)}, but the parameters '
                f'of {type(self.config.model).__name__} are in {", ".join(params)}'
            )
        return {group: rule.init(params[group]) for group, rule in self.rules.items()}

    def rates(self, step: jax.Array) -> dict[str, jax.Array]:
        """The learning rate of each group at the step that follows `step` completed ones."""
        groups = self.config.optimizer.groups()
        return {name: one.rate(step, self.config.steps) for name, one in groups.items()}

    def _of(self, state: Any, group: str) -> tuple[Tree, Any]:
        return (
            (state.params[group], state.opt_state[group])
            if group
            else (state.params, state.opt_state)
        )

    def _updates(self, state: Any, grads: Tree) -> tuple[Tree, Any]:
        """The updates of all parameters, and the optimizer's new state."""
        if '' in self.rules:
            return self.rules[''].update(grads, state.opt_state, state.params)
        found = {
            group: rule.update(grads[group], *reversed(self._of(state, group)))
            for group, rule in self.rules.items()
        }
        return {k: new for k, (new, _) in found.items()}, {k: s for k, (_, s) in found.items()}


def squares(tree: Tree) -> list[jax.Array]:
    """The sum of the squares of each leaf."""
    return [optax.tree.norm(leaf, squared=True) for leaf in jax.tree.leaves(tree)]


def sums(tree: Tree) -> list[jax.Array]:
    """The sum of each floating leaf; not finite if the leaf is not, or if the sum overflows."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return [x.astype(jnp.float32).sum() for x in leaves]
