"""The encoder–decoder Transformer of Vaswani et al. 2017 (arXiv:1706.03762), for translation."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.models.layers import Dropout
from jaxdl.models.lm_head import DeferredLogits, Head
from jaxdl.models.stack import Cache, Stack
from jaxdl.models.transformer import TokenInput, TokenTransformer, enter


class Seq2Seq(TokenTransformer):
    """Maps a source sequence to a target sequence; one vocabulary and one table serve both and the head.

    The defaults are the paper's base model. `pre_norm=True` trains without a long warm-up.

    Attributes:
        layers: blocks of the encoder.
        decoder_layers: blocks of the decoder; 0: `layers`.
        scale_embedding: multiply token vectors by sqrt(width).
        softcap: logits x become softcap·tanh(x / softcap); 0: off.
        head_chunks: 0: return logits; n: return DeferredLogits with the loss in n parts, for large vocabularies.
    """

    width: int = 512
    heads: int = 8
    activation: str = 'relu'
    norm_epsilon: float = 1e-6
    pre_norm: bool = False
    positions: str = 'sinusoidal'
    dropout: float = 0.1
    decoder_layers: int = 0
    vocab: int = 37000
    scale_embedding: bool = True
    softcap: float = 0.0
    head_chunks: int = 0

    @nn.compact
    def __call__(
        self,
        source: jax.Array | None,
        target: jax.Array,
        source_segments: jax.Array | None = None,
        target_segments: jax.Array | None = None,
        source_positions: jax.Array | None = None,
        target_positions: jax.Array | None = None,
        *,
        train: bool,
        cache: Cache | None = None,
    ) -> jax.Array | DeferredLogits | tuple[jax.Array, Cache]:
        """Predicts target token t + 1 from the whole source and `target` tokens 0..t.

        Args:
            source: [batch, source time] int32; None continues a cache that has read the source.
            target: [batch, time] int32, beginning with the begin token.
            source_segments: [batch, source time] pair ids, 0 for padding.
            target_segments: [batch, time] pair ids; a target segment reads the source segment of
                the same id only.
            source_positions: [batch, source time]; default: they start again with each segment.
            target_positions: the same for the target.
            train: whether dropout is on.
            cache: from init_cache or an earlier call: these target tokens continue those in it.

        Returns:
            float32 logits [batch, time, vocab] or DeferredLogits; with a cache, the pair
            (logits [batch, vocab] of the last token, cache).
        """
        shape = self.shape(train)
        inputs = TokenInput(
            vocab=self.vocab,
            vocab_multiple=self.vocab_multiple,
            max_length=self.max_length,
            scale_embedding=self.scale_embedding,
            name='embed',
            **shape,
        )
        context = None
        if source is not None:
            routing, _ = enter(None, source, source_segments, source_positions)
            x = Dropout(shape['dropout'])(inputs(source, routing), train=train)
            context, _ = Stack(name='encoder', **shape)(x, routing)
            if cache is not None:
                known = jnp.ones_like(source) if source_segments is None else source_segments
                cache = cache.replace(context_segments=(known > 0).astype(jnp.int32))
        routing, entered = enter(cache, target, target_segments, target_positions)
        if cache is not None:
            source_segments = cache.context_segments
        routing = routing.replace(context=context, context_segments=source_segments)
        x = Dropout(shape['dropout'])(inputs(target, routing), train=train)
        shape['layers'] = self.decoder_layers or self.layers
        x, cache = Stack(causal=True, cross=True, name='decoder', **shape)(x, routing, entered)
        head = Head(
            self.vocab,
            multiple=self.vocab_multiple,
            softcap=self.softcap,
            chunks=self.head_chunks,
            name='head',
        )
        if cache is not None:
            return head(x[:, -1:], inputs.table).logits()[:, 0], cache
        out = head(x, inputs.table)
        return out if self.head_chunks else out.logits()

    def init_cache(self, batch: int, length: int, source_length: int) -> Cache:
        """Returns an empty cache for `length` target tokens and sources of `source_length`."""
        decoder = dataclasses.replace(self, layers=self.decoder_layers or self.layers)
        return Cache.zeros(decoder, batch, length, source=source_length)


def base(**changes) -> Seq2Seq:
    """Returns the base model of the paper: 65 million parameters with 37,000 tokens."""
    return Seq2Seq(**{'head_chunks': 8, **changes})


def big(**changes) -> Seq2Seq:
    """Returns the big model of the paper: 213 million parameters with 37,000 tokens."""
    fields = dict(width=1024, heads=16, dropout=0.3, head_chunks=8)
    return Seq2Seq(**{**fields, **changes})
