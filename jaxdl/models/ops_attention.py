"""Attention on a CPU: in blocks of queries that leave out the keys causality hides."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

# Of 1, 2, 4, 8 blocks of at least 64 queries these were the fastest; docs/performance.md.
MOST_BLOCKS = 4
LEAST_QUERIES = 64


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    q_segments: Array | None,
    kv_segments: Array | None,
    causal: bool,
    scale: float,
) -> Array:
    """Returns attention as `jaxdl.models.ops.attention` defines it, the mask as `grouped_mask` gives it."""
    return _forward(q, k, v, mask, q_segments, kv_segments, causal, scale)[0]


def _forward(q, k, v, mask, q_segments, kv_segments, causal, scale):
    outs, saved = [], []
    for rows, keys in _blocks(q.shape[1], k.shape[1], causal):
        visible = _visible(rows, keys, mask, q_segments, kv_segments, causal)
        scores = _product('btkgd,bskd->bkgts', _grouped(q[:, rows], k), k[:, keys]) * scale
        if visible is not None:
            scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
        out = _product('bkgts,bskd->btkgd', weights, v[:, keys]).astype(q.dtype)
        outs.append(out.reshape(*out.shape[:2], *q.shape[2:3], v.shape[-1]))
        saved.append(weights)
    return _join(outs), (q, k, v, mask, q_segments, kv_segments, saved)


def _forward_rule(q, k, v, mask, q_segments, kv_segments, causal, scale):
    return _forward(q, k, v, mask, q_segments, kv_segments, causal, scale)


def _backward_rule(causal, scale, residuals, d_out):
    q, k, v, mask, q_segments, kv_segments, saved = residuals
    d_out = d_out.astype(q.dtype)
    dqs = []
    dk, dv = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for (rows, keys), weights in zip(_blocks(q.shape[1], k.shape[1], causal), saved, strict=True):
        queries, d_rows = _grouped(q[:, rows], k), _grouped(d_out[:, rows], k)
        block_dv = _product('bkgts,btkgd->bskd', weights, d_rows)
        d_weights = _product('btkgd,bskd->bkgts', d_rows, v[:, keys])
        wide = weights.astype(jnp.float32)
        centred = d_weights - (d_weights * wide).sum(-1, keepdims=True)
        d_scores = wide * centred * scale
        if mask is not None or q_segments is not None:
            # Elsewhere a hidden key has weight 0. Not in a row that sees no key at all.
            visible = _visible(rows, keys, mask, q_segments, kv_segments, False)
            d_scores = jnp.where(visible, d_scores, 0.0)
        d_scores = d_scores.astype(q.dtype)
        dq = _product('bkgts,bskd->btkgd', d_scores, k[:, keys]).astype(q.dtype)
        block_dk = _product('bkgts,btkgd->bskd', d_scores, queries)
        dqs.append(dq.reshape(*dq.shape[:2], *q.shape[2:]))
        dk, dv = _add(dk, block_dk), _add(dv, block_dv)
    return _join(dqs), dk.astype(k.dtype), dv.astype(v.dtype), None, None, None


attention.defvjp(_forward_rule, _backward_rule)


def _blocks(queries: int, keys: int, causal: bool) -> list[tuple[slice, slice]]:
    """Returns (queries, keys they may see) of each block."""
    count = min(MOST_BLOCKS, queries // LEAST_QUERIES) if causal else 1
    if count <= 1:
        return [(slice(0, queries), slice(0, keys))]
    size = -(-queries // count)
    starts = range(0, queries, size)
    ends = [min(start + size, queries) for start in starts]
    pairs = zip(starts, ends, strict=True)
    return [(slice(start, end), slice(0, min(end, keys))) for start, end in pairs]


def _visible(rows, keys, mask, q_segments, kv_segments, causal):
    """Returns which scores [batch, kv_heads, group, queries, keys] of a block count; None: all."""
    visible = None
    if causal:
        row = jnp.arange(rows.start, rows.stop)[:, None]
        visible = row >= jnp.arange(keys.start, keys.stop)[None, :]
    if q_segments is not None:
        same = q_segments[:, rows, None] == kv_segments[:, None, keys]
        same = same[:, None, None]
        visible = same if visible is None else visible & same
    if mask is not None:
        part = mask[:, :, :, rows if mask.shape[3] > 1 else slice(None)]
        part = part[..., keys if mask.shape[4] > 1 else slice(None)]
        visible = part if visible is None else visible & part
    return visible


def _grouped(q: Array, k: Array) -> Array:
    """Returns q [batch, time, heads, dim] as [batch, time, kv_heads, group, dim]."""
    return q.reshape(*q.shape[:2], k.shape[2], q.shape[2] // k.shape[2], q.shape[3])


def grouped_mask(mask: Array, kv_heads: int) -> Array:
    """Returns a mask [batch, heads or 1, time, keys] as [batch, kv_heads, group, time, keys]."""
    if mask.shape[1] == 1:
        return mask[:, :, None]
    return mask.reshape(mask.shape[0], kv_heads, -1, *mask.shape[2:])


def _product(spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _add(total: Array, part: Array) -> Array:
    """Adds the gradient of the first keys to that of all keys."""
    missing = total.shape[1] - part.shape[1]
    return total + (jnp.pad(part, ((0, 0), (0, missing), (0, 0), (0, 0))) if missing else part)


def _join(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else lax.concatenate(parts, 1)
