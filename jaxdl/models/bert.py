"""BERT (Devlin et al. 2018, arXiv:1810.04805): encoder, pre-training heads, classifier."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxdl.api import Limits
from jaxdl.errors import at_least
from jaxdl.models.attention import ACTIVATIONS, LayerNorm
from jaxdl.models.layers import Dense, Dropout
from jaxdl.models.lm_head import DeferredLogits, Embedding, Head, padded_vocab
from jaxdl.models.stack import MATRICES, Stack
from jaxdl.models.transformer import TokenTransformer, enter


class BertShape(TokenTransformer):
    """BERT's shape; the defaults are BERT-base.

    Attributes:
        token_types: kinds of token, such as first and second sentence.
    """

    matrices: ClassVar[tuple] = (
        *MATRICES,
        (r'^bert/pooler/kernel$', 0),
        (r'^transform/kernel$', 0),
    )

    width: int = 768
    layers: int = 12
    heads: int = 12
    activation: str = 'gelu'
    norm_epsilon: float = 1e-12
    pre_norm: bool = False
    dropout: float = 0.1
    init_std: float = 0.02
    vocab: int = 30522
    max_length: int = 512
    token_types: int = 2

    def check(self):
        super().check()
        at_least(self, token_types=1)
        if self.positions != 'learned' or self.norm != 'layer':
            raise ValueError(
                f"positions={self.positions!r}, norm={self.norm!r}: BERT has 'learned' and 'layer'"
            )

    def make_encoder(self, train: bool) -> 'BertEncoder':
        """Returns the encoder part of this model."""
        return BertEncoder(
            vocab=self.vocab,
            vocab_multiple=self.vocab_multiple,
            max_length=self.max_length,
            token_types=self.token_types,
            name='bert',
            **self.shape(train),
        )

    def dense(self, features: int, name: str) -> Dense:
        init = nn.initializers.normal(self.init_std)
        return Dense(features, kernel_init=init, dtype=self.dtype, name=name)


class BertEncoder(BertShape):
    """Embeddings, blocks and the pooler of the first token."""

    def setup(self):
        std = self.init_std
        self.tokens = Embedding(padded_vocab(self.vocab, self.vocab_multiple), self.width, std=std)
        self.places = Embedding(self.max_length, self.width, std=std, logical='')
        self.types = Embedding(self.token_types, self.width, std=std, logical='')
        self.embed_norm = LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype)
        self.drop = Dropout(self.dropout)
        self.encoder = Stack(**self.shape())
        self.pooler = Dense(
            self.width, kernel_init=nn.initializers.normal(self.init_std), dtype=self.dtype
        )

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None,
        token_types: jax.Array | None,
        positions: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (hidden states [batch, time, width], pooled first token [batch, width])."""
        if tokens.shape[1] > self.max_length:
            raise ValueError(
                f'{tokens.shape[1]} tokens, but max_length={self.max_length}; '
                'use a larger max_length or shorter sequences'
            )
        routing, _ = enter(None, tokens, segments, positions)
        assert routing.positions is not None
        kinds = jnp.zeros_like(tokens) if token_types is None else token_types
        x = self.tokens(tokens) + self.places(routing.positions) + self.types(kinds)
        x = self.drop(self.embed_norm(x), train=True)
        x = with_logical_constraint(x, ('batch', 'length', 'embed'))
        x, _ = self.encoder(x, routing)
        return x, jnp.tanh(self.pooler(x[:, 0]))

    @property
    def table(self) -> jax.Array:
        return self.tokens.embedding


class Bert(BertShape):
    """BERT with its two pre-training heads; the defaults are BERT-base.

    Attributes:
        head_chunks: parts in which the loss over the vocabulary is computed; 0 lets it choose.
    """

    head_chunks: int = 0

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        *,
        train: bool,
    ) -> DeferredLogits:
        """Predicts hidden tokens and whether two sentences follow each other.

        Args:
            tokens: [batch, time] int32, some of them replaced by the mask token.
            segments: [batch, time] document ids, 0 for padding; no token sees another document.
            positions: [batch, time]; default: they start again with each segment.
            token_types: [batch, time] in [0, token_types); default: all 0.
            train: whether dropout is on.

        Returns:
            DeferredLogits over [batch, time] with `next_sentence` logits; keep only the `hidden` of
            the places asked for before taking its loss, for the head costs as much as several blocks.
        """
        bert = self.make_encoder(train)
        x, pooled = bert(tokens, segments, token_types, positions)
        x = ACTIVATIONS[self.activation](self.dense(self.width, 'transform')(x))
        x = LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name='transform_norm')(x)
        head = Head(
            self.vocab,
            multiple=self.vocab_multiple,
            bias=True,
            chunks=self.head_chunks,
            name='head',
        )
        pair = self.dense(2, 'next_sentence')(pooled).astype(jnp.float32)
        return head(x, bert.table).replace(next_sentence=pair)


class BertClassifier(BertShape):
    """BERT with a linear classifier on the pooled first token, for fine-tuning.

    Attributes:
        num_classes: number of classes.
    """

    num_classes: int = 2

    def limits(self) -> Limits:
        return dataclasses.replace(super().limits(), classes=self.num_classes)

    def check(self):
        super().check()
        at_least(self, num_classes=1)

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """Returns float32 logits [batch, classes]; the inputs are those of Bert."""
        _, pooled = self.make_encoder(train)(tokens, segments, token_types, positions)
        pooled = Dropout(self.dropout)(pooled, train=train)
        return self.dense(self.num_classes, 'head')(pooled).astype(jnp.float32)


def bert_base(**changes) -> Bert:
    """Returns BERT-base: 110 million parameters."""
    return Bert(**changes)


def bert_large(**changes) -> Bert:
    """Returns BERT-large: 336 million parameters."""
    return Bert(**{**dict(width=1024, layers=24, heads=16), **changes})


def bert_tiny(**changes) -> Bert:
    """Returns BERT-tiny of Turc et al. 2019 (arXiv:1908.08962): 2 layers of width 128."""
    return Bert(**{**dict(width=128, layers=2, heads=2), **changes})
