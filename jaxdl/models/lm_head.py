"""Both ends of a language model: the embedding table and the layer that predicts tokens."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxdl.api import Predictions
from jaxdl.models import layout, ops

# Where tables and heads live: (pattern of the path, mesh axes of each dimension). The tensor axis
# splits the vocabulary.
SHARDING = (
    (r'(^|/)(tokens|embed)/embedding$', ('tensor', 'fsdp')),
    (r'(^|/)head/kernel$', ('fsdp', 'tensor')),
    (r'(^|/)head/bias$', ('tensor',)),
)

# Far below any logit, and finite: the gradient of an infinite one would be nan.
HIDDEN_LOGIT = -1e30


def padded_vocab(vocab: int, multiple: int) -> int:
    """Returns `vocab` rounded up to a multiple; aligned matrix products are faster on GPUs."""
    return -(-vocab // multiple) * multiple


class Embedding(nn.Module):
    """A float32 table of vectors looked up by id; its rows may also serve as the output layer.

    Attributes:
        rows: number of ids.
        width: length of a vector.
        std: deviation of the normal initialisation.
        dtype: dtype of the vectors returned.
        logical: the rows' name in sharding rules; '': every device looks up all of them.
    """

    rows: int
    width: int
    std: float = 0.02
    dtype: str = 'float32'
    logical: str = 'vocab'

    def setup(self):
        self.embedding = self.param(
            'embedding', nn.initializers.normal(self.std), (self.rows, self.width), jnp.float32
        )

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Returns the vectors [..., width] of `ids` [...]."""
        # Where the width is spread to save memory the table is gathered, not the vectors exchanged.
        if self.logical:
            table = gathered(self.embedding)
        else:
            table = with_logical_constraint(self.embedding, (None, 'embed'))
        return jnp.take(table, ids, axis=0).astype(self.dtype)


def gathered(table: jax.Array) -> jax.Array:
    """The table [rows, width] as products and look-ups want it: its width whole on every device.

    Its rows stay split as the vocabulary is, where that divides them.
    """
    even = table.shape[0] % layout.ways(layout.axes('vocab')[0]) == 0
    return with_logical_constraint(table, ('vocab' if even else None, 'embed'))


class DeferredLogits(flax.struct.PyTreeNode, Predictions):
    """Predictions over a large vocabulary, kept as the product that would give the logits.

    Attributes:
        hidden: [batch, time, width].
        kernel: [width, padded vocab] float32.
        bias: [padded vocab] or None.
        next_sentence: [batch, 2] logits of BERT's second objective, or None.
        vocab: number of real tokens; columns past it never count.
        softcap: logits x become softcap·tanh(x / softcap); 0 for none.
        chunks: parts the loss is computed in; 0 lets the operation choose.
    """

    hidden: jax.Array
    kernel: jax.Array
    bias: jax.Array | None = None
    next_sentence: jax.Array | None = None
    vocab: int = flax.struct.field(pytree_node=False, default=0)
    softcap: float = flax.struct.field(pytree_node=False, default=0.0)
    chunks: int = flax.struct.field(pytree_node=False, default=0)

    def logits(self) -> jax.Array:
        """Returns float32 logits [batch, time, vocab]."""
        out = ops.matmul(self.hidden, self.kernel.astype(self.hidden.dtype)).astype(jnp.float32)
        if self.bias is not None:
            out = out + self.bias
        if self.softcap:
            out = self.softcap * jnp.tanh(out / self.softcap)
        return with_logical_constraint(out[..., : self.vocab], ('batch', 'length', 'vocab'))

    def at(self, places: jax.Array) -> 'DeferredLogits':
        """The predictions at `places` [batch, places] alone."""
        return self.replace(hidden=jnp.take_along_axis(self.hidden, places[..., None], axis=1))

    def cross_entropy(
        self, labels: jax.Array, label_smoothing=0.0, weights: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (float32 loss, most likely token), both [batch, time], for `labels` [batch, time].

        `weights` [batch, time] multiply the losses; given here they save work in the backward pass.
        """
        kernel, bias = with_logical_constraint(self.kernel, ('embed', 'vocab')), self.bias
        if kernel.shape[1] > self.vocab:
            smooth = not (isinstance(label_smoothing, (int, float)) and label_smoothing == 0)
            if smooth or self.softcap:
                # Smoothing averages all logits and the cap lifts a hidden one: cut the padding off.
                kernel = kernel[:, : self.vocab]
                bias = None if bias is None else bias[: self.vocab]
            else:
                bias = jnp.zeros(kernel.shape[1]) if bias is None else bias
                bias = jnp.where(jnp.arange(kernel.shape[1]) < self.vocab, bias, HIDDEN_LOGIT)
        return ops.chunked_cross_entropy(
            self.hidden,
            kernel,
            labels,
            bias=bias,
            softcap=self.softcap or None,
            label_smoothing=label_smoothing,
            chunks=self.chunks or None,
            weights=weights,
        )


class Head(nn.Module):
    """Turns hidden states [batch, time, width] into predictions over the vocabulary.

    Attributes:
        vocab: number of tokens.
        multiple: the kernel has `vocab` columns rounded up to this.
        bias: learn a bias per token.
        softcap: see DeferredLogits.
        chunks: parts the loss is computed in; 0 lets the operation choose.
        std: deviation of the kernel's initialisation; 0 for 1/sqrt(width).
    """

    vocab: int
    multiple: int = 1
    bias: bool = False
    softcap: float = 0.0
    chunks: int = 0
    std: float = 0.0

    @nn.compact
    def __call__(self, hidden: jax.Array, embedding: jax.Array | None = None) -> DeferredLogits:
        """Uses the table `embedding` [padded vocab, width] as kernel if given (tied weights)."""
        width, columns = hidden.shape[-1], padded_vocab(self.vocab, self.multiple)
        hidden = with_logical_constraint(hidden, ('batch', 'inner', 'embed'))
        if embedding is None:
            init = nn.initializers.normal(self.std or width**-0.5)
            kernel = self.param('kernel', init, (width, columns), jnp.float32)
        else:
            kernel = gathered(embedding).T
        bias = None
        if self.bias:
            bias = self.param('bias', nn.initializers.zeros, (columns,), jnp.float32)
        return DeferredLogits(
            hidden, kernel, bias, vocab=self.vocab, softcap=self.softcap, chunks=self.chunks
        )
