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

# Calls that may be under way. Two keep the device busy, and a signal, a hang or a non-finite number
# is still noticed soon.
MOST = 2
# Bytes of temporaries above which a CPU runs one step at a time. A step takes its temporaries when
# it is started, even while it waits for the one before, so two would need twice the memory. A step
# this large is so slow that the host's work between two steps does not matter.
LARGE = 96 << 20
# Seconds to wait after a large step: the CPU backend reports it done before it frees its memory.
PAUSE = 5e-4

Shapes = Mapping[str, jax.Array | jax.ShapeDtypeStruct]


class CompiledStep:
    """A compiled training step, called like the function that it was compiled from.

    Args:
        step: compiled by `Program.compile_train`.
        traces: `Program.traces`, the names of the functions traced so far.
        batch: the shapes that the step was compiled for.

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
        """Waits until a large step has freed its memory; called once its results have arrived."""
        if self.large:
            time.sleep(PAUSE)

    def text(self) -> str:
        """The compiled program as text; '' for pmap, which compiles at its first call."""
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
        # pmap compiles at its first call, and would silently compile again for other shapes.
        if sum(name.startswith('train') for name in self.traces) > 1:
            changed = changes(self.batch, batch)
            if changed:
                raise RuntimeError(_message(changed))
        return result


def changes(old: Shapes, new: Shapes) -> list[str]:
    """Texts that name the arrays of a batch whose shape or dtype differs from `old`."""
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

    It is compiled ahead of time, so a changed shape cannot silently compile a second program.
    `look` is called with the jaxpr.
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
    # The state must lie where pmap leaves its results, or pmap compiles a second time.
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
