"""Normalisation over the last axis whose gradient is formed from the input and two numbers a row.

Left to itself a GPU's compiler forms the gradient of the scale from a float32 array as large as the
input, which it first writes to memory and then reads back.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def norm(
    x: Array, scale: Array, bias: Array | None, epsilon: float, centred: bool, dtype: str
) -> Array:
    """Returns x [..., width] over its deviation, less its mean if `centred`, in `dtype`; as `plain`."""
    return _forward(x, scale, bias, epsilon, centred, dtype)[0]


def plain(
    x: Array, scale: Array, bias: Array | None, epsilon: float, centred: bool, dtype: str
) -> Array:
    """Returns scale · (x - mean) / sqrt(mean square + epsilon) + bias, computed in float32."""
    x = x.astype(jnp.float32)
    if centred:
        x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon) * scale
    return (x if bias is None else x + bias).astype(dtype)


def _forward(x, scale, bias, epsilon, centred, dtype):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True) if centred else None
    if mean is not None:
        wide = wide - mean
    factor = lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    y = wide * factor * scale
    # Behind a barrier, or the two numbers a row are formed again by every reader of x.
    mean, factor = lax.optimization_barrier((mean, factor))
    return (y if bias is None else y + bias).astype(dtype), (x, mean, factor, scale, bias)


def _backward(epsilon, centred, dtype, saved, dy):
    x, mean, factor, scale, bias = saved
    dy, wide = dy.astype(jnp.float32), x.astype(jnp.float32)
    unit = (wide if mean is None else wide - mean) * factor
    rows = tuple(range(x.ndim - 1))
    d_unit = dy * scale
    dx = d_unit - unit * (d_unit * unit).mean(-1, keepdims=True)
    if mean is not None:
        dx = dx - d_unit.mean(-1, keepdims=True)
    d_bias = None if bias is None else dy.sum(rows)
    return (dx * factor).astype(x.dtype), (dy * unit).sum(rows), d_bias


norm.defvjp(_forward, _backward)
