"""How a step is compiled, and the compiled training step as the loop calls it."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.sharding import AxisType

from jaxdl.api import Batch, Tree
from jaxdl.core.mesh import replicated
from jaxdl.core.step import TrainState
from jaxdl.errors import UserError

# Enough to keep a device busy, few enough that a signal, a hang or a non-finite number is seen at once.
MOST = 2
# Of a step with larger temporaries, in bytes, a CPU has one under way: each step under way has
# temporaries of its own from the moment it is started, even while it waits for the one before. Such
# a step takes so long that the host's work between two of them does not count.
LARGE = 96 << 20
# Seconds: a CPU's backend says that a step is done a moment before it frees its temporaries.
PAUSE = 5e-4

Shapes = Mapping[str, jax.Array | jax.ShapeDtypeStruct]


class CompiledStep:
    """A compiled training step; called like it.

    Args:
        step: compiled by `Program.compile_train`.
        traces: `Program.traces`, the names of what was traced so far.
        batch: the shapes that it was compiled for.

    Attributes:
        most: calls that may be under way before the host waits for the oldest.

    Raises:
        RuntimeError: from a call, where the arguments do not fit the program.
    """

    def __init__(self, step: Callable, traces: list[str], batch: Shapes):
        self.step, self.traces, self.batch = step, traces, batch
        analysis = getattr(step, 'memory_analysis', lambda: None)()  # pmap has none
        size = getattr(analysis, 'temp_size_in_bytes', 0)
        self.large = jax.default_backend() == 'cpu' and size > LARGE
        self.most = 0 if self.large else MOST

    def settle(self) -> None:
        """For after the results of a call have come, before the next one is started."""
        if self.large:
            time.sleep(PAUSE)

    def text(self) -> str:
        """The compiled program as text, '' where it is compiled at its first call (pmap)."""
        return self.step.as_text() if hasattr(self.step, 'as_text') else ''

    def __call__(
        self, state: TrainState, batch: Batch, resident: Batch, hyper: dict
    ) -> tuple[TrainState, jax.Array]:
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


def changes(old: Shapes, new: Shapes) -> list[str]:
    """In words, which arrays of a batch have another shape or dtype than in `old`."""
    return [
        f'{name} from {_shape(old.get(name))} to {_shape(new.get(name))}'
        for name in {**old, **new}
        if _shape(old.get(name)) != _shape(new.get(name))
    ]


def _shape(leaf: jax.Array | jax.ShapeDtypeStruct | None) -> str:
    return 'nothing' if leaf is None else f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'


def _message(changed: list[str]) -> str:
    return (
        f'the training step was compiled for other shapes: {", ".join(changed)}; '
        'every batch must have the same shapes and dtypes'
    )


def compile_step(
    function: Callable,
    arguments: tuple,
    out_shardings: Tree,
    *,
    donate: bool,
    mesh: jax.sharding.Mesh,
    look: Callable[[ClosedJaxpr], None] | None = None,
) -> Callable:
    """Compiles `function` for arguments like these, once; a call with other shapes is an error.

    Compiled ahead of time, so a changed shape cannot silently compile a second program. `look` is
    called with the jaxpr.
    """
    with jax.set_mesh(mesh):
        jitted = jax.jit(
            function, out_shardings=out_shardings, donate_argnums=(0,) if donate else ()
        )
        traced = jitted.trace(*arguments)
        if look is not None:
            look(traced.jaxpr)
        return traced.lower().compile()


def compile_pmap(
    function: Callable, *, donate: bool, mesh: jax.sharding.Mesh, stacked: bool
) -> Callable:
    """The same step by jax.pmap, for pure data parallelism; takes and returns the same arrays.

    Raises:
        UserError: the run has several processes.
    """
    if jax.process_count() > 1:
        raise UserError("--config.compile='pmap' runs in one process only; use compile='jit'")
    devices = list(mesh.devices.flat)
    count = len(devices)
    # Where pmap leaves its results: a state from elsewhere would be compiled for once more.
    line = jax.sharding.Mesh(np.asarray(devices), ('data',), axis_types=(AxisType.Auto,))
    home = replicated(line)
    mapped = jax.pmap(
        function,
        axis_name='data',
        in_axes=(None, 1 if stacked else 0, None, None),
        out_axes=None,
        devices=devices,
        donate_argnums=(0,) if donate else (),
    )

    def call(state, batch, resident, hyper):
        axis = 1 if stacked else 0
        if jax.tree.leaves(state)[0].sharding != home:
            state = jax.device_put(state, home, donate=donate)

        def split(x):
            shape = (*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])
            return x.reshape(shape)

        return mapped(state, jax.tree.map(split, batch), resident, hyper)

    return call
