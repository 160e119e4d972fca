"""Devices as a mesh, and how batches are placed on it. A single device is a mesh of one."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdl.api import Tree
from jaxdl.core.config import Mesh, divisors
from jaxdl.errors import UserError

AXES = Mesh.AXES
# The mesh axes that split the rows of a batch. 'pipe' is among them because the layers before and
# after the pipeline would otherwise do the same work on each of its stages.
BATCH_AXES = ('data', 'fsdp', 'pipe')


def make_mesh(sizes: Mesh, devices: Sequence[object] | None = None) -> jax.sharding.Mesh:
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
    """Splits rows over BATCH_AXES; `leading` axes in front of the row axis are not split."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, BATCH_AXES))


def stacked(leaf: jax.ShapeDtypeStruct, count: int) -> jax.ShapeDtypeStruct:
    """The shape of `count` such arrays stacked on a new first axis, which is not split."""
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


def rows_here(sharding: NamedSharding, size: int) -> np.ndarray:
    """The rows of a global batch of `size` that this process holds, int64, increasing."""
    slices = sharding.addressable_devices_indices_map((size,)).values()
    spans = {tuple(s[0].indices(size)[:2]) for s in slices if s is not None}
    return np.unique(np.concatenate([np.arange(a, b) for a, b in spans]))


def put(tree: Tree, sharding: NamedSharding | Tree) -> Tree:
    """Places host arrays, the same on every process, on the mesh; one sharding, or a tree of them."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def globally(x, place):
        return jax.make_array_from_callback(np.shape(x), place, lambda index: np.asarray(x)[index])

    return jax.tree.map(globally, tree, sharding)
