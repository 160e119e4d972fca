"""Attention on a CPU: in blocks of queries that leave out the keys causality hides."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdl.models.ops import plain

# Of 1, 2, 4, 8 blocks of at least 64 queries these were the fastest; docs/performance.md.
MOST_BLOCKS = 4
LEAST_QUERIES = 64


def attention(
    q, k, v, *, mask=None, bias=None, causal=False, q_segments=None, kv_segments=None, scale=None
):
    """See plain.attention."""
    if bias is not None:
        segments = dict(q_segments=q_segments, kv_segments=kv_segments)
        return plain.attention(
            q, k, v, mask=mask, bias=bias, causal=causal, scale=scale, **segments
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    kv_segments = q_segments if kv_segments is None else kv_segments
    if mask is not None:
        mask = _grouped_mask(mask.reshape((1,) * (4 - mask.ndim) + mask.shape), k.shape[2])
    time, keys = q.shape[1], k.shape[1]
    blocks = _blocks(time, keys, causal)
    done = sum((rows.stop - rows.start) * seen.stop for rows, seen in blocks)
    with plain.counted(time * keys, done):
        return _attention(q, k, v, mask, q_segments, kv_segments, causal, scale)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _attention(q, k, v, mask, q_segments, kv_segments, causal, scale):
    return _forward(q, k, v, mask, q_segments, kv_segments, causal, scale)[0]


def _forward(q, k, v, mask, q_segments, kv_segments, causal, scale):
    # Turned once, here, to the order in which a product takes them: else the compiler turns what
    # each block sees of them anew.
    across, down = _turned(k, (0, 2, 3, 1)), _turned(v, (0, 2, 1, 3))
    outs, saved = [], []
    for rows, keys in _blocks(q.shape[1], k.shape[1], causal):
        visible = _visible(rows, keys, mask, q_segments, kv_segments, causal)
        queries = _rows(q[:, rows], k.shape[2])
        scores = _product(queries, across[..., keys]) * scale
        scores = scores.reshape(*scores.shape[:2], -1, rows.stop - rows.start, scores.shape[-1])
        if visible is not None:
            scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
        weights = weights.reshape(*queries.shape[:3], -1)
        out = _product(weights, down[:, :, keys]).astype(q.dtype)
        outs.append(_heads(out, rows.stop - rows.start))
        saved.append(weights)
    return _join(outs), (q, k, v, mask, q_segments, kv_segments, saved)


def _backward(causal, scale, residuals, d_out):
    q, k, v, mask, q_segments, kv_segments, saved = residuals
    d_out = d_out.astype(q.dtype)
    across, down = _turned(v, (0, 2, 3, 1)), _turned(k, (0, 2, 1, 3))
    blocks = _blocks(q.shape[1], k.shape[1], causal)
    dqs, dks, dvs = [], [], []
    for (rows, keys), weights in zip(blocks, saved, strict=True):
        size = rows.stop - rows.start
        queries, d_rows = _rows(q[:, rows], k.shape[2]), _rows(d_out[:, rows], k.shape[2])
        # The gradients of keys and values with the channels before the keys: that turns the
        # narrow operand of the product, not the weights.
        dvs.append(_product(d_rows.swapaxes(2, 3), weights))
        d_weights = _product(d_rows, across[..., keys])
        wide = weights.astype(jnp.float32)
        centred = d_weights - (d_weights * wide).sum(-1, keepdims=True)
        d_scores = wide * centred * scale
        visible = _visible(rows, keys, mask, q_segments, kv_segments, False)
        if visible is not None:
            # Elsewhere a hidden key has weight 0. Not in a row that sees no key at all.
            apart = d_scores.reshape(*d_scores.shape[:2], -1, size, d_scores.shape[-1])
            d_scores = jnp.where(visible, apart, 0.0).reshape(d_scores.shape)
        d_scores = d_scores.astype(q.dtype)
        dqs.append(_heads(_product(d_scores, down[:, :, keys]).astype(q.dtype), size))
        dks.append(_product(queries.swapaxes(2, 3), d_scores))
    stops = [keys.stop for _, keys in blocks]
    dk, dv = (_sum(parts, stops, k.shape[1]).transpose(0, 3, 1, 2) for parts in (dks, dvs))
    return _join(dqs), dk.astype(k.dtype), dv.astype(v.dtype), None, None, None


_attention.defvjp(_forward, _backward)


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


def _turned(x: Array, axes: tuple[int, ...]) -> Array:
    return lax.optimization_barrier(x.transpose(axes))


def _rows(q: Array, kv_heads: int) -> Array:
    """Returns q [batch, time, heads, dim] as [batch, kv_heads, group·time, dim]."""
    batch, time, heads, dim = q.shape
    q = q.reshape(batch, time, kv_heads, heads // kv_heads, dim)
    return q.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, -1, dim)


def _heads(x: Array, time: int) -> Array:
    """Returns x [batch, kv_heads, group·time, dim] as [batch, time, heads, dim]."""
    batch, kv_heads, _, dim = x.shape
    x = x.reshape(batch, kv_heads, -1, time, dim).transpose(0, 3, 1, 2, 4)
    return x.reshape(batch, time, -1, dim)


def _grouped_mask(mask: Array, kv_heads: int) -> Array:
    """Returns a mask [batch, heads or 1, time, keys] as [batch, kv_heads, group, time, keys]."""
    if mask.shape[1] == 1:
        return mask[:, :, None]
    return mask.reshape(mask.shape[0], kv_heads, -1, *mask.shape[2:])


def _product(a: Array, b: Array) -> Array:
    """Returns a [batch, heads, m, k] times b [batch, heads, k, n] in float32."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _sum(parts: list[Array], stops: list[int], keys: int) -> Array:
    """Adds [batch, heads, dim, stop] gradients of the first `stop` keys each; [..., keys]."""
    pieces, start = [], 0
    for stop in sorted(set(stops)):
        piece = [
            part[..., start:stop] for part, end in zip(parts, stops, strict=True) if end >= stop
        ]
        pieces.append(sum(piece[1:], piece[0]))
        start = stop
    if start < keys:  # causality hides these from every query
        pieces.append(jnp.zeros((*parts[0].shape[:-1], keys - start), jnp.float32))
    return pieces[0] if len(pieces) == 1 else lax.concatenate(pieces, 3)


def _join(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else lax.concatenate(parts, 1)
