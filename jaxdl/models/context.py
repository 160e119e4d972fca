"""Attention over a sequence that is split over devices, equal to attention over the whole of it.

Two ways. 'ring' (Liu et al. 2023, arXiv:2310.01889): every device keeps its queries, and the keys
and values travel from device to device; any number of heads, and no device ever holds more than its
share of the sequence. 'heads' (Jacobs et al. 2023, arXiv:2309.14509): an all-to-all exchange gives
every device the whole sequence of some heads, so that the fused kernels of one device apply.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxdl.models import layout, ops

HIDDEN = float(jnp.finfo(jnp.float32).min)


def is_split() -> bool:
    """Whether activations are split by their length here."""
    return bool(layout.axes('batch', 'length', 'heads', 'kv')[1])


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    q_segments: Array | None = None,
    kv_segments: Array | None = None,
) -> Array:
    """Returns what `ops.attention` returns; q, k and v are split by length over the same axis.

    Args:
        q: [batch, time, heads, head_dim].
        k: [batch, keys, kv_heads, head_dim].
        v: like `k`.
        causal: query i sees keys 0..i.
        q_segments: [batch, time]; a query sees only keys of its own segment.
        kv_segments: [batch, keys].
    """
    batch, (axis,), heads, _ = layout.axes('batch', 'length', 'heads', 'kv')
    count = layout.ways((axis,))
    for size in (q.shape[1], k.shape[1]):
        if size % count:
            raise ValueError(f'{size} tokens do not split over mesh.{axis}={count} evenly')
    if k.shape[2] % layout.ways(heads):
        heads = ()
    if q.shape[0] % layout.ways(batch):
        batch = ()
    local = k.shape[2] // layout.ways(heads)
    way = layout.current().context_by
    if way == 'heads' and local % count:
        raise ValueError(
            f"context_by='heads': {local} key heads on a device do not split over "
            f"mesh.{axis}={count}; use context_by='ring'"
        )
    if way == 'auto':
        way = 'ring' if local % count else 'heads'

    def inside(q, k, v, q_segments, kv_segments):
        with layout.manual(*free):
            if way == 'heads':
                return _by_heads(q, k, v, q_segments, kv_segments, causal, axis)
            return ring(q, k, v, q_segments, kv_segments, causal, q.shape[-1] ** -0.5, axis, count)

    # All that is split is split by hand: library kernels are not partitioned by the compiler.
    free = set(layout.sizes())
    whole = PartitionSpec(batch or None, axis, heads or None, None)
    rows = PartitionSpec(batch or None, axis)
    return jax.shard_map(
        inside,
        mesh=jax.sharding.get_abstract_mesh(),
        in_specs=(whole, whole, whole, rows, rows),
        out_specs=whole,
        axis_names=free,
        check_vma=False,
    )(q, k, v, q_segments, kv_segments)


def _by_heads(q, k, v, q_segments, kv_segments, causal, axis):
    exchange = partial(lax.all_to_all, axis_name=axis, split_axis=2, concat_axis=1, tiled=True)
    if q_segments is not None:
        gather = partial(lax.all_gather, axis_name=axis, axis=1, tiled=True)
        q_segments, kv_segments = gather(q_segments), gather(kv_segments)
    out = ops.attention(
        *map(exchange, (q, k, v)), causal=causal, q_segments=q_segments, kv_segments=kv_segments
    )
    return lax.all_to_all(out, axis, split_axis=1, concat_axis=2, tiled=True)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def ring(
    q: Array,
    k: Array,
    v: Array,
    q_segments: Array | None,
    kv_segments: Array | None,
    causal: bool,
    scale: float,
    axis: str,
    count: int,
) -> Array:
    """Attention inside shard_map over `axis` of `count` devices, each with its share of q, k and v.

    Causal attention leaves the work on later keys out, so the last device has the most to do.
    """
    return _forward(q, k, v, q_segments, kv_segments, causal, scale, axis, count)[0]


def _forward(q, k, v, q_segments, kv_segments, causal, scale, axis, count):
    queries = _grouped(q, k)
    batch, time, kv_heads, group, _ = queries.shape
    rows = (batch, kv_heads, group, time)
    top, total = jnp.full(rows, HIDDEN), jnp.zeros(rows, jnp.float32)
    out = jnp.zeros((*queries.shape[:-1], v.shape[-1]), jnp.float32)
    travelling = (k, v, kv_segments)

    def block(sums, travelling, source):
        top, total, out = sums
        k, v, kv_segments = travelling
        scores = _product('btkgd,bskd->bkgts', queries, k) * scale
        visible = _visible(q, k, q_segments, kv_segments, causal, axis, source)
        if visible is not None:
            scores = jnp.where(visible, scores, HIDDEN)
        higher = jnp.maximum(top, scores.max(-1))
        weights = jnp.exp(scores - higher[..., None])
        kept = jnp.exp(top - higher)
        total = total * kept + weights.sum(-1)
        out = out * _by_query(kept) + _product('bkgts,bskd->btkgd', weights.astype(q.dtype), v)
        return higher, total, out

    sums = (top, total, out)
    for turn in range(count):
        sums = _unless_hidden(block, sums, travelling, causal, axis, turn, count)
        if turn < count - 1:
            travelling = _onward(travelling, axis, count)
    top, total, out = sums
    out = (out / _by_query(total)).astype(q.dtype).reshape(*q.shape[:3], v.shape[-1])
    return out, (q, k, v, q_segments, kv_segments, out, top + jnp.log(total))


def _forward_rule(q, k, v, q_segments, kv_segments, causal, scale, axis, count):
    return _forward(q, k, v, q_segments, kv_segments, causal, scale, axis, count)


def _backward_rule(causal, scale, axis, count, saved, d_out):
    q, k, v, q_segments, kv_segments, out, normaliser = saved
    queries, d_rows = _grouped(q, k), _grouped(d_out.astype(q.dtype), k)
    # The sum over keys of weight · its gradient, which every score's gradient subtracts.
    shared = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    shared = shared.reshape(*queries.shape[:4]).transpose(0, 2, 3, 1)
    d_q = jnp.zeros(queries.shape, jnp.float32)
    travelling = (k, v, kv_segments)
    sums = (d_q, jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))

    def block(sums, travelling, source):
        d_q, d_k, d_v = sums
        k, v, kv_segments = travelling
        scores = _product('btkgd,bskd->bkgts', queries, k) * scale
        weights = jnp.exp(scores - normaliser[..., None])
        visible = _visible(q, k, q_segments, kv_segments, causal, axis, source)
        if visible is not None:
            weights = jnp.where(visible, weights, 0.0)
        d_weights = _product('btkgd,bskd->bkgts', d_rows, v)
        d_scores = (weights * (d_weights - shared[..., None]) * scale).astype(q.dtype)
        weights = weights.astype(q.dtype)
        return (
            d_q + _product('bkgts,bskd->btkgd', d_scores, k),
            d_k + _product('bkgts,btkgd->bskd', d_scores, queries),
            d_v + _product('bkgts,btkgd->bskd', weights, d_rows),
        )

    for turn in range(count):
        d_q, d_k, d_v = _unless_hidden(block, sums, travelling, causal, axis, turn, count)
        if turn < count - 1:
            travelling = _onward(travelling, axis, count)
        # The gradients of keys and values travel with them, once more than they: home.
        sums = (d_q, *_onward((d_k, d_v), axis, count))
    d_q, d_k, d_v = sums
    return (
        d_q.reshape(q.shape).astype(q.dtype),
        d_k.astype(k.dtype),
        d_v.astype(v.dtype),
        None,
        None,
    )


ring.defvjp(_forward_rule, _backward_rule)


def _unless_hidden(block, sums, travelling, causal, axis, turn, count):
    """Adds a block of keys to `sums`, unless causality hides all of them from all queries here."""
    rank = lax.axis_index(axis)
    source = (rank - turn) % count
    if not causal or turn == 0:
        return block(sums, travelling, source)
    return lax.cond(source < rank, block, lambda sums, *_: sums, sums, travelling, source)


def _onward(tree, axis, count):
    return lax.ppermute(tree, axis, [(i, (i + 1) % count) for i in range(count)])


def _visible(q, k, q_segments, kv_segments, causal, axis, source):
    """Which scores [batch, 1, 1, time, keys] of the keys of device `source` count; None: all."""
    visible = None
    if causal:
        rows = lax.axis_index(axis) * q.shape[1] + jnp.arange(q.shape[1])
        visible = rows[:, None] >= source * k.shape[1] + jnp.arange(k.shape[1])[None]
    if q_segments is not None:
        same = (q_segments[:, :, None] == kv_segments[:, None])[:, None, None]
        visible = same if visible is None else visible & same
    return visible


def _grouped(q: Array, k: Array) -> Array:
    """q [batch, time, heads, dim] as [batch, time, kv_heads, group, dim]."""
    return q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])


def _by_query(x: Array) -> Array:
    """[batch, kv_heads, group, time] as [batch, time, kv_heads, group, 1]."""
    return x.transpose(0, 3, 1, 2)[..., None]


def _product(spec: str, a: Array, b: Array) -> Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)
