"""Activations, normalisation, dropout and attention in the forms that leave a GPU least to do."""

import contextlib
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdl.models.ops import plain


def dropout(x: Array, key: Array, rate) -> Array:
    """See plain.dropout."""
    # Bits that depend on x are drawn where x is read. Otherwise those of all layers are drawn
    # at the start, together, and lie in memory as integers of 32 bits.
    key, _ = lax.optimization_barrier((key, x))
    return plain.dropout(x, key, rate)


# ---- GELU (arXiv:1606.08415) in few instructions. A GPU's compiler forms erf and tanh from long
# rational functions, the derivative's exponential beside them: measured on an H200, the activation
# of an MLP then moves 1.3 TB/s (exact) and 2.3 TB/s (tanh) of the 4 that it could ------------------

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: the error of erf is below 1.5e-7,
# which is that of float32 near 1.
_P = 0.3275911
_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def gelu(x: Array, *, approximate: bool) -> Array:
    """See plain.gelu; the error is below 1e-7·|x|."""
    wide = x.astype(jnp.float32)
    return (_gelu_tanh(wide) if approximate else _gelu_exact(wide)).astype(x.dtype)


@jax.custom_jvp
def _gelu_exact(x):
    return x * _normal(x)[0]


@_gelu_exact.defjvp
def _exact_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    below, density = _normal(x)
    return x * below, (below + x * density) * dx


def _normal(x: Array) -> tuple[Array, Array]:
    """Returns (Φ(x), its density) by one exponential and one division."""
    bell = jnp.exp(-0.5 * x * x)
    t = 1.0 / (1.0 + (_P * math.sqrt(0.5)) * jnp.abs(x))
    series = jnp.zeros_like(x)
    for a in reversed(_A):
        series = (series + a) * t
    tail = 0.5 * series * bell  # Φ(-|x|), formed without cancellation
    return jnp.where(x < 0, tail, 1.0 - tail), bell * (1.0 / math.sqrt(2.0 * math.pi))


@jax.custom_jvp
def _gelu_tanh(x):
    return x * _logistic(x)


@_gelu_tanh.defjvp
def _tanh_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    gate = _logistic(x)
    slope = 2.0 * math.sqrt(2.0 / math.pi) * (1.0 + 3 * 0.044715 * x * x)
    return x * gate, (gate + x * gate * (1.0 - gate) * slope) * dx


def _logistic(x: Array) -> Array:
    # (1 + tanh(u)) / 2 is the logistic function of 2u.
    return jax.nn.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))


# ---- normalisation whose gradient is formed from the input and two numbers a row. Left to itself a
# GPU's compiler forms the gradient of the scale from a float32 array as large as the input, which it
# first writes to memory and then reads back ---------------------------------------------------------


def norm(
    x: Array, scale: Array, bias: Array | None, *, epsilon: float, centred: bool, dtype: str
) -> Array:
    """See plain.norm."""
    return _norm(x, scale, bias, epsilon, centred, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _norm(x, scale, bias, epsilon, centred, dtype):
    return _norm_forward(x, scale, bias, epsilon, centred, dtype)[0]


def _norm_forward(x, scale, bias, epsilon, centred, dtype):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True) if centred else None
    if mean is not None:
        wide = wide - mean
    factor = lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    y = wide * factor * scale
    # Behind a barrier, or the two numbers a row are formed again by every reader of x.
    mean, factor = lax.optimization_barrier((mean, factor))
    return (y if bias is None else y + bias).astype(dtype), (x, mean, factor, scale, bias)


def _norm_backward(epsilon, centred, dtype, saved, dy):
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


_norm.defvjp(_norm_forward, _norm_backward)


# ---- attention by cuDNN ----------------------------------------------------------------------------


def attention(
    q, k, v, *, mask=None, bias=None, causal=False, q_segments=None, kv_segments=None, scale=None
):
    """See plain.attention."""
    mask = plain.combined_mask(q, k, mask, False, q_segments, kv_segments)
    call = partial(jax.nn.dot_product_attention, scale=scale, is_causal=causal)
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    if half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128:
        try:
            with contextlib.nullcontext() if bias is not None else _without_gradient_of_mask():
                return cudnn_attention(partial(call, implementation='cudnn'), q, k, v, bias, mask)
        except (RuntimeError, ValueError, NotImplementedError):
            # No cuDNN here, an older card, or a shape it does not take: asked only by trying.
            pass
    return call(q, k, v, bias, mask, implementation='xla')


def cudnn_attention(call, q: Array, k: Array, v: Array, bias, mask) -> Array:
    """Returns what `call`(q, k, v, bias, mask) does, at lengths that cuDNN takes.

    Its gradient takes even lengths alone (a ViT's patches and class token are 65): one more query,
    which is cut off again, and one more key, which nobody sees.
    """
    time, keys = q.shape[1], k.shape[1]
    if time % 2 == 0 and keys % 2 == 0:
        return call(q, k, v, bias, mask)
    q = jnp.pad(q, ((0, 0), (0, time % 2), (0, 0), (0, 0)))
    k, v = (jnp.pad(one, ((0, 0), (0, keys % 2), (0, 0), (0, 0))) for one in (k, v))
    lengths = {}
    if bias is None and mask is None:
        for name, length in (('query_seq_lengths', time), ('key_value_seq_lengths', keys)):
            lengths[name] = jnp.full(q.shape[0], length, jnp.int32)
    else:
        seen = jnp.ones((1, 1, time, keys), bool) if mask is None else mask
        mask = _padded(seen, time, keys, False)
        bias = None if bias is None else _padded(bias, time, keys, 0)
    with plain.counted(time * keys, q.shape[1] * k.shape[1]):
        return call(q, k, v, bias, mask, **lengths)[:, :time]


@contextlib.contextmanager
def _without_gradient_of_mask():
    # jax hands a mask to cuDNN as a bias, and has a kernel form the gradient of that, which nobody
    # wants: 3 % of a small Transformer's step on an H200. It asks this function.
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    kept = getattr(cudnn, 'should_export_dbias', None)
    if kept is not None:
        cudnn.should_export_dbias = lambda *_, **__: False
    try:
        yield
    finally:
        if kept is not None:
            cudnn.should_export_dbias = kept


def _padded(x, time, keys, value):
    # A row or a column more where x has them all; an axis of 1 serves for all and stays.
    more = [
        length % 2 if size == length else 0
        for size, length in zip(x.shape[2:], (time, keys), strict=True)
    ]
    return jnp.pad(x, ((0, 0), (0, 0), (0, more[0]), (0, more[1])), constant_values=value)
