"""Products, convolutions and pooling in the forms that the CPU's compiler makes fast."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from jaxdl.models.ops import plain

Pair = plain.Pair
Pads = tuple[Pair, Pair]

HALF = (jnp.bfloat16, jnp.float16)


# ---- products: their gradients are formed in the layout that the product here likes ---------------


def product(a: Array, b: Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...]) -> Array:
    """Returns the contraction of `a` with `b` in a's dtype, summed in float32."""
    # On this backend half-precision operands with a float32 result take the fast path, and ask for
    # the sum to be kept in float32 besides.
    wide = jnp.float32 if a.dtype in HALF else None
    out = lax.dot_general(a, b, ((a_axes, b_axes), ((), ())), preferred_element_type=wide)
    return out.astype(a.dtype)


def matmul(x: Array, kernel: Array) -> Array:
    """See plain.matmul."""
    # Named, since a policy of rematerialisation does not see a product inside a custom gradient.
    return checkpoint_name(_matmul(x, kernel), 'product')


@jax.custom_vjp
def _matmul(x, kernel):
    return product(x, kernel, (x.ndim - 1,), (0,))


def _matmul_forward(x, kernel):
    return _matmul(x, kernel), (x, kernel)


def _matmul_backward(saved, dy):
    x, kernel = saved
    gradient = kernel_gradient(x, dy)
    return after(gradient, product(dy, kernel, (dy.ndim - 1,), (1,))), gradient


_matmul.defvjp(_matmul_forward, _matmul_backward)


def after(first: Array, x: Array) -> Array:
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


def add_bias(y: Array, bias: Array) -> Array:
    """See plain.add_bias."""
    return _add_bias(y, bias) if y.dtype in HALF and y.ndim > 1 else y + bias


@jax.custom_vjp
def _add_bias(y, bias):
    return y + bias


def _add_bias_forward(y, bias):
    return y + bias, None


def _add_bias_backward(_, dy):
    # Summed by a product: a sum in half precision runs on one core, through windows.
    rows = tuple(range(dy.ndim - 1))
    with plain.counted(0, 1):  # no product in the definition
        return dy, product(jnp.ones(dy.shape[:-1], dy.dtype), dy, rows, rows)


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)


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


# ---- convolutions ----------------------------------------------------------------------------------


def conv(x, kernel, strides=(1, 1), padding='SAME', *, dilation=(1, 1), groups=1):
    """See plain.conv."""
    return plain.conv(kept(x), kernel, strides, padding, dilation=dilation, groups=groups)


@jax.custom_vjp
def kept(x: Array) -> Array:
    """Returns `x`; where gradients are taken, the compiler computes it once.

    For the gradient of a kernel this backend turns the input, channels first and images last, and
    would form the input anew while it does: normalisation and activation of one or several
    layers, in an order in which each cache line is fetched once for each channel. It forms nothing
    again across a branch, and a barrier is gone before it decides. The other branch is for a first
    element that is not a number, and then gives nothing else: such a step is lost anyway.
    """
    return x


def _kept_forward(x):
    if not on_one_device():
        return x, None  # another device may hold the element
    element = x[(0,) * x.ndim]
    return lax.cond(element == element, lambda x: x, lambda x: x * element, x), None  # not NaN


kept.defvjp(_kept_forward, lambda _, dy: (dy,))


# ---- pooling by strided slices: the general window reduction and its gradient, a
# select-and-scatter, run one element at a time here --------------------------------------------------


def max_pool(x: Array, window: Pair = (2, 2), strides: Pair = (2, 2), padding='VALID') -> Array:
    """See plain.max_pool."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return plain.max_pool(x, window, strides, padding)
    return _max_pool(x, window, strides, _explicit_pads(x.shape, window, strides, padding))


def avg_pool(x: Array, window: Pair = (2, 2), strides: Pair = (2, 2), padding='VALID') -> Array:
    """See plain.avg_pool."""
    padded = _pad(x, _explicit_pads(x.shape, window, strides, padding), 0)
    first, *rest = _windows(padded, window, strides)
    return sum(rest, first) / (window[0] * window[1])


def _explicit_pads(shape: tuple[int, ...], window: Pair, strides: Pair, padding) -> Pads:
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
def _max_pool(x: Array, window: Pair, strides: Pair, pads: Pads) -> Array:
    slices = _windows(_pad(x, pads, -jnp.inf), window, strides)
    out = slices[0]
    for one in slices[1:]:
        out = jnp.maximum(out, one)
    return out


def _max_pool_forward(x, window, strides, pads):
    out = _max_pool(x, window, strides, pads)
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


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


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


def argmax(x: Array) -> Array:
    """See plain.argmax."""
    # Two plain reductions are vector code here; one over (value, index) pairs is not.
    index = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    top = x.max(-1, keepdims=True)
    return jnp.where(x == top, index, x.shape[-1] - 1).min(-1)
