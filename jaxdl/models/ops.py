"""The operations every model is built on, each with one plain formulation and faster equals.

A function here computes the same values and gradients on every backend; only the formulation
changes. The formulation is chosen while the program is traced: for the platform named by
`set_platform`, else for `jax.default_backend()`. `set_plain(True)`, or JAXDL_PLAIN=1 in the
environment, selects the plain formulation everywhere, for comparison.
"""

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

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


def matmul(x: Array, kernel: Array) -> Array:
    """Returns x·kernel in the dtype of `x`, for x [..., in] and kernel [in, out]."""
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


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
        x,
        kernel,
        tuple(strides),
        padding,
        rhs_dilation=tuple(dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


def max_pool(x: Array, window: Sequence[int] = (2, 2), strides=None, padding='VALID') -> Array:
    """Returns the maximum of each window of x [batch, height, width, channels]; ties give the first the gradient."""
    strides = tuple(strides or window)
    low = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    init = jnp.asarray(low, x.dtype)
    return lax.reduce_window(x, init, lax.max, (1, *window, 1), (1, *strides, 1), _pads(padding))


def avg_pool(x: Array, window: Sequence[int] = (2, 2), strides=None, padding='VALID') -> Array:
    """Returns the mean of each window of x [batch, height, width, channels], padding counted as zeros."""
    strides = tuple(strides or window)
    zero = jnp.zeros((), x.dtype)
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
    mask = _combine_masks(q, k, mask, causal, q_segments, kv_segments)
    return _attention_plain(q, k, v, mask, bias, scale)


def _combine_masks(q, k, mask, causal, q_segments, kv_segments):
    masks = [] if mask is None else [mask]
    if causal:
        masks.append(jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))[None, None])
    if q_segments is not None:
        kv_segments = q_segments if kv_segments is None else kv_segments
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
    """Returns the float32 loss [...] of logits [..., classes] for integer labels [...]; smoothing in [0, 1)."""
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    if isinstance(label_smoothing, int | float) and label_smoothing == 0:
        return normaliser - target
    uniform = logits.mean(axis=-1)
    return normaliser - (1 - label_smoothing) * target - label_smoothing * uniform


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
    """Returns (loss, argmax), both [...], of hidden [..., dim]·kernel [dim, vocab] + bias against labels [...].

    The logits of all positions never exist together: `chunks` parts (None: chosen by size) of the
    axis before `dim` are taken one after another. `softcap` c replaces logits x by c·tanh(x / c).
    `weights` [...] multiply the losses; given here instead of afterwards, the backward pass need
    not form the logits again.
    """
    del chunks
    logits = matmul(hidden, kernel.astype(hidden.dtype)).astype(jnp.float32)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    loss = cross_entropy(logits, labels, label_smoothing)
    loss = loss if weights is None else loss * weights
    return loss, jnp.argmax(lax.stop_gradient(logits), axis=-1)


def lstm(
    x: Array,
    carry: tuple[Array, Array],
    w_input: Array,
    w_hidden: Array,
    bias: Array,
    reverse: bool = False,
    lengths: Array | None = None,
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
    """
    projected = matmul(x, w_input) + bias

    def step(carry, gates):
        hidden, cell = carry
        gates = gates + matmul(hidden, w_hidden)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    return _scan_rnn(step, projected, carry, reverse, lengths)


def gru(
    x: Array,
    carry: Array,
    w_input: Array,
    w_hidden: Array,
    bias: Array,
    reverse: bool = False,
    lengths: Array | None = None,
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
    """
    dim = w_hidden.shape[0]
    projected = matmul(x, w_input) + bias[: 3 * dim]

    def step(hidden, gates):
        recurrent = matmul(hidden, w_hidden)
        r, z = jnp.split(jax.nn.sigmoid(gates[..., : 2 * dim] + recurrent[..., : 2 * dim]), 2, -1)
        candidate = jnp.tanh(
            gates[..., 2 * dim :] + r * (recurrent[..., 2 * dim :] + bias[3 * dim :])
        )
        hidden = candidate + z * (hidden - candidate)
        return hidden, hidden

    return _scan_rnn(step, projected, carry, reverse, lengths)


def _scan_rnn(step, projected, carry, reverse, lengths):
    steps = jnp.arange(projected.shape[1])

    def masked(carry, inputs):
        gates, t = inputs
        new, output = step(carry, gates)
        if lengths is not None:
            valid = (t < lengths)[:, None]
            new = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, carry)
            output = jnp.where(valid, output, 0)
        return new, output

    inputs = (projected.swapaxes(0, 1), steps)
    carry, outputs = lax.scan(masked, carry, inputs, reverse=reverse)
    return outputs.swapaxes(0, 1), carry
