"""The plain formulation of every operation, which is its definition: the others give the same values."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Pair = tuple[int, int]  # height and width


@contextlib.contextmanager
def counted(wanted: int, done: int) -> Iterator[None]:
    """Products traced inside count as `wanted` operations of the definition for each `done`.

    So the count of FLOPs (jaxdl.account.flops) does not depend on the formulation.
    """
    if wanted == done:
        yield
    else:
        with jax.named_scope(f'flops*{wanted}:{done}'):
            yield


def recompute(function: Callable[..., Array]) -> Callable[..., Array]:
    """Returns `function`, whose backward pass may keep nothing but the arguments.

    For chains of element-wise operations, never for products: what lies between their
    arguments and their result is sooner computed again than written to memory and read back.
    """
    return function


def matmul(x: Array, kernel: Array) -> Array:
    """Returns x·kernel in the dtype of `x`, for x [..., in] and kernel [in, out] of that dtype."""
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def add_bias(y: Array, bias: Array) -> Array:
    """Returns y [..., out] + bias [out], both of one dtype."""
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
        x,
        kernel,
        tuple(strides),
        padding,
        rhs_dilation=tuple(dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


def max_pool(x: Array, window: Pair = (2, 2), strides: Pair = (2, 2), padding='VALID') -> Array:
    """Returns the maximum of each window of x [batch, height, width, channels].

    Among equal elements the first of the window gets the gradient.
    """
    low = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return lax.reduce_window(
        x, np.array(low, x.dtype), lax.max, (1, *window, 1), (1, *strides, 1), _pads(padding)
    )


def avg_pool(x: Array, window: Pair = (2, 2), strides: Pair = (2, 2), padding='VALID') -> Array:
    """Returns the mean of each window of x [batch, height, width, channels], padding counted as zeros."""
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
    keep = 1 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(key, keep, x.shape)
    return jnp.where(kept, x.astype(jnp.float32) / keep, 0.0).astype(x.dtype)


def gelu(x: Array, *, approximate: bool) -> Array:
    """Returns x·Φ(x), Φ the normal distribution, or with `approximate` its form with tanh."""
    return jax.nn.gelu(x, approximate=approximate)


def norm(
    x: Array, scale: Array, bias: Array | None, *, epsilon: float, centred: bool, dtype: str
) -> Array:
    """Returns scale·(x - mean)/sqrt(mean square + epsilon) + bias for x [..., width], in `dtype`.

    Without `centred` no mean is taken off (RMSNorm). The arithmetic is float32.
    """
    x = x.astype(jnp.float32)
    if centred:
        x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon) * scale
    return (x if bias is None else x + bias).astype(dtype)


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
    mask = combined_mask(q, k, mask, causal, q_segments, kv_segments)
    groups = q.shape[2] // k.shape[2]
    if groups > 1:
        k, v = (jnp.repeat(one, groups, axis=2) for one in (k, v))
    scores = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum('bhqk,bkhd->bqhd', weights, v)


def combined_mask(
    q: Array,
    k: Array,
    mask: Array | None,
    causal: bool,
    q_segments: Array | None,
    kv_segments: Array | None,
) -> Array | None:
    """Returns the mask that says all of these, broadcast to [batch, heads, time, keys]; None: all."""
    masks = [] if mask is None else [mask]
    if causal:
        masks.append(jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))[None, None])
    if q_segments is not None:
        kv_segments = q_segments if kv_segments is None else kv_segments
        masks.append((q_segments[:, :, None] == kv_segments[:, None, :])[:, None])
    return functools.reduce(jnp.logical_and, masks) if masks else None


def argmax(x: Array) -> Array:
    """Returns the first index [...] of the maximum over the last axis of x, as int32."""
    return jnp.argmax(x, axis=-1).astype(jnp.int32)


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
