"""Recurrent networks: LSTM and GRU, as a language model and as a sequence classifier."""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxdl.api import Limits, Model
from jaxdl.errors import at_least, below_one, one_of
from jaxdl.models import ops
from jaxdl.models.layers import DTYPES, Dense, Dropout
from jaxdl.models.lm_head import SHARDING, DeferredLogits, Embedding, Head, padded_vocab

CELLS = ('lstm', 'gru')
MATRICES = ((r'^recurrent/\w+/(input|hidden)_kernel$', 0),)


def orthogonal_gates(gates: int):
    """Returns an initialiser of [dim, gates·dim]: one orthogonal matrix per gate."""
    one = nn.initializers.orthogonal()

    def init(rng, shape, dtype=jnp.float32):
        dim = shape[0]
        keys = jax.random.split(rng, gates)
        return jnp.concatenate([one(key, (dim, dim), dtype) for key in keys], axis=1)

    return init


def forget_bias(rng, shape, dtype=jnp.float32):
    """Zeros but for the LSTM's forget gate, which starts open (Jozefowicz et al. 2015)."""
    del rng
    dim = shape[0] // 4
    return jnp.zeros(shape, dtype).at[dim : 2 * dim].set(1.0)


class RecurrentLayer(nn.Module):
    """One LSTM or GRU over time in one direction, with PyTorch's gate order and equations.

    Attributes:
        width: units.
        cell: 'lstm' or 'gru'.
        reverse: read from the last step to the first.
        dtype: dtype of the computation.
    """

    width: int
    cell: str = 'lstm'
    reverse: bool = False
    dtype: str = 'float32'

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        carry=None,
        *,
        lengths: jax.Array | None = None,
        segments: jax.Array | None = None,
    ):
        """Returns (outputs [batch, time, width], the carry after the last step read).

        Args:
            x: [batch, time, features].
            carry: (hidden, cell) of an LSTM or hidden of a GRU, [batch, width]; None: zeros.
            lengths: [batch] valid steps; later ones leave the carry alone and output 0.
            segments: [batch, time] document ids; the carry becomes 0 where the id changes.
        """
        gates = 4 if self.cell == 'lstm' else 3
        dim = self.width
        w_input = self.param(
            'input_kernel', nn.initializers.lecun_normal(), (x.shape[-1], gates * dim), jnp.float32
        )
        w_hidden = self.param(
            'hidden_kernel', orthogonal_gates(gates), (dim, gates * dim), jnp.float32
        )
        # Four parts in both: a GRU's candidate has one bias inside the reset gate, one outside.
        init = forget_bias if self.cell == 'lstm' else nn.initializers.zeros
        bias = self.param('bias', init, (4 * dim,), jnp.float32)
        x = x.astype(self.dtype)
        # Whole on every device before the scan: weights split by FSDP would be put together, or
        # the activations exchanged, anew at each time step.
        w_input, w_hidden, bias = (
            with_logical_constraint(a.astype(self.dtype), (None,) * a.ndim)
            for a in (w_input, w_hidden, bias)
        )
        if carry is None:
            carry = zero_carry(self.cell, x.shape[0], dim, self.dtype)
        run: Callable = ops.lstm if self.cell == 'lstm' else ops.gru
        starts = None
        if segments is not None:
            edges = segments[:, 1:] != segments[:, :-1]
            # The first step read keeps the carry that was given.
            starts = jnp.pad(edges, ((0, 0), (0, 1) if self.reverse else (1, 0)))
        return run(x, carry, w_input, w_hidden, bias, self.reverse, lengths, starts)


def zero_carry(cell: str, batch: int, dim: int, dtype: str):
    """Returns the carry that a sequence starts from."""
    zeros = jnp.zeros((batch, dim), dtype)
    return (zeros, zeros) if cell == 'lstm' else zeros


class Recurrent(nn.Module):
    """A stack of recurrent layers with dropout between them.

    Attributes:
        cell: 'lstm' or 'gru'.
        width: units of a layer, in each direction.
        layers: layers.
        bidirectional: also read backwards; outputs are both directions side by side.
        dropout: rate between layers, in [0, 1).
        dtype: dtype of the computation.
    """

    cell: str = 'lstm'
    width: int = 512
    layers: int = 2
    bidirectional: bool = False
    dropout: float = 0.0
    dtype: str = 'float32'

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        carries: tuple | None = None,
        *,
        lengths: jax.Array | None = None,
        segments: jax.Array | None = None,
        train: bool,
    ):
        """Returns (outputs [batch, time, directions·width], carries), one carry per layer and direction."""
        after = []
        directions = (False, True) if self.bidirectional else (False,)
        for i in range(self.layers):
            if i:
                x = Dropout(self.dropout)(x, train=train)
            outputs = []
            for reverse in directions:
                layer = RecurrentLayer(
                    self.width,
                    cell=self.cell,
                    reverse=reverse,
                    dtype=self.dtype,
                    name=f'backward_{i}' if reverse else f'forward_{i}',
                )
                carry = None if carries is None else carries[len(after)]
                output, carry = layer(x, carry, lengths=lengths, segments=segments)
                outputs.append(output)
                after.append(carry)
            x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
            x = with_logical_constraint(x, ('batch', 'length', 'embed'))
        return x, tuple(after)


class RnnCache(flax.struct.PyTreeNode):
    """What a recurrent language model remembers of the tokens it has read: its carries."""

    carries: tuple

    def take(self, rows: jax.Array) -> 'RnnCache':
        """Keeps the batch rows `rows` [new batch], in that order; they may repeat."""
        return RnnCache(jax.tree.map(lambda x: x[rows], self.carries))


class RnnLM(Model, nn.Module):
    """A recurrent language model.

    A training sequence starts from the zero carry, and again wherever the segment changes, so a
    batch depends on nothing but itself. A carry lives on through `cache`.

    Attributes:
        vocab: number of tokens.
        vocab_multiple: embedding and head get `vocab` rounded up to this; padding never counts.
        cell: 'lstm' or 'gru'.
        width: units of a layer and channels of the embedding.
        layers: layers.
        tied: the head uses the embedding table.
        dropout: rate on embeddings, between layers and before the head, in [0, 1).
        head_chunks: 0: return logits; n: return DeferredLogits with the loss in n parts.
        dtype: dtype of the computation, 'float32' or 'bfloat16'.
    """

    scalars: ClassVar[tuple[str, ...]] = ('dropout',)
    sharding: ClassVar[tuple] = SHARDING
    splits: ClassVar[tuple[str, ...]] = ('tensor',)
    matrices: ClassVar[tuple] = MATRICES

    vocab: int = 256
    vocab_multiple: int = 1
    cell: str = 'lstm'
    width: int = 512
    layers: int = 2
    tied: bool = False
    dropout: float = 0.0
    head_chunks: int = 0
    dtype: str = 'float32'

    def limits(self) -> Limits:
        return Limits(vocab=self.vocab)

    def check(self):
        at_least(self, vocab=1, vocab_multiple=1, head_chunks=0)
        check_rnn(self)

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        *,
        train: bool,
        cache: RnnCache | None = None,
    ) -> jax.Array | DeferredLogits | tuple[jax.Array, RnnCache]:
        """Predicts token t + 1 from `tokens` [batch, time] 0..t.

        Args:
            tokens: [batch, time] int32.
            segments: [batch, time] document ids, 0 for padding; the carry starts anew with each.
            positions: unused; there for models that need them.
            train: whether dropout is on.
            cache: from init_cache or an earlier call: these tokens continue those in it.

        Returns:
            float32 logits [batch, time, vocab] or DeferredLogits; with a cache, the pair
            (logits [batch, vocab] of the last token, cache).
        """
        del positions
        rows = padded_vocab(self.vocab, self.vocab_multiple)
        std = self.width**-0.5 if self.tied else 1.0
        table = Embedding(rows, self.width, std=std, dtype=self.dtype, name='embed')
        x = Dropout(self.dropout)(table(tokens), train=train)
        x, carries = Recurrent(
            cell=self.cell,
            width=self.width,
            layers=self.layers,
            dropout=self.dropout,
            dtype=self.dtype,
            name='recurrent',
        )(x, None if cache is None else cache.carries, segments=segments, train=train)
        x = Dropout(self.dropout)(x, train=train)
        head = Head(
            self.vocab,
            multiple=self.vocab_multiple,
            bias=True,
            chunks=self.head_chunks,
            name='head',
        )
        kernel = table.embedding if self.tied else None
        if cache is not None:
            return head(x[:, -1:], kernel).logits()[:, 0], RnnCache(carries)
        out = head(x, kernel)
        return out if self.head_chunks else out.logits()

    def init_cache(self, batch: int, length: int) -> RnnCache:
        """Returns the cache before the first token, for `batch` rows; `length` is unlimited here."""
        del length
        carry = zero_carry(self.cell, batch, self.width, self.dtype)
        return RnnCache(tuple(carry for _ in range(self.layers)))


class RnnClassifier(Model, nn.Module):
    """Classifies a token sequence by a recurrent network and a pooling over time.

    Attributes:
        num_classes: number of classes.
        vocab: number of tokens.
        cell: 'lstm' or 'gru'.
        embed_width: channels of the embedding.
        width: units of a layer, in each direction.
        layers: layers.
        bidirectional: also read backwards.
        pooling: 'mean' or 'max' over valid steps, or 'last': the final hidden states.
        dropout: rate on embeddings, between layers and before the head, in [0, 1).
        dtype: dtype of the computation, 'float32' or 'bfloat16'.
    """

    scalars: ClassVar[tuple[str, ...]] = ('dropout',)
    sharding: ClassVar[tuple] = SHARDING
    splits: ClassVar[tuple[str, ...]] = ('tensor',)
    matrices: ClassVar[tuple] = MATRICES

    num_classes: int = 2
    vocab: int = 256
    cell: str = 'lstm'
    embed_width: int = 128
    width: int = 128
    layers: int = 1
    bidirectional: bool = True
    pooling: str = 'mean'
    dropout: float = 0.0
    dtype: str = 'float32'

    def limits(self) -> Limits:
        return Limits(vocab=self.vocab, classes=self.num_classes)

    def check(self):
        at_least(self, num_classes=1, vocab=1, embed_width=1)
        one_of(self, pooling=('mean', 'max', 'last'))
        check_rnn(self)

    @nn.compact
    def __call__(
        self, tokens: jax.Array, segments: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Returns float32 logits [batch, classes] of `tokens` [batch, time].

        `segments` [batch, time] is above 0 on a row's tokens and 0 on the padding that follows them.
        """
        batch, time = tokens.shape
        lengths = None if segments is None else (segments > 0).sum(axis=1)
        x = Embedding(self.vocab, self.embed_width, std=1.0, dtype=self.dtype, name='embed')(tokens)
        x = Dropout(self.dropout)(x, train=train)
        x, carries = Recurrent(
            cell=self.cell,
            width=self.width,
            layers=self.layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            dtype=self.dtype,
            name='recurrent',
        )(x, lengths=lengths, train=train)
        x = x.astype(jnp.float32)
        valid = jnp.ones((batch, time, 1), bool) if segments is None else segments[..., None] > 0
        if self.pooling == 'mean':
            pooled = jnp.where(valid, x, 0).sum(1) / jnp.maximum(valid.sum(1), 1)
        elif self.pooling == 'max':
            # A row with no token at all pools to 0 rather than to minus infinity.
            pooled = jnp.where(valid, x, -jnp.inf).max(1)
            pooled = jnp.where(valid.any(1), pooled, 0)
        else:
            last = carries[-2:] if self.bidirectional else carries[-1:]
            hidden = [carry[0] if self.cell == 'lstm' else carry for carry in last]
            pooled = jnp.concatenate(hidden, axis=-1)
        pooled = Dropout(self.dropout)(pooled.astype(self.dtype), train=train)
        return Dense(self.num_classes, dtype=self.dtype, name='head')(pooled).astype(jnp.float32)


def check_rnn(model) -> None:
    """Raises ValueError for wrong fields that both recurrent models have."""
    at_least(model, width=1, layers=1)
    one_of(model, cell=CELLS, dtype=DTYPES)
    below_one(model, 'dropout')
