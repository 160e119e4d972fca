"""The operations every model is built on, each with one plain formulation and faster equals.

A function here computes the same values and gradients on every backend; only the formulation
changes. The formulation is chosen while the program is traced: for the platform named by
`set_platform`, else for `jax.default_backend()`. `set_plain(True)`, or JAXDL_PLAIN=1 in the
environment, selects the plain formulation everywhere, for comparison.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from jaxdl.models.ops import attention as ops_attention
from jaxdl.models.ops import conv as ops_conv
from jaxdl.models.ops import dense as ops_dense
from jaxdl.models.ops import gelu as ops_gelu
from jaxdl.models.ops import loss as ops_loss
from jaxdl.models.ops import norm as ops_norm
from jaxdl.models.ops import pool as ops_pool
from jaxdl.models.ops import rnn as ops_rnn

_plain = os.environ.get('JAXDL_PLAIN', '') not in ('', '0')
_platform: str | None = None


def set_plain(plain: bool) -> None:
    """Selects the plain formulation of every operation for programs traced from now on."""
    global _plain
    _plain = plain


def set_platform(platform: str | None) -> None:
    """Names the platform ('cpu', 'cuda') that programs traced from now on will run on; None asks jax."""
    global _platform
    if platform not in (None, 'cpu', 'cuda', 'tpu'):
        raise ValueError(f"platform={platform!r}: must be 'cpu', 'cuda', 'tpu' or None")
    _platform = platform


def platform() -> str:
    """Returns 'plain', or the platform whose formulations are used: 'cpu', 'cuda', 'tpu'."""
    if _plain:
        return 'plain'
    name = _platform or jax.default_backend()
    return 'cuda' if name in ('gpu', 'rocm') else name


def recompute(function: Callable[..., Array]) -> Callable[..., Array]:
    """Returns `function`, whose backward pass needs nothing but the arguments.

    For chains of element-wise operations, never for products: what lies between their
    arguments and their result is sooner computed again than written to memory and read back.
    """
    return function if platform() == 'plain' else jax.checkpoint(function)


def matmul(x: Array, kernel: Array) -> Array:
    """Returns x·kernel in the dtype of `x`, for x [..., in] and kernel [in, out] of that dtype."""
    if platform() == 'cpu':
        # Named, since a policy of rematerialisation does not see a product inside a custom gradient.
        return checkpoint_name(ops_dense.matmul(x, kernel), 'product')
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def add_bias(y: Array, bias: Array) -> Array:
    """Returns y [..., out] + bias [out], both of one dtype."""
    if platform() == 'cpu' and y.dtype in (jnp.bfloat16, jnp.float16) and y.ndim > 1:
        return ops_dense.add_bias(y, bias)
    return y + bias


def conv(
    x: Array,
    kernel: Array,
    strides: Sequence[int] = (1, 1),
    padding='SAME',
    *,
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Array:
    """Convolves x [batch, height, width, in] with kernel [height, width, in / groups, out]."""
    return lax.conv_general_dilated(
        ops_conv.kept(x) if platform() == 'cpu' else x,
        kernel,
        tuple(strides),
        padding,
        rhs_dilation=tuple(dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


def max_pool(x: Array, window: Sequence[int] = (2, 2), strides=None, padding='VALID') -> Array:
    """Returns the maximum of each window of x [batch, height, width, channels].

    Among equal elements the first of the window gets the gradient.
    """
    window, strides = tuple(window), tuple(strides or window)
    if platform() == 'cpu' and jnp.issubdtype(x.dtype, jnp.floating):
        pads = ops_pool.explicit_pads(x.shape, window, strides, padding)
        return ops_pool.max_pool(x, window, strides, pads)
    low = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return lax.reduce_window(
        x, np.array(low, x.dtype), lax.max, (1, *window, 1), (1, *strides, 1), _pads(padding)
    )


def avg_pool(x: Array, window: Sequence[int] = (2, 2), strides=None, padding='VALID') -> Array:
    """Returns the mean of each window of x [batch, height, width, channels], padding counted as zeros."""
    window, strides = tuple(window), tuple(strides or window)
    if platform() == 'cpu':
        pads = ops_pool.explicit_pads(x.shape, window, strides, padding)
        return ops_pool.avg_pool(x, window, strides, pads)
    zero = np.zeros((), x.dtype)
    total = lax.reduce_window(x, zero, lax.add, (1, *window, 1), (1, *strides, 1), _pads(padding))
    return total / (window[0] * window[1])


def _pads(padding):
    return padding if isinstance(padding, str) else ((0, 0), *map(tuple, padding), (0, 0))


def batch_norm_relu(
    x: Array, scale: Array, bias: Array, mean: Array, variance: Array, epsilon: float = 1e-5
) -> Array:
    """Returns relu(scale·(x - mean)/sqrt(variance + epsilon) + bias) for x [..., channels]."""
    factor = scale * lax.rsqrt(variance + epsilon)
    y = (x.astype(jnp.float32) - mean) * factor + bias
    return jax.nn.relu(y).astype(x.dtype)


def dropout(x: Array, key: Array, rate) -> Array:
    """Returns x with each element 0 with probability `rate`, else divided by 1 - rate; any dtype."""
    if platform() == 'cuda':
        # Bits that depend on x are drawn where x is read. Otherwise those of all layers are drawn
        # at the start, together, and lie in memory as integers of 32 bits.
        key, _ = lax.optimization_barrier((key, x))
    keep = 1 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(key, keep, x.shape)
    return jnp.where(kept, x.astype(jnp.float32) / keep, 0.0).astype(x.dtype)


def gelu(x: Array, *, approximate: bool) -> Array:
    """Returns x·Φ(x), Φ the normal distribution, or with `approximate` its form with tanh."""
    if platform() != 'cuda':
        return jax.nn.gelu(x, approximate=approximate)
    wide = x.astype(jnp.float32)
    return (ops_gelu.tanh(wide) if approximate else ops_gelu.exact(wide)).astype(x.dtype)


def norm(
    x: Array, scale: Array, bias: Array | None, *, epsilon: float, centred: bool, dtype: str
) -> Array:
    """Returns scale·(x - mean)/sqrt(mean square + epsilon) + bias for x [..., width], in `dtype`.

    Without `centred` no mean is taken off (RMSNorm). The arithmetic is float32.
    """
    form = ops_norm.norm if platform() == 'cuda' else ops_norm.plain
    return form(x, scale, bias, epsilon, centred, dtype)


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: bool = False,
    q_segments: Array | None = None,
    kv_segments: Array | None = None,
    scale: float | None = None,
) -> Array:
    """Returns softmax(scale·q·kᵀ + bias)·v as [batch, time, heads, head_dim], softmax in float32.

    Args:
        q: [batch, time, heads, head_dim].
        k: [batch, keys, kv_heads, head_dim]; kv_heads divides heads (grouped-query attention).
        v: like `k`.
        mask: boolean, broadcast to [batch, heads, time, keys]; True where a query sees a key.
        bias: added to the scores, broadcast to [batch, heads, time, keys].
        causal: query i sees keys 0..i.
        q_segments: [batch, time] integers; a query sees only keys of its own segment.
        kv_segments: [batch, keys]; None means `q_segments`.
        scale: None means head_dim ** -0.5.

    A query that may see no key at all gets a finite value that means nothing.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q_segments is not None and kv_segments is None:
        kv_segments = q_segments
    where = platform()
    if where == 'cpu' and bias is None:
        if mask is not None:
            mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
            mask = ops_attention.grouped_mask(mask, k.shape[2])
        return ops_attention.attention(q, k, v, mask, q_segments, kv_segments, causal, scale)
    if where == 'cuda':
        return _attention_cuda(q, k, v, mask, bias, causal, q_segments, kv_segments, scale)
    mask = _combine_masks(q, k, mask, causal, q_segments, kv_segments)
    return _attention_plain(q, k, v, mask, bias, scale)


def _attention_cuda(q, k, v, mask, bias, causal, q_segments, kv_segments, scale):
    mask = _combine_masks(q, k, mask, False, q_segments, kv_segments)
    call = partial(jax.nn.dot_product_attention, scale=scale, is_causal=causal)
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    if half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128:
        try:
            with contextlib.nullcontext() if bias is not None else _without_gradient_of_mask():
                return _attention_cudnn(partial(call, implementation='cudnn'), q, k, v, bias, mask)
        except (RuntimeError, ValueError, NotImplementedError):
            # No cuDNN here, an older card, or a shape it does not take: asked only by trying.
            pass
    return call(q, k, v, bias, mask, implementation='xla')


def _attention_cudnn(call, q, k, v, bias, mask):
    # cuDNN's gradient takes even lengths alone (a ViT's patches and class token are 65): one more
    # query, which is cut off again, and one more key, which nobody sees.
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


def _combine_masks(q, k, mask, causal, q_segments, kv_segments):
    masks = [] if mask is None else [mask]
    if causal:
        masks.append(jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))[None, None])
    if q_segments is not None:
        masks.append((q_segments[:, :, None] == kv_segments[:, None, :])[:, None])
    combined = None
    for one in masks:
        combined = one if combined is None else jnp.logical_and(combined, one)
    return combined


def _attention_plain(q, k, v, mask, bias, scale):
    groups = q.shape[2] // k.shape[2]
    if groups > 1:
        k, v = (jnp.repeat(one, groups, axis=2) for one in (k, v))
    scores = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum('bhqk,bkhd->bqhd', weights, v)


def cross_entropy(logits: Array, labels: Array, label_smoothing=0.0) -> Array:
    """Returns the float32 loss [...] of logits [..., classes] for integer labels [...].

    The target gives 1 - label_smoothing to the label and spreads the rest evenly over all classes
    (arXiv:1512.00567). A `label_smoothing` of exactly 0.0 adds no code; else it may be traced.
    """
    return ops_loss.loss_of_logits(logits, labels, label_smoothing)


def argmax(x: Array) -> Array:
    """Returns the first index [...] of the maximum over the last axis of x, as int32."""
    if platform() == 'cpu':
        return ops_loss.argmax(x)
    return jnp.argmax(x, axis=-1).astype(jnp.int32)


def chunked_cross_entropy(
    hidden: Array,
    kernel: Array,
    labels: Array,
    bias: Array | None = None,
    softcap: float | None = None,
    label_smoothing=0.0,
    chunks: int | None = None,
    weights: Array | None = None,
) -> tuple[Array, Array]:
    """Returns (float32 loss, int32 arg max), both [...], of hidden [..., dim]·kernel [dim, vocab] + bias.

    The logits of all positions never exist together: `chunks` parts (None: chosen by size) of the
    axis before `dim` are taken one after another. `softcap` c replaces logits x by c·tanh(x / c).
    `weights` [...] multiply the losses; given here instead of afterwards, the backward pass need
    not form the logits again. The operands of the products have the dtype of `hidden`.
    """
    smoothing = None if ops_loss.is_zero(label_smoothing) else label_smoothing
    where = platform()
    if where == 'plain':
        logits = ops_loss.head_logits(hidden, kernel, bias, softcap)
        loss = ops_loss.loss_of_logits(logits, labels, 0.0 if smoothing is None else smoothing)
        return loss if weights is None else loss * weights, argmax(lax.stop_gradient(logits))
    if where == 'cpu' and hidden.dtype in (jnp.bfloat16, jnp.float16):
        kernel = ops_dense.as_it_is(kernel)
    if hidden.ndim == 1:
        loss, best = chunked_cross_entropy(
            hidden[None], kernel, labels[None], bias, softcap, label_smoothing, 1, weights
        )
        return loss[0], best[0]
    length = hidden.shape[-2]
    if chunks is None:
        chunks = ops_loss.default_chunks(labels.size, kernel.shape[1], length)
    chunks = max(1, min(chunks, length))
    weights = jnp.ones(labels.shape, jnp.float32) if weights is None else weights
    weights = jnp.broadcast_to(weights.astype(jnp.float32), labels.shape)
    if smoothing is not None:
        smoothing = jnp.asarray(smoothing, jnp.float32)
    return ops_loss.chunked(hidden, kernel, labels, bias, weights, smoothing, softcap, chunks)


def lstm(
    x: Array,
    carry: tuple[Array, Array],
    w_input: Array,
    w_hidden: Array,
    bias: Array,
    reverse: bool = False,
    lengths: Array | None = None,
    starts: Array | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """Runs an LSTM over x [batch, time, in] and returns (outputs [batch, time, dim], (hidden, cell)).

    Args:
        x: [batch, time, in].
        carry: (hidden, cell), each [batch, dim].
        w_input: [in, 4·dim], gates in the order input, forget, cell, output.
        w_hidden: [dim, 4·dim].
        bias: [4·dim].
        reverse: run from the last step to the first; outputs stay at their own step.
        lengths: [batch] integers; steps at or past a row's length leave the carry as it is and output 0.
        starts: [batch, time] booleans; the carry is 0 before such a step.
    """
    if platform() == 'cpu':
        starts = None if starts is None else starts.T[..., None]
        projected = add_bias(matmul(x.swapaxes(0, 1), w_input), bias)
        found: tuple = ops_rnn.lstm_scan(projected, *carry, w_hidden, lengths, starts, reverse)
        outputs, *last = found
        return outputs.swapaxes(0, 1), (last[0], last[1])
    projected = matmul(x, w_input) + bias

    def step(carry, gates):
        hidden, cell = carry
        gates = gates + matmul(hidden, w_hidden)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    return _scan_rnn(step, projected, carry, reverse, lengths, starts)


def gru(
    x: Array,
    carry: Array,
    w_input: Array,
    w_hidden: Array,
    bias: Array,
    reverse: bool = False,
    lengths: Array | None = None,
    starts: Array | None = None,
) -> tuple[Array, Array]:
    """Runs a GRU over x [batch, time, in] and returns (outputs [batch, time, dim], hidden [batch, dim]).

    Args:
        x: [batch, time, in].
        carry: hidden state [batch, dim].
        w_input: [in, 3·dim], in the order reset, update, candidate.
        w_hidden: [dim, 3·dim].
        bias: [4·dim]: reset, update, candidate's input part, candidate's hidden part (inside the reset gate).
        reverse: run from the last step to the first; outputs stay at their own step.
        lengths: [batch] integers; steps at or past a row's length leave the carry as it is and output 0.
        starts: [batch, time] booleans; the carry is 0 before such a step.
    """
    dim = w_hidden.shape[0]
    if platform() == 'cpu':
        starts = None if starts is None else starts.T[..., None]
        projected = add_bias(matmul(x.swapaxes(0, 1), w_input), bias[: 3 * dim])
        inner = bias[3 * dim :]
        found: tuple = ops_rnn.gru_scan(projected, carry, w_hidden, inner, lengths, starts, reverse)
        outputs, last = found
        return outputs.swapaxes(0, 1), last
    projected = matmul(x, w_input) + bias[: 3 * dim]

    def step(hidden, gates):
        recurrent = matmul(hidden, w_hidden)
        r, z = jnp.split(jax.nn.sigmoid(gates[..., : 2 * dim] + recurrent[..., : 2 * dim]), 2, -1)
        candidate = jnp.tanh(
            gates[..., 2 * dim :] + r * (recurrent[..., 2 * dim :] + bias[3 * dim :])
        )
        hidden = candidate + z * (hidden - candidate)
        return hidden, hidden

    return _scan_rnn(step, projected, carry, reverse, lengths, starts)


def _scan_rnn(step, projected, carry, reverse, lengths, starts):
    steps = jnp.arange(projected.shape[1])

    def masked(carry, inputs):
        gates, t, start = inputs
        if start is not None:
            carry = jax.tree.map(lambda c: jnp.where(start[:, None], jnp.zeros_like(c), c), carry)
        new, output = step(carry, gates)
        if lengths is not None:
            valid = (t < lengths)[:, None]
            new = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, carry)
            output = jnp.where(valid, output, 0)
        return new, output

    inputs = (projected.swapaxes(0, 1), steps, None if starts is None else starts.T)
    carry, outputs = lax.scan(masked, carry, inputs, reverse=reverse)
    return outputs.swapaxes(0, 1), carry
