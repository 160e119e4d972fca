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
    gradient = kernel_gradient(x, dy)
    return _after(gradient, product(dy, kernel, (dy.ndim - 1,), (1,))), gradient


matmul.defvjp(_matmul_forward, _matmul_backward)


def _after(first: Array, x: Array) -> Array:
    """Returns `x`, which nothing can use before `first` is known.

    The order in which this backend executes a program leaves the weight gradients of all layers to
    the end, and with them lives all that they are made of. A barrier is gone before that order is
    chosen; adding nothing is not.
    """
    if not on_one_device():
        return x  # `first` may need an exchange, which nothing should wait for
    nothing = 0 * jnp.nan_to_num(first[(0,) * first.ndim])
    return x + nothing.astype(x.dtype)


def on_one_device() -> bool:
    """Whether what is traced here is split over no devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def kernel_gradient(x: Array, dy: Array) -> Array:
    """Returns xᵀ·dy [in, out] for x [..., in] and dy [..., out]."""
    rows = tuple(range(x.ndim - 1))
    if x.dtype != jnp.float32:
        return product(x, dy, rows, rows)
    # About twice as fast as the plain form inside a training step: the product likes its left
    # operand with the rows as the last axis, so the narrower one is turned there.
    # The row axes stay apart: as one they could not be split over devices both ways.
    last = tuple(range(1, x.ndim))
    if x.shape[-1] <= dy.shape[-1]:
        return product(lax.optimization_barrier(jnp.moveaxis(x, -1, 0)), dy, last, rows)
    return product(lax.optimization_barrier(jnp.moveaxis(dy, -1, 0)), x, last, rows).T


@jax.custom_vjp
def add_bias(y: Array, bias: Array) -> Array:
    """Returns y [..., out] + bias [out], both of one half-precision dtype."""
    return y + bias


def _add_bias_forward(y, bias):
    return y + bias, None


def _add_bias_backward(_, dy):
    # Summed by a product: a sum in half precision runs on one core, through windows.
    rows = tuple(range(dy.ndim - 1))
    return dy, product(jnp.ones(dy.shape[:-1], dy.dtype), dy, rows, rows)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@jax.custom_vjp
def as_it_is(kernel: Array) -> Array:
    """Returns `kernel`, whose gradient is finished before anything else is done with it.

    The compiler folds the transpose of a half-precision product into the product, and this backend
    has no program for what comes out of that ("Unsupported element type for DotThunk").
    """
    return kernel


def _as_it_is_forward(kernel):
    return kernel, None


def _as_it_is_backward(_, gradient):
    return (lax.optimization_barrier(gradient),)


as_it_is.defvjp(_as_it_is_forward, _as_it_is_backward)
