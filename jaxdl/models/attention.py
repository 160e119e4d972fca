"""The parts every Transformer here is made of: norms, positions, attention and the MLP."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jax.ad_checkpoint import checkpoint_name

from jaxdl.models import context, layout, ops, tensor
from jaxdl.models.layers import Dense

ACTIVATIONS = {
    'gelu': lambda x: ops.gelu(x, approximate=False),
    'gelu_tanh': lambda x: ops.gelu(x, approximate=True),
    'relu': jax.nn.relu,
    'swiglu': jax.nn.silu,
    'geglu': lambda x: ops.gelu(x, approximate=True),
}
GATED = ('swiglu', 'geglu')


def normal_init(std: float, fan_in: int):
    """Returns a normal initialiser of deviation `std`; 0 means 1/sqrt(`fan_in`)."""
    return nn.initializers.normal(std or fan_in**-0.5)


class LayerNorm(nn.Module):
    """Layer normalisation in float32 (Ba et al. 2016, arXiv:1607.06450).

    Attributes:
        epsilon: added to the variance.
        use_bias: learn a shift as well as a scale.
        dtype: dtype of the result.
    """

    epsilon: float = 1e-6
    use_bias: bool = True
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (width,), jnp.float32)
        bias = None
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros, (width,), jnp.float32)
        return ops.norm(x, scale, bias, epsilon=self.epsilon, centred=True, dtype=self.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32 (Zhang and Sennrich 2019, arXiv:1910.07467).

    Attributes:
        epsilon: added to the mean square.
        dtype: dtype of the result.
    """

    epsilon: float = 1e-6
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return ops.norm(x, scale, None, epsilon=self.epsilon, centred=False, dtype=self.dtype)


def make_norm(kind: str, *, epsilon: float, use_bias: bool, dtype: str, name: str) -> nn.Module:
    """Returns the norm called `kind`: 'layer' or 'rms'."""
    if kind == 'rms':
        return RMSNorm(epsilon=epsilon, dtype=dtype, name=name)
    return LayerNorm(epsilon=epsilon, use_bias=use_bias, dtype=dtype, name=name)


def segment_positions(segments: jax.Array) -> jax.Array:
    """Returns [batch, time] positions that start again at 0 with every run of equal segment ids."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    previous = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    starts = jnp.where(segments != previous, index, 0)
    return index - jax.lax.cummax(starts, axis=1)


def sinusoidal(positions: jax.Array, width: int) -> jax.Array:
    """Returns the float32 sines and cosines [..., width] of Vaswani et al. 2017 (section 3.5)."""
    half = width // 2
    rates = jnp.exp(-jnp.log(10000.0) / max(half, 1) * jnp.arange(half, dtype=jnp.float32))
    angles = positions[..., None].astype(jnp.float32) * rates
    out = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(out, [(0, 0)] * (out.ndim - 1) + [(0, width - 2 * half)])


def rotary(x: jax.Array, positions: jax.Array, base: float = 10000.0) -> jax.Array:
    """Rotates halves of x [batch, time, heads, head_dim] by position (Su et al., arXiv:2104.09864).

    The first half of a head is paired with the second, as in GPT-NeoX and Llama.
    """
    half = x.shape[-1] // 2
    rates = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * rates
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    out = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return out.astype(x.dtype)


class KeyValues(flax.struct.PyTreeNode):
    """One attention layer's past, [batch, slots, kv_heads, head_dim] each (layers first if stacked)."""

    keys: jax.Array
    values: jax.Array

    def take(self, rows: jax.Array) -> 'KeyValues':
        """Keeps the batch rows `rows`, in that order."""
        # Counted from the end, so that one line serves stacked and single layers.
        return jax.tree.map(lambda x: jnp.take(x, rows, axis=-4), self)


class Routing(flax.struct.PyTreeNode):
    """Who may attend to whom, the same for every layer of a stack.

    Attributes:
        positions: [batch, time] positions for rotary embeddings.
        segments: [batch, time] segment ids, or None where every token sees every other.
        visible: [batch, 1, time, slots] mask over a key–value cache, with a cache only.
        slot: index of the first cache slot to write, with a cache only.
        context: [batch, source time, width] what cross attention reads; None reads its cache.
        context_segments: [batch, source time] segment ids of the context.
        told: [batch, width] what modulated blocks are told about each row.
    """

    positions: jax.Array | None = None
    segments: jax.Array | None = None
    visible: jax.Array | None = None
    slot: jax.Array | None = None
    context: jax.Array | None = None
    context_segments: jax.Array | None = None
    told: jax.Array | None = None


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) with optional grouped queries and rotary positions.

    The softmax is float32 and its probabilities are never dropped, so that fused kernels apply.

    Attributes:
        heads: query heads.
        kv_heads: key and value heads, a divisor of `heads`.
        head_dim: channels of one head.
        bias: learn a bias in the four projections.
        qk_norm: normalise queries and keys by RMS before the product (arXiv:2302.05442).
        rotary_base: base of the rotary rates; 0 for no rotary positions.
        causal: a token sees itself and earlier tokens only.
        cross: keys and values come from `routing.context`.
        norm_epsilon: epsilon of the query and key norms.
        std: deviation of the input projections' initialisation; 0 for 1/sqrt(fan in).
        out_std: the same of the output projection.
        dtype: dtype of the computation.
    """

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = True
    qk_norm: bool = False
    rotary_base: float = 0.0
    causal: bool = False
    cross: bool = False
    norm_epsilon: float = 1e-6
    std: float = 0.0
    out_std: float = 0.0
    dtype: str = 'float32'

    @nn.compact
    def __call__(
        self, x: jax.Array, routing: Routing, cache: KeyValues | None = None
    ) -> tuple[jax.Array, KeyValues | None]:
        """Returns ([batch, time, width], the cache with these tokens added)."""
        width = x.shape[-1]

        def dense(name: str, heads: int, inputs: jax.Array) -> Dense:
            return Dense(
                heads * self.head_dim,
                use_bias=self.bias,
                kernel_init=normal_init(self.std, inputs.shape[-1]),
                dtype=self.dtype,
                name=name,
            )

        def by_head(out: jax.Array) -> jax.Array:
            out = out.reshape(*out.shape[:-1], -1, self.head_dim)
            # Fewer heads than devices (of grouped queries): every device has them all.
            out = checkpoint_name(out, 'projections')
            even = out.shape[-2] % layout.ways(layout.axes('heads')[0]) == 0
            return with_logical_constraint(out, ('batch', 'inner', 'heads' if even else None, 'kv'))

        source = routing.context if self.cross else x
        wanted = [dense('query', self.heads, x)]
        if source is not None:
            wanted += [dense(name, self.kv_heads, source) for name in ('key', 'value')]
        if source is x:
            query, key, value = map(by_head, tensor.columns(x, wanted, 'heads'))
        else:
            query = by_head(wanted[0](x))
            if source is not None:
                key, value = map(by_head, tensor.columns(source, wanted[1:], 'heads'))
            else:
                assert cache is not None
                key, value = cache.keys, cache.values
        if self.qk_norm:
            query = RMSNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name='query_norm')(query)
            if source is not None:
                key = RMSNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name='key_norm')(key)
        if self.rotary_base and not self.cross:
            assert routing.positions is not None
            query = rotary(query, routing.positions, self.rotary_base)
            key = rotary(key, routing.positions, self.rotary_base)

        whole = cache is not None or self.is_initializing() or not context.is_split()
        if self.cross:
            if cache is not None:
                cache = KeyValues(key.astype(cache.keys.dtype), value.astype(cache.values.dtype))
            if whole:
                mask = cross_mask(routing, query.shape[1], key.shape[1])
                out = ops.attention(query, key, value, mask=mask)
            else:
                segments = cross_segments(routing, query)
                out = context.attention(
                    query, key, value, q_segments=segments[0], kv_segments=segments[1]
                )
        elif cache is not None:
            assert routing.slot is not None
            at = (0, routing.slot, 0, 0)
            cache = KeyValues(
                jax.lax.dynamic_update_slice(cache.keys, key.astype(cache.keys.dtype), at),
                jax.lax.dynamic_update_slice(cache.values, value.astype(cache.values.dtype), at),
            )
            out = ops.attention(query, cache.keys, cache.values, mask=routing.visible)
        else:
            attend = ops.attention if whole else context.attention
            out = attend(
                query,
                key,
                value,
                causal=self.causal,
                q_segments=routing.segments,
                kv_segments=routing.segments,
            )
        out = checkpoint_name(out, 'attention')
        out = out.reshape(*out.shape[:-2], self.heads * self.head_dim)
        last = Dense(
            width,
            use_bias=self.bias,
            kernel_init=normal_init(self.out_std, out.shape[-1]),
            dtype=self.dtype,
            name='out',
        )
        out = tensor.rows(out, last, 'heads')
        return with_logical_constraint(out, ('batch', 'length', 'embed')), cache


def cross_mask(routing: Routing, time: int, source_time: int) -> jax.Array | None:
    """Returns the [batch, 1, time, source time] mask of cross attention, or None to see it all.

    A target segment reads the source segment of the same number, so packed pairs stay apart.
    """
    if routing.context_segments is None:
        return None
    source = routing.context_segments[:, None, None, :]
    if routing.segments is None:
        return jnp.broadcast_to(source > 0, (source.shape[0], 1, time, source_time))
    return routing.segments[:, None, :, None] == source


def cross_segments(routing: Routing, query: jax.Array) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns the segments of queries and context whose equality is `cross_mask`."""
    if routing.context_segments is None:
        return None, None
    if routing.segments is None:
        here = (routing.context_segments > 0).astype(jnp.int32)
        return jnp.ones(query.shape[:2], jnp.int32), here
    return routing.segments, routing.context_segments


class Mlp(nn.Module):
    """The position-wise network of a block, plain or gated (Shazeer 2020, arXiv:2002.05202).

    Attributes:
        width: hidden units.
        activation: 'gelu' (exact), 'gelu_tanh', 'relu', or gated 'swiglu', 'geglu'.
        bias: learn biases.
        std: deviation of the input kernels' initialisation; 0 for 1/sqrt(fan in).
        out_std: the same of the output kernel.
        dtype: dtype of the computation.
    """

    width: int
    activation: str = 'gelu'
    bias: bool = True
    std: float = 0.0
    out_std: float = 0.0
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(name: str, inputs: int, features: int, std: float) -> Dense:
            return Dense(
                features,
                use_bias=self.bias,
                kernel_init=normal_init(std, inputs),
                dtype=self.dtype,
                name=name,
            )

        act, size = ACTIVATIONS[self.activation], x.shape[-1]
        names = ('gate', 'up') if self.activation in GATED else ('up',)
        pairs = tensor.products(
            x, [dense(name, size, self.width, self.std) for name in names], 'mlp'
        )

        def gated(pairs):
            first, *other = (y if bias is None else ops.add_bias(y, bias) for y, bias in pairs)
            # In float32: in half precision each operation would round, and be a pass of its own.
            out = act(first.astype(jnp.float32))
            return (out * other[0] if other else out).astype(self.dtype)

        # With the biases, so that a product is kept and its sum with the bias is not written.
        hidden = ops.recompute(gated)(pairs)
        hidden = with_logical_constraint(hidden, ('batch', 'inner', 'mlp'))
        hidden = checkpoint_name(hidden, 'mlp')
        out = tensor.rows(hidden, dense('down', self.width, size, self.out_std), 'mlp')
        return with_logical_constraint(out, ('batch', 'length', 'embed'))
