"""Tensor parallelism: layers whose features are split over devices (Shoeybi et al., arXiv:1909.08053).

Written out instead of left to the compiler, which sums the gradient of one input once for every
layer that reads it, and does not see that a sum followed by a split needs half the bytes.
"""

import jax
from jax.sharding import PartitionSpec

from jaxdl.models import layout, ops
from jaxdl.models.layers import Dense


def columns(x: jax.Array, layers: list[Dense], name: str) -> list[jax.Array]:
    """Returns what each layer makes of x [batch, length, in]; their features are split as `name` is.

    Where the length of x is split over the same devices it is gathered here, once for all layers.
    """
    return [y if bias is None else ops.add_bias(y, bias) for y, bias in products(x, layers, name)]


def products(
    x: jax.Array, layers: list[Dense], name: str
) -> list[tuple[jax.Array, jax.Array | None]]:
    """Like `columns`, but pairs (x · kernel, bias or None): who adds them may keep the product alone."""
    (split,) = layout.axes(name)
    ways = layout.ways(split)
    if ways == 1 or any(layer.features % ways for layer in layers):
        return [layer(x, add=False) for layer in layers]
    batch, length, inner = _length(x, split)
    kernels, biases = zip(*(layer(x, apply=False) for layer in layers), strict=True)
    done = {*split, *length, *batch}

    def multiply(x, kernels):
        with layout.manual(*done):
            if length:
                x = jax.lax.all_gather(x, split, axis=1, tiled=True)
            return [ops.matmul(x.astype(kernel.dtype), kernel) for kernel in kernels]

    ys = jax.shard_map(
        multiply,
        mesh=jax.sharding.get_abstract_mesh(),
        in_specs=(PartitionSpec(batch or None, length or None), PartitionSpec(None, split)),
        out_specs=PartitionSpec(batch or None, inner or None, split),
        axis_names=done,
        check_vma=False,
    )(x, kernels)
    return list(zip(ys, biases, strict=True))


def rows(x: jax.Array, layer: Dense, name: str) -> jax.Array:
    """Returns what `layer` makes of x [batch, length, in], whose features are split as `name` is.

    Where the residual stream is split by length the sum over the devices is too. A whole sum is
    left to the compiler: written out here, its gradient would be summed over the devices as well.
    """
    (split,) = layout.axes(name)
    batch, length, inner = _length(x, split)
    if not length or x.shape[-1] % layout.ways(split):
        return layer(x)
    kernel, bias = layer(x, apply=False)
    done = {*split, *length, *batch}

    def product(x, kernel):
        with layout.manual(*done):
            y = ops.matmul(x.astype(kernel.dtype), kernel)
            return jax.lax.psum_scatter(y, split, scatter_dimension=1, tiled=True)

    y = jax.shard_map(
        product,
        mesh=jax.sharding.get_abstract_mesh(),
        in_specs=(PartitionSpec(batch or None, inner or None, split), PartitionSpec(split)),
        out_specs=PartitionSpec(batch or None, length),
        axis_names=done,
        check_vma=False,
    )(x, kernel)
    return y if bias is None else ops.add_bias(y, bias)


def _length(x: jax.Array, split: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The axes that split rows and length of x, and those of the length that still do in between.

    All are empty unless the axes of the features split the length too: a sum over devices alone
    may be left to the compiler for the other axes, a gathering or scattering one may not.
    """
    batch, length, _ = layout.axes('batch', 'length', 'embed')
    even = x.shape[1] % layout.ways(length) == 0 and x.shape[0] % layout.ways(batch) == 0
    if not split or not set(split) <= set(length) or not even:
        return (), (), ()
    return batch, length, tuple(axis for axis in length if axis not in split)
