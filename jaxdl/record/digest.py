"""A digest per array, computed on the devices that hold it, to verify the bytes of a checkpoint.

Each word is hashed together with its position by the finaliser of MurmurHash3 (Austin Appleby),
which is a bijection of words, and the results are added modulo 2^32. So one changed word always
changes the sum, several changed words cancel once in 2^32, and neither the sharding nor the order
of the sum matters.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

SMALL = 2**16  # words of an array up to which all arrays share one program
WIDTH = 1024  # words of a row, so that the hashed positions of a row stay in the cache
FOLD = 8  # rows that are added before a sum is written to memory
_GOLDEN, _START = 0x9E3779B9, 0x7F4A7C15


class Digest:
    """The digests of the leaves of `tree`, arrays on devices; the computation starts at once.

    The arrays may be donated to a step afterwards, since devices keep the order of the calls.
    """

    def __init__(self, tree: Any):
        leaves = jax.tree.leaves(tree)
        self._count = len(leaves)
        self._parts: list[tuple[list[int], jax.Array]] = []
        groups: dict[Any, list[int]] = {}
        for index, leaf in enumerate(leaves):
            if leaf.size <= SMALL:
                groups.setdefault((leaf.shape, leaf.dtype, leaf.sharding), []).append(index)
        if groups:
            program = _of_small(tuple(sharding for *_, sharding in groups))
            small = program([[leaves[index] for index in group] for group in groups.values()])
            self._parts.append(([index for group in groups.values() for index in group], small))
        for index, leaf in enumerate(leaves):
            if leaf.size > SMALL:
                self._parts.append(([index], _of_large(leaf.shape, leaf.sharding)(leaf)))

    def values(self) -> np.ndarray:
        """uint32 [leaves]; waits for the devices."""
        found = np.zeros(self._count, np.uint32)
        for places, part in self._parts:
            found[places] = np.asarray(part)
        return found


@functools.cache
def _of_small(shardings: tuple) -> Callable:
    def small(groups):
        found = []
        for group, place in zip(groups, shardings, strict=True):
            x = jnp.stack([_on_device(leaf, place) for leaf in group])
            found.append(jax.vmap(lambda leaf: _block(leaf, (0,) * leaf.ndim, leaf.shape))(x))
        return jnp.concatenate(found)

    return jax.jit(small)


@functools.cache
def _of_large(shape: tuple[int, ...], sharding: Any) -> Callable:
    """Each device sums its own part, then the sums are added, so no array is gathered."""

    def large(x):
        x = _on_device(x, sharding)
        if not isinstance(sharding, NamedSharding) or sharding.is_fully_replicated:
            return _block(x, (0,) * x.ndim, shape)
        spec = (*sharding.spec, *(None,) * (len(shape) - len(sharding.spec)))
        axes = tuple(
            axis
            for entry in spec
            if entry is not None
            for axis in ((entry,) if isinstance(entry, str) else entry)
        )

        def part(block):
            starts = [
                0 if entry is None else jax.lax.axis_index(entry).astype(jnp.uint32) * size
                for entry, size in zip(spec, block.shape, strict=True)
            ]
            return jax.lax.psum(_block(block, starts, shape), axes)

        return jax.shard_map(
            part,
            mesh=sharding.mesh,
            in_specs=PartitionSpec(*spec),
            out_specs=PartitionSpec(),
            check_vma=False,  # the check refuses the zeros with which `_fold_rows` starts
        )(x)

    return jax.jit(large)


def _on_device(x: jax.Array, sharding: Any) -> jax.Array:
    """`x` in device memory, if it is kept in host memory."""
    if sharding.memory_kind == 'pinned_host':
        return jax.device_put(x, sharding.with_memory_kind('device'))
    return x


def _block(x: jax.Array, starts: Any, shape: tuple[int, ...]) -> jax.Array:
    """The digest, uint32 [], of the part `x` that begins at `starts` in an array of `shape`.

    It adds whole rows to whole rows, which XLA's CPU compiler turns into vector instructions; a
    single sum over all words is four times slower.
    """
    if not x.size:
        return jnp.uint32(0)
    words = _words(x)
    # Words that follow each other after the last split axis do so in the whole array as well.
    cut = max((axis for axis in range(x.ndim) if x.shape[axis] != shape[axis]), default=0)
    first = jnp.zeros((), jnp.uint32)  # the position of the first word of each row
    for axis in range(cut + 1 if x.ndim else 0):
        count = x.shape[axis] if axis < cut else 1
        stride = math.prod(shape[axis + 1 :]) % 2**32
        steps = (jnp.arange(count, dtype=jnp.uint32) + starts[axis]) * jnp.uint32(stride)
        first = (first[..., None] + steps).reshape(-1)
    first = first.reshape(-1)
    length = words.size // first.size
    width = _width(words.size, length)
    inside = jnp.arange(length // width, dtype=jnp.uint32) * jnp.uint32(width)
    first = (first[:, None] + inside).reshape(-1) * jnp.uint32(_GOLDEN) + jnp.uint32(_START)
    rest = jnp.arange(width, dtype=jnp.uint32) * jnp.uint32(_GOLDEN)
    words = words.reshape(-1, width)
    count = math.gcd(first.size, FOLD) if words.size > SMALL else 1
    parts = zip(jnp.split(words, count), jnp.split(first, count), strict=True)
    sums = functools.reduce(
        jnp.add, (_scramble(part ^ (place[:, None] + rest)) for part, place in parts)
    )
    return (_fold_rows(sums) if count > 1 else sums).sum(dtype=jnp.uint32)


def _fold_rows(rows: jax.Array) -> jax.Array:
    """Fewer rows with the same sum as `rows` [many, width].

    It is a loop because XLA cannot fuse a loop with the computation of `rows`. It has only two
    iterations because a GPU starts kernels for each.
    """
    count = rows.shape[0] // FOLD

    def body(index, total):
        starts = [(index * FOLD // 2 + k) * count for k in range(FOLD // 2)]
        return total + sum(jax.lax.dynamic_slice_in_dim(rows, x, count) for x in starts)

    total = jax.lax.fori_loop(0, 2, body, jnp.zeros((count, rows.shape[1]), jnp.uint32))
    return jnp.concatenate([total, rows[count * FOLD :]])


def _words(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    same = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, same).astype(jnp.uint32)


def _scramble(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@functools.cache
def _width(size: int, length: int) -> int:
    """The longest row up to WIDTH that divides `length`; if possible FOLD divides their number."""
    fits = [width for width in range(1, min(WIDTH, length) + 1) if length % width == 0]
    even = [width for width in fits if size // width % FOLD == 0]
    return max(even if even and 16 * max(even) > max(fits) else fits)
