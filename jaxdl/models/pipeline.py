"""Pipeline parallelism: stages of a stack of equal layers on different devices.

The schedule is that of GPipe (Huang et al. 2018, arXiv:1811.06965) inside one program: the batch is
cut into micro-batches, and in every turn each stage works on another one and hands its result to
the next stage. A pipeline of p stages idles for p - 1 of its m + p - 1 turns.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxdl.models import layout


def stages() -> int:
    """Over how many devices a stack of layers is spread here; 1: no pipeline."""
    return layout.ways(layout.axes('layers')[0])


def parts(rows: int, wanted: int, count: int) -> int:
    """Into how many micro-batches `rows` of a batch are cut for `count` stages.

    The largest multiple of `count` up to `wanted` (0: four a stage) that divides `rows`.
    """
    most = max(1, (wanted or 4 * count) // count)
    each = max((q for q in range(1, most + 1) if rows % (q * count) == 0), default=0)
    if not each:
        raise ValueError(
            f'{rows} rows do not split over {count} pipeline stages; '
            f'use a batch that is a multiple of {count} for each data replica'
        )
    return each * count


def run(
    layer: Callable[[Any, jax.Array, Any, jax.Array], jax.Array],
    params: Any,
    x: jax.Array,
    shared: Any,
    key: jax.Array,
) -> jax.Array:
    """Returns what all layers, one after another, make of x [batch, …].

    Args:
        layer: (parameters of one layer, x, shared, key) → x of the same shape, for some rows.
        params: of all layers, stacked on axis 0.
        x: [batch, …]; the rows are spread over the mesh axes of 'batch', the last of which is the
            pipeline's own.
        shared: a tree of arrays [batch, …] that every layer sees.
        key: a random key; every layer gets its own for every micro-batch.
    """
    (axis,), (batch,) = layout.axes('layers')[0], layout.axes('batch')
    count = stages()
    depth = len(jax.tree.leaves(params)[0])
    if depth % count:
        raise ValueError(f'{depth} layers do not split over {count} pipeline stages evenly')
    # The rows are split by hand too: their gradients are then summed once, not in every turn.
    others = tuple(name for name in batch if name != axis)
    replicas = layout.ways(others)
    turns_of = parts(x.shape[0] // replicas, layout.current().pipe_parts, count)

    def cut(rows):
        """[batch, …] → [micro-batches, rows, …]: every device keeps its own rows."""
        rows = rows.reshape(replicas, turns_of, -1, *rows.shape[1:]).swapaxes(0, 1)
        return rows.reshape(turns_of, -1, *rows.shape[3:])

    def joined(micro):
        rows = micro.reshape(turns_of, replicas, -1, *micro.shape[2:]).swapaxes(0, 1)
        return rows.reshape(-1, *micro.shape[2:])

    def staged(params, micro, shared, key):
        stage = jax.lax.axis_index(axis)
        for name in others:
            key = jax.random.fold_in(key, jax.lax.axis_index(name))
        here = depth // count
        micro = _to_first(micro, axis, count)

        def layers(x, part):
            row = jax.tree.map(lambda a: a[part], shared)

            def one(x, item):
                weights, number = item
                own = jax.random.fold_in(jax.random.fold_in(key, number), part)
                return layer(weights, x, row, own), None

            return jax.lax.scan(one, x, (params, stage * here + jnp.arange(here)))[0]

        def turn(incoming, number):
            # Before its first and after its last micro-batch a stage works on one that nobody uses.
            part = jnp.clip(number - stage, 0, turns_of - 1)
            out = layers(jnp.where(stage == 0, micro[part], incoming), part)
            onward = jax.lax.ppermute(out, axis, [(i, i + 1) for i in range(count - 1)])
            return onward, out

        turns = jnp.arange(turns_of + count - 1)
        _, outs = jax.lax.scan(turn, jnp.zeros_like(micro[0]), turns)
        return _from_last(outs[count - 1 :], axis, count)

    def inside(*args):
        with layout.manual(axis, *others):
            return staged(*args)

    rows = PartitionSpec(axis, others or None)
    everywhere = PartitionSpec(None, others or None)
    spread = jax.shard_map(
        inside,
        mesh=jax.sharding.get_abstract_mesh(),
        in_specs=(PartitionSpec(axis), rows, everywhere, PartitionSpec()),
        out_specs=rows,
        axis_names={axis, *others},
        check_vma=False,
    )
    return joined(spread(params, cut(x), jax.tree.map(cut, shared), key))


def _to_first(micro: jax.Array, axis: str, count: int) -> jax.Array:
    """All micro-batches in order on the first stage, from the share of them on each stage."""
    shares = [micro, *(jax.lax.ppermute(micro, axis, [(i, 0)]) for i in range(1, count))]
    return jnp.concatenate(shares)


def _from_last(micro: jax.Array, axis: str, count: int) -> jax.Array:
    """The last stage's micro-batches shared out, so that what follows is split over all stages."""
    shares = jnp.split(micro, count)
    last = jax.lax.axis_index(axis) == count - 1
    mine = jnp.where(last, shares[-1], 0)
    for i, share in enumerate(shares[:-1]):
        mine = mine + jax.lax.ppermute(share, axis, [(count - 1, i)])
    return mine
