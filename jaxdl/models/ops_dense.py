"""Matrix products whose gradients are formed in the layout that the CPU's product likes."""

import jax
import jax.numpy as jnp
from jax import Array, lax


def product(a: Array, b: Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...]) -> Array:
    """Returns the contraction of `a` with `b` in a's dtype, summed in float32."""
    # On this backend half-precision operands with a float32 result take the fast path, and ask for
    # the sum to be kept in float32 besides.
    wide = jnp.float32 if a.dtype in (jnp.bfloat16, jnp.float16) else None
    out = lax.dot_general(a, b, ((a_axes, b_axes), ((), ())), preferred_element_type=wide)
    return out.astype(a.dtype)


@jax.custom_vjp
def matmul(x: Array, kernel: Array) -> Array:
    """Returns x·kernel for x [..., in] and kernel [in, out] of one dtype."""
    return product(x, kernel, (x.ndim - 1,), (0,))


def _matmul_forward(x, kernel):
    return matmul(x, kernel), (x, kernel)


def _matmul_backward(saved, dy):
    x, kernel = saved
    dx = product(dy, kernel, (dy.ndim - 1,), (1,))
    return dx, kernel_gradient(x, dy)


matmul.defvjp(_matmul_forward, _matmul_backward)


def kernel_gradient(x: Array, dy: Array) -> Array:
    """Returns xᵀ·dy [in, out] for x [..., in] and dy [..., out]."""
    rows = tuple(range(x.ndim - 1))
    if x.dtype == jnp.float32:
        # (dyᵀ·x)ᵀ: the same numbers, but about twice as fast inside a training step.
        return product(dy, x, rows, rows).T
    return product(x, dy, rows, rows)
