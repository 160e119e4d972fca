"""Devices as a mesh, the state's place on it, and how a step is compiled.

Sharding is data: an ordered list of (path pattern, axes) rules over the whole state, so that the
optimizer's state follows its parameters. One device is the same program on a mesh of one.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdl.api import facts_of
from jaxdl.core.config import Mesh, divisors
from jaxdl.core.optim import path_name
from jaxdl.errors import UserError

AXES = Mesh.AXES
# The layers of a pipeline share the rows of a batch among them; what comes before and after the
# pipeline is split over its axis too.
BATCH_AXES = ('data', 'fsdp', 'pipe')
# Elements below which splitting an array is not worth a message.
SMALL = 1024


def make_mesh(sizes: Mesh, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The devices arranged as the config says.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    wanted = {axis: getattr(sizes, axis) for axis in AXES}
    known = math.prod(size for size in wanted.values() if size != -1)
    text = ', '.join(f'{axis}={size}' for axis, size in wanted.items() if size != 1)
    rest = [axis for axis, size in wanted.items() if size == -1]
    if len(devices) % known or (not rest and known != len(devices)):
        free = 'with one axis at -1, ' if rest else ''
        raise UserError(
            f'--config.mesh: {text or "all axes 1"} does not fit {len(devices)} device(s): {free}'
            f'the sizes must multiply to {"a divisor of " if rest else ""}{len(devices)} '
            f'(divisors: {divisors(len(devices))}); or set one axis to -1'
        )
    for axis in rest:
        wanted[axis] = len(devices) // known
    grid = np.asarray(devices).reshape([wanted[axis] for axis in AXES])
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh, leading: int = 0) -> NamedSharding:
    """Rows over the data axes; `leading` axes before the row axis are not split."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, BATCH_AXES))


def stacked(leaf: jax.ShapeDtypeStruct, count: int) -> jax.ShapeDtypeStruct:
    """`count` of the same on a new first axis, which is not split."""
    place = NamedSharding(leaf.sharding.mesh, PartitionSpec(None, *leaf.sharding.spec))
    return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=place)


def batch_shards(mesh: jax.sharding.Mesh) -> int:
    """How many ways a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(name: str, size: int, accumulate: int, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError unless every device gets the same number of rows in every part."""
    unit = batch_shards(mesh) * accumulate
    if size % unit:
        near = sorted({max(unit, size // unit * unit), (size // unit + 1) * unit})
        parts = f' times accumulate={accumulate}' if accumulate > 1 else ''
        raise UserError(
            f'--config.{name}={size} does not split over {batch_shards(mesh)} devices{parts}: '
            f'it must be a multiple of {unit}, for example {" or ".join(map(str, near))}'
        )


def check_splits(mesh: jax.sharding.Mesh, model: Any, rules: Sequence[tuple[str, Any]]) -> None:
    """Raises UserError where an axis would only repeat the work: the model cannot be split over it.

    A model says in `splits` over which axes it can; a rule of the user may name any axis.
    """
    able = facts_of(model).splits
    for axis in AXES:
        named = any(axis in _named(axes) for _, axes in rules)
        if axis in ('data', 'fsdp') or axis in able or named or mesh.shape[axis] == 1:
            continue
        raise UserError(
            f'--config.mesh.{axis}={mesh.shape[axis]}: {type(model).__name__} cannot be split over '
            f'{axis!r}; allowed: {", ".join(("data", "fsdp", *able))}'
        )


def _named(axes: Any) -> set[str]:
    if isinstance(axes, str):
        return {axes.removeprefix('largest:')}
    return set().union(*map(_named, axes)) if isinstance(axes, tuple | list) else set()


def default_rules(mesh: jax.sharding.Mesh) -> tuple:
    """With an fsdp axis every large array is split along its largest divisible dimension."""
    return (('.*', 'largest:fsdp'),) if mesh.shape['fsdp'] > 1 else ()


def state_shardings(
    abstract: Any, rules: Sequence[tuple[str, Any]], mesh: jax.sharding.Mesh
) -> Any:
    """A tree of shardings for `abstract`: the first rule whose pattern matches a leaf's path.

    A rule's axes are a tuple with one entry a dimension (an axis, a tuple of axes or None), or
    'largest:AXIS': split the largest dimension that AXIS divides. Leaves without a rule, or too
    small to be worth it, are replicated.

    Raises:
        UserError: a rule names an axis that does not exist.
    """
    compiled = [(re.compile(pattern), axes) for pattern, axes in (*rules, *default_rules(mesh))]

    def place(path, leaf):
        name = path_name(path)
        for pattern, axes in compiled:
            if pattern.search(name):
                return NamedSharding(mesh, _spec(leaf.shape, axes, mesh))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, abstract)


def split_further(abstract: Any, shardings: Any, axis: str, mesh: jax.sharding.Mesh) -> Any:
    """The shardings with each large array's largest dimension that is still whole split over `axis`."""

    def place(leaf, sharding):
        spec = [*sharding.spec, *(None,) * (leaf.ndim - len(sharding.spec))]
        fits = [
            d for d in range(leaf.ndim) if not spec[d] and leaf.shape[d] % mesh.shape[axis] == 0
        ]
        if not fits or leaf.size < SMALL:
            return sharding
        spec[max(fits, key=lambda d: leaf.shape[d])] = axis
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, abstract, shardings)


def in_host_memory(abstract: Any, shardings: Any) -> Any:
    """The shardings with every large array in the memory of the host that owns its device."""
    return jax.tree.map(
        lambda leaf, place: place if leaf.size < SMALL else place.with_memory_kind('pinned_host'),
        abstract,
        shardings,
    )


def to_device_memory(tree: Any, shardings: Any) -> Any:
    """Inside a program: the arrays of `tree`, wherever `shardings` keep them, in device memory."""
    return jax.tree.map(
        lambda x, place: jax.device_put(x, place.with_memory_kind('device')), tree, shardings
    )


def _spec(shape: tuple[int, ...], axes: Any, mesh: jax.sharding.Mesh) -> PartitionSpec:
    if isinstance(axes, str) and axes.startswith('largest:'):
        axis = axes.partition(':')[2]
        _check_axis(axis, mesh)
        size = mesh.shape[axis]
        fits = [d for d in range(len(shape)) if shape[d] % size == 0 and shape[d] >= size]
        if not fits or math.prod(shape) < SMALL:
            return PartitionSpec()
        best = max(fits, key=lambda d: shape[d])
        return PartitionSpec(*(axis if d == best else None for d in range(len(shape))))
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    entries = []
    # A rule written for a matrix also places the same matrix in a stack of layers: the rule's
    # entries belong to the last dimensions.
    padding = (None,) * (len(shape) - len(axes))
    for size, entry in zip(shape, (*padding, *axes)[-len(shape) :] if shape else (), strict=True):
        names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        for axis in names:
            _check_axis(axis, mesh)
        names = tuple(axis for axis in names if mesh.shape[axis] > 1)
        ways = math.prod(mesh.shape[axis] for axis in names)
        entries.append(names if names and size % ways == 0 else None)
    return PartitionSpec(*entries)


def _check_axis(axis: str, mesh: jax.sharding.Mesh) -> None:
    if axis not in mesh.shape:
        raise UserError(
            f'--config.rules: {axis!r} is no mesh axis; the axes are {", ".join(mesh.shape)}'
        )


# ---- moving data ------------------------------------------------------------------------------


@dataclasses.dataclass
class Rows:
    """Which rows of a global batch this process holds, and how they become a global array.

    Attributes:
        sharding: of the global batch.
        size: rows of the global batch.
    """

    sharding: NamedSharding
    size: int

    def __post_init__(self):
        slices = self.sharding.addressable_devices_indices_map((self.size,)).values()
        spans = {tuple(s[0].indices(self.size)[:2]) for s in slices if s is not None}
        self.mine = np.sort(np.unique(np.concatenate([np.arange(a, b) for a, b in spans])))
        self._places = [batch_sharding(self.sharding.mesh, leading) for leading in (0, 1)]

    def place(self, local: Any, *, leading: int = 0) -> Any:
        """The global arrays whose rows `mine` are those of the tree `local` [len(mine), …].

        With leading=1 the arrays are [calls, len(mine), …].
        """
        sharding = self._places[leading]
        if jax.process_count() == 1:
            return jax.device_put(local, sharding)

        def globally(local):
            shape = (*local.shape[:leading], self.size, *local.shape[leading + 1 :])

            def piece(index):
                start, stop, _ = index[leading].indices(self.size)
                first = int(np.searchsorted(self.mine, start))
                return local[(*index[:leading], slice(first, first + stop - start))]

            return jax.make_array_from_callback(shape, sharding, piece)

        return jax.tree.map(globally, local)


def put(tree: Any, sharding: Any) -> Any:
    """Places host arrays, the same on every process, on the mesh; one sharding, or a tree of them."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def globally(x, place):
        return jax.make_array_from_callback(np.shape(x), place, lambda index: np.asarray(x)[index])

    return jax.tree.map(globally, tree, sharding)


# ---- compiling ----------------------------------------------------------------------------------


def compile_step(
    function: Callable,
    arguments: tuple,
    out_shardings: Any,
    *,
    donate: bool,
    mesh: jax.sharding.Mesh,
    look: Callable[[Any], None] | None = None,
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
