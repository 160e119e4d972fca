"""A step is traced once; a call that would need another program names the shape that changed."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdl.core import mesh as mesh_lib


class OneProgram:
    """A compiled training step; called like it.

    Args:
        step: compiled by `Program.compile_train`.
        traces: `Program.traces`, the names of what was traced so far.
        batch: the shapes of one batch that it was compiled for.
        calls: batches in one call, stacked.

    Raises:
        RuntimeError: from a call, where the arguments do not fit the program.
    """

    def __init__(self, step: Callable, traces: list[str], batch: dict[str, Any], calls: int = 1):
        self.step, self.traces = step, traces
        self.batch = {
            name: leaf if calls == 1 else mesh_lib.stacked(leaf, calls)
            for name, leaf in batch.items()
        }

    def text(self) -> str:
        """The compiled program as text, '' where it is compiled at its first call (pmap)."""
        return self.step.as_text() if hasattr(self.step, 'as_text') else ''

    def __call__(self, state: Any, batch: dict[str, jax.Array], resident: dict, hyper: dict) -> Any:
        try:
            result = self.step(state, batch, resident, hyper)
        except TypeError as error:
            changed = changes(self.batch, batch)
            if not changed:
                raise
            raise RuntimeError(_message(changed)) from error
        # What is compiled at its first call (pmap) is compiled silently again for other shapes.
        if sum(name.startswith('train') for name in self.traces) > 1:
            changed = changes(self.batch, batch)
            if changed:
                raise RuntimeError(_message(changed))
        return result


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """In words, which arrays of a batch have another shape or dtype than in `old`."""
    return [
        f'{name} from {_shape(old.get(name))} to {_shape(new.get(name))}'
        for name in {**old, **new}
        if _shape(old.get(name)) != _shape(new.get(name))
    ]


def _shape(leaf: Any) -> str:
    return 'nothing' if leaf is None else f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'


def _message(changed: list[str]) -> str:
    return (
        f'the training step was compiled for other shapes: {", ".join(changed)}; '
        'every batch must have the same shapes and dtypes'
    )
