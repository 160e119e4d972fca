"""The decoder language model: GPT-2's architecture and its modern variants."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxdl.api import Limits
from jaxdl.errors import at_least
from jaxdl.models.attention import Routing, segment_positions, sinusoidal
from jaxdl.models.layers import Dropout
from jaxdl.models.lm_head import DeferredLogits, Embedding, Head, padded_vocab
from jaxdl.models.stack import Cache, Stack, Transformer


class TokenTransformer(Transformer):
    """A Transformer that reads tokens.

    Attributes:
        vocab: number of tokens.
        vocab_multiple: embedding and head get `vocab` rounded up to this; padding never counts.
        max_length: longest sequence of learned positions.
    """

    vocab: int = 256
    vocab_multiple: int = 1
    max_length: int = 1024

    def limits(self) -> Limits:
        return Limits(
            vocab=self.vocab, length=self.max_length if self.positions == 'learned' else None
        )

    def check(self):
        super().check()
        at_least(self, vocab=1, vocab_multiple=1, max_length=1)
        of_some = ('softcap', 'head_chunks', 'decoder_layers')
        at_least(self, **{name: 0 for name in of_some if hasattr(self, name)})


class TokenInput(TokenTransformer):
    """Token embeddings plus positions: what enters a stack.

    Attributes:
        scale_embedding: multiply token vectors by sqrt(width), as in Vaswani et al. 2017.
    """

    scale_embedding: bool = False

    def setup(self):
        std = self.width**-0.5 if self.scale_embedding else self.init_std or 0.02
        self.tokens = Embedding(
            padded_vocab(self.vocab, self.vocab_multiple), self.width, std=std, dtype='float32'
        )
        if self.positions == 'learned':
            self.places = Embedding(
                self.max_length, self.width, std=std, dtype='float32', logical=''
            )

    def __call__(self, tokens: jax.Array, routing: Routing) -> jax.Array:
        """Returns the vectors [batch, time, width] of `tokens` at the positions of `routing`."""
        positions = routing.positions
        assert positions is not None
        if self.positions == 'learned' and tokens.shape[1] > self.max_length:
            raise ValueError(
                f'{tokens.shape[1]} tokens, but max_length={self.max_length} of the learned '
                'positions; use a larger max_length or shorter sequences'
            )
        x = self.tokens(tokens)
        if self.scale_embedding:
            x = x * self.width**0.5
        if self.positions == 'learned':
            x = x + self.places(positions)
        elif self.positions == 'sinusoidal':
            x = x + sinusoidal(positions, self.width)
        return with_logical_constraint(x.astype(self.dtype), ('batch', 'length', 'embed'))

    @property
    def table(self) -> jax.Array:
        """The token vectors [padded vocab, width], for a tied head."""
        return self.tokens.embedding


class TransformerLM(TokenTransformer):
    """A decoder-only language model; the defaults are GPT-2's architecture at a small size.

    Attributes:
        tied: the head uses the embedding table.
        softcap: logits x become softcap·tanh(x / softcap); 0: off.
        head_chunks: 0: return logits; n: return DeferredLogits with the loss in n parts, for large vocabularies.
    """

    tied: bool = True
    softcap: float = 0.0
    head_chunks: int = 0

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        *,
        train: bool,
        cache: Cache | None = None,
    ) -> jax.Array | DeferredLogits | tuple[jax.Array, Cache]:
        """Predicts token t + 1 from `tokens` [batch, time] 0..t.

        Args:
            tokens: [batch, time] int32.
            segments: [batch, time] document ids, 0 for padding; no token sees another document.
            positions: [batch, time]; default: they start again with each segment.
            train: whether dropout is on.
            cache: from init_cache or an earlier call: these tokens continue those in it.

        Returns:
            float32 logits [batch, time, vocab] or DeferredLogits; with a cache, the pair
            (logits [batch, vocab] of the last token, cache).
        """
        routing, entered = enter(cache, tokens, segments, positions)
        shape = self.shape(train)
        inputs = TokenInput(
            vocab=self.vocab,
            vocab_multiple=self.vocab_multiple,
            max_length=self.max_length,
            name='embed',
            **shape,
        )
        x = inputs(tokens, routing)
        x = Dropout(shape['dropout'])(x, train=train)
        x, cache = Stack(causal=True, name='decoder', **shape)(x, routing, entered)
        head = Head(
            self.vocab,
            multiple=self.vocab_multiple,
            softcap=self.softcap,
            chunks=self.head_chunks,
            std=self.init_std,
            name='head',
        )
        table = inputs.table if self.tied else None
        if cache is not None:
            return head(x[:, -1:], table).logits()[:, 0], cache
        out = head(x, table)
        return out if self.head_chunks else out.logits()

    def init_cache(self, batch: int, length: int) -> Cache:
        """Returns an empty key–value cache for `batch` rows of up to `length` tokens."""
        if self.positions == 'learned' and length > self.max_length:
            raise ValueError(
                f'{length} tokens, but max_length={self.max_length} of the learned positions; '
                'ask for fewer tokens'
            )
        return Cache.zeros(self, batch, length)


def enter(
    cache: Cache | None,
    tokens: jax.Array,
    segments: jax.Array | None,
    positions: jax.Array | None,
) -> tuple[Routing, Cache | None]:
    """Returns the routing of `tokens` [batch, time] and the cache with room for them."""
    if cache is not None:
        known = jnp.ones(tokens.shape, jnp.int32) if segments is None else segments
        cache, routing = cache.write(known)
        return routing, cache
    if positions is None and segments is not None:
        positions = segment_positions(segments)
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    return Routing(positions=positions, segments=segments), None


def gpt2(size: str = '124m', **changes) -> TransformerLM:
    """Returns GPT-2 (Radford et al. 2019) of `size` '124m', '355m', '774m' or '1558m'."""
    sizes = {
        '124m': (768, 12, 12),
        '355m': (1024, 24, 16),
        '774m': (1280, 36, 20),
        '1558m': (1600, 48, 25),
    }
    if size not in sizes:
        raise ValueError(f'size={size!r}: must be one of {", ".join(sizes)}')
    width, layers, heads = sizes[size]
    fields = dict(
        vocab=50257, width=width, layers=layers, heads=heads, init_std=0.02, head_chunks=8
    )
    return TransformerLM(**{**fields, **changes})


def modern(**changes) -> TransformerLM:
    """Returns a decoder with RMSNorm, rotary positions, SwiGLU, QK-norm and no biases."""
    fields = dict(
        norm='rms', positions='rotary', activation='swiglu', qk_norm=True, bias=False, tied=False
    )
    return TransformerLM(**{**fields, **changes})
