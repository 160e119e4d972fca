"""Cross entropy over a large vocabulary without all of its logits."""

from functools import partial

import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jax import Array, lax

from jaxdl.models import layout
from jaxdl.models.ops import cpu, plain

# Logits of one chunk: small enough to stay out of the way, large enough for a good matrix product.
CHUNK_BYTES = 256 * 2**20
MOST_CHUNKS = 16


def _is_zero(value) -> bool:
    # A traced number is never off.
    return isinstance(value, int | float) and value == 0


def default_chunks(positions: int, vocab: int, along: int) -> int:
    """Returns into how many parts an axis of length `along` is cut, for the logits of one device."""
    rows, length, columns = map(layout.ways, layout.axes('batch', 'inner', 'vocab'))
    wanted = -(-positions * vocab * 4 // (CHUNK_BYTES * rows * length * columns))
    return max(1, min(wanted, MOST_CHUNKS, along))


def cross_entropy(logits: Array, labels: Array, label_smoothing: float | Array = 0.0) -> Array:
    """Returns the float32 loss [...] of logits [..., classes] for integer labels [...].

    The target gives 1 - label_smoothing to the label and spreads the rest evenly over all classes
    (arXiv:1512.00567). A `label_smoothing` of exactly 0.0 adds no code; else it may be traced.
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    # A comparison, not a gather: its gradient is no scatter, and it partitions over the classes.
    chosen = jnp.where(_is_label(labels, logits), logits, 0.0).sum(-1)
    if _is_zero(label_smoothing):
        return normaliser - chosen
    kept = (1.0 - label_smoothing) * chosen + label_smoothing * logits.mean(-1)
    return normaliser - kept


def chunked_cross_entropy(
    hidden: Array,
    kernel: Array,
    labels: Array,
    bias: Array | None = None,
    softcap: float | None = None,
    label_smoothing: float | Array = 0.0,
    chunks: int | None = None,
    weights: Array | None = None,
) -> tuple[Array, Array]:
    """Returns (float32 loss, int32 arg max), both [...], of hidden [..., dim]·kernel [dim, vocab] + bias.

    The logits of all positions never exist together: `chunks` parts (None: chosen by size) of the
    axis before `dim` are taken one after another. `softcap` c replaces logits x by c·tanh(x / c).
    `weights` [...] multiply the losses; given here instead of afterwards, the backward pass need
    not form the logits again. The operands of the products have the dtype of `hidden`.
    """
    if hidden.ndim == 1:
        loss, best = chunked_cross_entropy(
            hidden[None], kernel, labels[None], bias, softcap, label_smoothing, 1, weights
        )
        return loss[0], best[0]
    length = hidden.shape[-2]
    if chunks is None:
        chunks = default_chunks(labels.size, kernel.shape[1], length)
    chunks = max(1, min(chunks, length))
    weights = jnp.ones(labels.shape, jnp.float32) if weights is None else weights
    weights = jnp.broadcast_to(weights.astype(jnp.float32), labels.shape)
    smoothing = None if _is_zero(label_smoothing) else jnp.asarray(label_smoothing, jnp.float32)
    return _chunked(hidden, kernel, labels, bias, weights, smoothing, softcap, chunks)


def chunked_cross_entropy_cpu(hidden: Array, kernel: Array, *args, **kwargs) -> tuple[Array, Array]:
    """The same on a CPU."""
    if hidden.dtype in cpu.HALF:
        kernel = cpu.as_it_is(kernel)
    return chunked_cross_entropy(hidden, kernel, *args, **kwargs)


def whole_cross_entropy(
    hidden,
    kernel,
    labels,
    bias=None,
    softcap=None,
    label_smoothing: float | Array = 0.0,
    chunks=None,
    weights=None,
):
    """The same with all logits at once."""
    del chunks
    logits = _head_logits(hidden, kernel, bias, softcap)
    loss = cross_entropy(logits, labels, label_smoothing)
    best = plain.argmax(lax.stop_gradient(logits))
    return loss if weights is None else loss * weights, best


def _is_label(labels, logits):
    return lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels[..., None]


def _head_logits(hidden: Array, kernel: Array, bias: Array | None, softcap) -> Array:
    """Returns float32 logits [..., vocab]; the product's operands have hidden's dtype."""
    out = _dot(hidden, kernel, hidden.ndim - 1, 0)
    if bias is not None:
        out = out + bias.astype(jnp.float32)
    return out if softcap is None else softcap * jnp.tanh(out / softcap)


def _dot(a, b, a_axis, b_axis):
    dims = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b.astype(a.dtype), dims, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _chunked(hidden, kernel, labels, bias, weights, smoothing, softcap, chunks):
    """Returns (weighted losses, argmax), both [..., length], of hidden [..., length, dim].

    `smoothing` is None for off, else a scalar array; `weights` [..., length] are float32.
    """
    kernel = kernel.astype(hidden.dtype)

    def one(carry, piece):
        hidden, labels, weights = piece
        logits = _head_logits(hidden, kernel, bias, softcap)
        loss = cross_entropy(logits, labels, 0.0 if smoothing is None else smoothing)
        return carry, (loss * weights, cpu.argmax(logits))

    return _over_chunks(one, None, (hidden, labels, weights), chunks)[1]


def _over_chunks(function, carry, pieces, chunks):
    """Like lax.scan of `function` over parts of the axis before the last of pieces[0].

    A loop, since chunks written out one after another are started all at once by the scheduler,
    which then holds all their logits. Where `chunks` do not divide the axis the last is shorter.
    """
    axis = pieces[0].ndim - 2
    length = pieces[0].shape[axis]
    size = -(-length // chunks)
    count = length // size
    outs = []
    if count > 1:
        whole = jax.tree.map(lambda x: _split(x, axis, count, size), pieces)
        carry, stacked = lax.scan(function, carry, whole)
        outs.append(jax.tree.map(lambda x: _unsplit(x, axis), stacked))
    done = count * size if count > 1 else 0
    if done < length:
        rest = jax.tree.map(lambda x: lax.slice_in_dim(x, done, length, axis=axis), pieces)
        carry, out = function(carry, rest)
        outs.append(out)
    if len(outs) == 1:
        return carry, outs[0]
    return carry, jax.tree.map(lambda *parts: lax.concatenate(parts, axis), *outs)


def _split(x, axis, count, size):
    x = lax.slice_in_dim(x, 0, count * size, axis=axis)
    if _strided():
        x = x.reshape(*x.shape[:axis], size, count, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis + 1, 0)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)


def _unsplit(x, axis):
    x = jnp.moveaxis(x, 0, axis + 1 if _strided() else axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _strided() -> bool:
    """Whether chunk j takes positions j, j + chunks, …: each device then has its part of each."""
    return layout.ways(layout.axes('batch', 'inner')[1]) > 1


def _shards(hidden: Array, chunks: int) -> tuple[int, int]:
    """How many ways rows and length of the chunks of hidden [batch, length, dim] are split."""
    if hidden.ndim != 3:
        return 1, 1
    rows, length = map(layout.ways, layout.axes('batch', 'inner'))
    return (
        rows if hidden.shape[0] % rows == 0 else 1,
        length if hidden.shape[1] % (chunks * length) == 0 else 1,
    )


def _gradients(piece, kernel, bias, smoothing, softcap, shards):
    """Losses and arg max of one chunk, and the gradients of sum(scale · loss)."""
    hidden, labels, scale = piece
    logits = _head_logits(hidden, kernel, bias, softcap)
    top = logits.max(-1, keepdims=True)
    exponents = jnp.exp(logits - top)
    total = exponents.sum(-1, keepdims=True)
    normaliser = (jnp.log(total) + top)[..., 0]
    is_label = _is_label(labels, logits)
    chosen = jnp.where(is_label, logits, 0.0).sum(-1)
    target = is_label.astype(jnp.float32)
    loss = normaliser - chosen
    d_smoothing = jnp.zeros_like(loss)
    if smoothing is not None:
        uniform = logits.mean(-1)
        loss = normaliser - (1.0 - smoothing) * chosen - smoothing * uniform
        target = (1.0 - smoothing) * target + smoothing / logits.shape[-1]
        d_smoothing = scale * (chosen - uniform)
    d_logits = scale[..., None] * (exponents / total - target)
    if softcap is not None:
        d_logits = d_logits * (1.0 - jnp.square(logits / softcap))
    wide, d_logits = d_logits, d_logits.astype(hidden.dtype)
    d_hidden = _dot(d_logits, kernel, d_logits.ndim - 1, 1).astype(hidden.dtype)
    if shards == (1, 1):
        rows = tuple(range(hidden.ndim - 1))
        dims = ((rows, rows), ((), ()))
        d_kernel = lax.dot_general(hidden, d_logits, dims, preferred_element_type=jnp.float32)
        d_bias = None if bias is None else wide.sum(rows)
    else:
        parts, d_parts = _by_shard(hidden, shards), _by_shard(d_logits, shards)
        spec = 'xbyld,xbylv->xydv'
        d_kernel = jnp.einsum(spec, parts, d_parts, preferred_element_type=jnp.float32)
        d_bias = None if bias is None else _by_shard(wide, shards).sum((1, 3))
        d_kernel, d_bias = _keep_apart((d_kernel, d_bias))
    return (loss, cpu.argmax(logits), d_hidden, d_smoothing), (d_kernel, d_bias)


def _by_shard(x, shards):
    """[batch, length, …] as [shards of rows, rows, shards of length, length, …]."""
    rows, length = shards
    return x.reshape(rows, x.shape[0] // rows, length, x.shape[1] // length, *x.shape[2:])


def _keep_apart(sums):
    """Keeps the sums [shards of rows, shards of length, …] of each device on that device."""
    d_kernel, d_bias = sums
    names = ('batch', 'inner')
    if d_bias is not None:
        d_bias = with_logical_constraint(d_bias, (*names, 'vocab'))
    return with_logical_constraint(d_kernel, (*names, 'embed', 'vocab')), d_bias


def _all_gradients(pieces, kernel, bias, smoothing, softcap, chunks):
    kernel = kernel.astype(pieces[0].dtype)  # once, not for every chunk
    # Sums over the devices are taken after the last chunk, not once for each of them.
    shards = _shards(pieces[0], chunks)
    apart = shards if shards != (1, 1) else ()
    zero = jnp.zeros((*apart, *kernel.shape), jnp.float32)
    sums = (zero, None if bias is None else jnp.zeros((*apart, *bias.shape), jnp.float32))
    if apart:
        sums = _keep_apart(sums)

    def one(sums, piece):
        out, parts = _gradients(piece, kernel, bias, smoothing, softcap, shards)
        return jax.tree.map(jnp.add, sums, parts), out

    sums, out = _over_chunks(one, sums, pieces, chunks)
    return out, jax.tree.map(lambda x: x.sum((0, 1)), sums) if apart else sums


def _chunked_forward(hidden, kernel, labels, bias, weights, smoothing, softcap, chunks):
    pieces = (hidden, labels, weights)
    (loss, best, d_hidden, d_smoothing), sums = _all_gradients(
        pieces, kernel, bias, smoothing, softcap, chunks
    )
    saved = (hidden, kernel, labels, bias, weights, smoothing, loss, d_hidden, d_smoothing, sums)
    return (loss * weights, best), saved


def _chunked_backward(softcap, chunks, saved, gradients):
    hidden, kernel, labels, bias, weights, smoothing, loss, d_hidden, d_smoothing, sums = saved
    gradient = gradients[0].astype(jnp.float32)
    factor = gradient.reshape(-1)[0]

    def scaled():
        d_kernel, d_bias = sums
        d_bias = None if bias is None else d_bias * factor
        return (
            (d_hidden * factor).astype(hidden.dtype),
            d_smoothing * factor,
            (d_kernel * factor, d_bias),
        )

    @jax.named_scope('unlikely')  # so that the count of FLOPs leaves it out
    def again():
        pieces = (hidden, labels, weights * gradient)
        (_, _, d_hidden, d_smoothing), sums = _all_gradients(
            pieces, kernel, bias, smoothing, softcap, chunks
        )
        return d_hidden, d_smoothing, sums

    # A mean or a sum of the losses gives every position one factor, and the gradients formed in the
    # forward pass hold but for it. Anything else needs the logits once more.
    d_hidden, d_smoothing, (d_kernel, d_bias) = lax.cond(jnp.all(gradient == factor), scaled, again)
    return (
        d_hidden,
        d_kernel.astype(kernel.dtype),
        None,
        None if bias is None else d_bias.astype(bias.dtype),
        (gradient * loss).astype(weights.dtype),
        None if smoothing is None else d_smoothing.sum(),
    )


_chunked.defvjp(_chunked_forward, _chunked_backward)
