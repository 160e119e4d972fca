"""Pooling by strided slices, which the CPU's compiler turns into vector code.

The general window reduction, and the select-and-scatter that is its gradient, run one element at
a time there.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]


def explicit_pads(shape: tuple[int, ...], window: Pair, strides: Pair, padding) -> Pads:
    """Returns ((top, bottom), (left, right)) of `padding` for images [..., height, width, channels]."""
    if isinstance(padding, str):
        rows, columns = lax.padtype_to_pads(shape[-3:-1], window, strides, padding)
    else:
        rows, columns = padding
    return (int(rows[0]), int(rows[1])), (int(columns[0]), int(columns[1]))


def _windows(x: Array, window: Pair, strides: Pair) -> list[Array]:
    """Returns, for each position in the window in row-major order, that element of every window."""
    height, width = ((x.shape[i] - window[i - 1]) // strides[i - 1] + 1 for i in (1, 2))
    return [
        x[
            :,
            i : i + (height - 1) * strides[0] + 1 : strides[0],
            j : j + (width - 1) * strides[1] + 1 : strides[1],
        ]
        for i in range(window[0])
        for j in range(window[1])
    ]


def _pad(x: Array, pads: Pads, value) -> Array:
    if not any(pads[0]) and not any(pads[1]):
        return x
    return lax.pad(x, jnp.asarray(value, x.dtype), ((0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: Array, window: Pair, strides: Pair, pads: Pads) -> Array:
    """Returns the maximum of each window of x [batch, height, width, channels]."""
    slices = _windows(_pad(x, pads, -jnp.inf), window, strides)
    out = slices[0]
    for one in slices[1:]:
        out = jnp.maximum(out, one)
    return out


def _max_pool_forward(x, window, strides, pads):
    out = max_pool(x, window, strides, pads)
    return out, (x, out)


def _max_pool_backward(window, strides, pads, saved, dy):
    x, out = saved
    padded = _pad(x, pads, -jnp.inf)
    slices = _windows(padded, window, strides)
    # The first maximum in a window gets the gradient, as with select-and-scatter.
    first = jnp.full(out.shape, len(slices) - 1, jnp.int8 if len(slices) < 128 else jnp.int32)
    for index, one in reversed(list(enumerate(slices[:-1]))):
        first = jnp.where(one == out, first.dtype.type(index), first)
    height, width = padded.shape[1:3]
    if window == strides and height % window[0] == 0 and width % window[1] == 0:
        dx = _spread(first, dy, window)
    else:
        dx = jnp.zeros(padded.shape, dy.dtype)
        for index in range(len(slices)):
            part = jnp.where(first == index, dy, jnp.zeros_like(dy))
            dx = dx + _place(part, padded.shape, divmod(index, window[1]), strides)
    return (_crop(dx, pads),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _spread(first, dy, window):
    """The gradient of windows that tile the image: one pass over it."""
    batch, height, width, channels = dy.shape
    shape = (batch, height, window[0], width, window[1], channels)
    own = lax.broadcasted_iota(first.dtype, shape, 2) * first.dtype.type(window[1])
    own = own + lax.broadcasted_iota(first.dtype, shape, 4)
    first, dy = first[:, :, None, :, None], dy[:, :, None, :, None]
    dx = jnp.where(first == own, dy, jnp.zeros((), dy.dtype))
    return dx.reshape(batch, height * window[0], width * window[1], channels)


def _place(part, shape, offset, strides):
    """Puts one element per window back at its place in an image of zeros."""
    config = [(0, 0, 0)]
    for axis in (0, 1):
        inner = (part.shape[axis + 1] - 1) * strides[axis] + 1
        config.append((offset[axis], shape[axis + 1] - offset[axis] - inner, strides[axis] - 1))
    return lax.pad(part, jnp.zeros((), part.dtype), (*config, (0, 0, 0)))


def _crop(x, pads):
    (top, bottom), (left, right) = pads
    return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]


def avg_pool(x: Array, window: Pair, strides: Pair, pads: Pads) -> Array:
    """Returns the mean of each window of x [batch, height, width, channels], padding as zeros."""
    first, *rest = _windows(_pad(x, pads, 0), window, strides)
    return sum(rest, first) / (window[0] * window[1])
