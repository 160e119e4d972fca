"""The Transformer: one block and one stack of blocks, shared by every model, and what a decoder remembers."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Optional

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxdl.api import Model
from jaxdl.errors import at_least, below_one, one_of
from jaxdl.models import attention, layout, lm_head, pipeline
from jaxdl.models.attention import Attention, KeyValues, Mlp, Routing, make_norm
from jaxdl.models.layers import DTYPES, Dense, Dropout

REMAT = {
    # Keeps the products with weights, which are dear, and recomputes attention and the rest.
    'dots': jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names('product'),
    ),
    'full': jax.checkpoint_policies.nothing_saveable,
}


# What Attention and Mlp call their values, for 'save:NAMES'.
SAVED = ('projections', 'attention', 'mlp')


def remat_policy(name: str) -> Callable | None:
    """Returns which values a checkpointed block keeps; None for 'none'.

    Raises:
        ValueError: there is no such policy, or it names values that there are not.
    """
    if name == 'none':
        return None
    if name in REMAT:
        return REMAT[name]
    kind, _, names = name.partition(':')
    wanted = tuple(names.split(','))
    if kind != 'save' or not set(wanted) <= set(SAVED):
        allowed = ', '.join(('none', *REMAT, f'save:NAMES (of {", ".join(SAVED)})'))
        raise ValueError(f'remat={name!r}: must be one of {allowed}')
    return jax.checkpoint_policies.save_only_these_names(*wanted)


# Where the parameters of blocks live: (pattern of the path, mesh axes of each dimension). After
# Shoeybi et al. 2019 (arXiv:1909.08053) the tensor axis splits the first product of attention and
# of the MLP by its outputs and the second by its inputs: one sum over devices for the two.
BLOCK = (
    (r'(query|key|value|gate|up)/kernel$', ('fsdp', 'tensor')),
    (r'((attention|cross)/out|mlp/down)/kernel$', ('tensor', 'fsdp')),
    (r'(query|key|value|gate|up)/bias$', ('tensor',)),
    (r'_modulation/kernel$', ('fsdp', None)),
    (r'(bias|scale)$', (None,)),
)
SHARDING = (
    *((rf'/layers/(.*/)?{pattern}', ('pipe', *axes)) for pattern, axes in BLOCK),
    *((rf'/layer_\d+/(.*/)?{pattern}', axes) for pattern, axes in BLOCK),
    *lm_head.SHARDING,
)


_KERNELS = r'(query|key|value|out|gate|up|down)/kernel$'
MATRICES = ((rf'/layer_\d+/(.*/)?{_KERNELS}', 0), (rf'/layers/(.*/)?{_KERNELS}', 1))


class Transformer(Model, nn.Module):
    """What every Transformer here, and every part of one, is told about its shape.

    Attributes:
        width: channels of the residual stream.
        layers: blocks.
        heads: attention heads.
        kv_heads: key and value heads, shared by groups of query heads; 0: `heads`.
        head_dim: channels of one head; 0: `width` / `heads`.
        mlp_width: hidden units of the MLP; 0: 4·width, or about 8/3·width where gated.
        activation: 'gelu' (exact), 'gelu_tanh', 'relu', or gated 'swiglu', 'geglu'.
        norm: 'layer' or 'rms'.
        norm_epsilon: added to the variance in a norm.
        pre_norm: norms before attention and MLP and one at the end, instead of after each.
        bias: learn biases in linear layers and LayerNorm.
        qk_norm: normalise queries and keys by RMS (arXiv:2302.05442).
        positions: 'learned', 'sinusoidal', 'rotary' or 'none'.
        rotary_base: base of the rotary rates.
        dropout: rate on embeddings and on what each layer adds, in [0, 1).
        init_std: deviation of the normal initialisation; 0: 1/sqrt(fan in).
        scan_layers: one traced block with parameters stacked on axis 0: compiles in constant time.
        remat: recompute in the backward pass: 'none', 'dots' (all but products with weights), 'full', or 'save:NAMES', all but these: projections, attention, mlp.
        dtype: dtype of the computation, 'float32' or 'bfloat16'.
    """

    scalars: ClassVar[tuple[str, ...]] = ('dropout',)
    sharding: ClassVar[tuple] = SHARDING
    splits: ClassVar[tuple[str, ...]] = ('tensor', 'pipe', 'context')
    matrices: ClassVar[tuple] = MATRICES

    width: int = 384
    layers: int = 6
    heads: int = 6
    kv_heads: int = 0
    head_dim: int = 0
    mlp_width: int = 0
    activation: str = 'gelu_tanh'
    norm: str = 'layer'
    norm_epsilon: float = 1e-5
    pre_norm: bool = True
    bias: bool = True
    qk_norm: bool = False
    positions: str = 'learned'
    rotary_base: float = 10000.0
    dropout: float = 0.0
    init_std: float = 0.0
    scan_layers: bool = False
    remat: str = 'none'
    dtype: str = 'float32'

    def check(self):
        """Raises ValueError for a shape that cannot be built."""
        at_least(self, width=1, layers=1, heads=1, kv_heads=0, head_dim=0, mlp_width=0)
        if not self.head_dim and self.width % self.heads:
            raise ValueError(f'heads={self.heads}: must divide width={self.width}, or set head_dim')
        if self.heads % self.key_heads:
            raise ValueError(f'kv_heads={self.kv_heads}: must divide heads={self.heads}')
        if self.positions == 'rotary' and self.channels % 2:
            raise ValueError(f'head_dim={self.channels}: must be even for rotary positions')
        one_of(
            self,
            activation=attention.ACTIVATIONS,
            norm=('layer', 'rms'),
            positions=('learned', 'sinusoidal', 'rotary', 'none'),
            dtype=DTYPES,
        )
        remat_policy(self.remat)
        below_one(self, 'dropout')

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def channels(self) -> int:
        """Channels of one head."""
        return self.head_dim or self.width // self.heads

    @property
    def hidden(self) -> int:
        """Hidden units of the MLP."""
        if self.mlp_width:
            return self.mlp_width
        # Three kernels instead of two: 8/3 of the width gives the same parameters, kept aligned.
        gated = -(-8 * self.width // (3 * 64)) * 64
        return gated if self.activation in attention.GATED else 4 * self.width

    def residual_std(self, fan_in: int) -> float:
        """Deviation of a kernel whose product is added to the residual stream.

        With pre-norm 2·layers such products add up, so each starts smaller (Radford et al. 2019).
        """
        std = self.init_std or fan_in**-0.5
        return std * (2 * self.layers) ** -0.5 if self.pre_norm else std

    def shape(self, train: bool = True) -> dict:
        """Returns the fields above, for a part of this model; without `train`, dropout is off."""
        names = [f.name for f in dataclasses.fields(Transformer)]
        fields = {name: getattr(self, name) for name in names if name not in ('parent', 'name')}
        return fields if train else {**fields, 'dropout': 0.0}

    def make_norm(self, name: str, dtype: str = '') -> nn.Module:
        return make_norm(
            self.norm,
            epsilon=self.norm_epsilon,
            use_bias=self.bias,
            dtype=dtype or self.dtype,
            name=name,
        )


class TransformerBlock(Transformer):
    """Attention, optional cross attention and MLP, each with its norm and residual connection.

    Attributes:
        causal: tokens see only themselves and earlier ones.
        cross: also attend to `routing.context`.
        modulated: scale and shift what each norm gives, and scale what is added to the residual
            stream, by linear functions of `routing.told` that begin as zeros (adaLN-zero,
            arXiv:2212.09748).
    """

    causal: bool = False
    cross: bool = False
    modulated: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, cache: Optional['LayerCache'], routing: Routing):
        """Returns (x [batch, time, width], the layer's cache after these tokens)."""

        def attend(name: str, cross: bool, past: KeyValues | None):
            layer = Attention(
                heads=self.heads,
                kv_heads=self.key_heads,
                head_dim=self.channels,
                bias=self.bias,
                qk_norm=self.qk_norm,
                rotary_base=self.rotary_base if self.positions == 'rotary' else 0.0,
                causal=self.causal,
                cross=cross,
                norm_epsilon=self.norm_epsilon,
                std=self.init_std,
                out_std=self.residual_std(self.heads * self.channels),
                dtype=self.dtype,
                name=name,
            )
            return lambda y: layer(y, routing, past)

        def mlp(y: jax.Array):
            layer = Mlp(
                self.hidden,
                activation=self.activation,
                bias=self.bias,
                std=self.init_std,
                out_std=self.residual_std(self.hidden),
                dtype=self.dtype,
                name='mlp',
            )
            return layer(y), None

        def residual(x: jax.Array, name: str, layer):
            norm = self.make_norm(f'{name}_norm')
            if self.modulated:
                shift, scale, gate = modulation(routing, 3, self.dtype, f'{name}_modulation')
                update, past = layer(norm(x) * (1 + scale) + shift)
                update = gate * update
            else:
                update, past = layer(norm(x) if self.pre_norm else x)
            x = x + Dropout(self.dropout)(update, train=True)
            x = x if self.pre_norm else norm(x)
            return with_logical_constraint(x, ('batch', 'length', 'embed')), past

        own = other = None
        if cache is not None:
            own, other = cache.own, cache.cross
        x, own = residual(x, 'attention', attend('attention', False, own))
        if self.cross:
            x, other = residual(x, 'cross', attend('cross', True, other))
        x, _ = residual(x, 'mlp', mlp)
        return x, None if own is None else LayerCache(own, other)


def modulation(routing: Routing, count: int, dtype: str, name: str) -> list[jax.Array]:
    """`count` linear functions [batch, 1, width] of `routing.told` that begin as zeros."""
    assert routing.told is not None
    zeros = nn.initializers.zeros
    dense = Dense(count * routing.told.shape[-1], kernel_init=zeros, dtype=dtype, name=name)
    return jnp.split(dense(routing.told)[:, None], count, axis=-1)


class LayerCache(flax.struct.PyTreeNode):
    """What one block remembers: its own keys and values and those of cross attention."""

    own: KeyValues
    cross: KeyValues | None = None

    def take(self, rows: jax.Array) -> 'LayerCache':
        return LayerCache(
            self.own.take(rows), None if self.cross is None else self.cross.take(rows)
        )


class Cache(flax.struct.PyTreeNode):
    """What a Transformer decoder remembers of the tokens it has read.

    Attributes:
        layers: a LayerCache per layer, or one with stacked arrays if the layers are scanned.
        segments: [batch, slots] 1 where a slot holds a token, 0 where it is padding or unwritten.
        position: [batch] position of the next token.
        slot: slots written.
        context_segments: [batch, source time] of an encoder–decoder, else None.
    """

    layers: tuple[LayerCache, ...] | LayerCache
    segments: jax.Array
    position: jax.Array
    slot: jax.Array
    context_segments: jax.Array | None = None

    @classmethod
    def zeros(cls, model: Transformer, batch: int, slots: int, source: int = 0) -> 'Cache':
        """Returns the empty cache of `model` for `slots` tokens and `source` encoder positions."""

        def pair(length: int) -> KeyValues:
            shape = (batch, length, model.key_heads, model.channels)
            return KeyValues(jnp.zeros(shape, model.dtype), jnp.zeros(shape, model.dtype))

        def layer() -> LayerCache:
            return LayerCache(pair(slots), pair(source) if source else None)

        layers = tuple(layer() for _ in range(model.layers))
        return cls(
            jax.tree.map(lambda *x: jnp.stack(x), *layers) if model.scan_layers else layers,
            jnp.zeros((batch, slots), jnp.int32),
            jnp.zeros((batch,), jnp.int32),
            jnp.zeros((), jnp.int32),
            jnp.zeros((batch, source), jnp.int32) if source else None,
        )

    def take(self, rows: jax.Array) -> 'Cache':
        """Keeps the batch rows `rows` [new batch], in that order; they may repeat."""
        layers = jax.tree.map(
            lambda layer: layer.take(rows),
            self.layers,
            is_leaf=lambda node: isinstance(node, LayerCache),
        )
        context = None if self.context_segments is None else self.context_segments[rows]
        return self.replace(
            layers=layers,
            segments=self.segments[rows],
            position=self.position[rows],
            context_segments=context,
        )

    def write(self, segments: jax.Array) -> tuple['Cache', Routing]:
        """Makes room for tokens with `segments` [batch, time], 0 where padding.

        Returns the cache, still without their keys, and what a stack needs to write and read it.
        """
        time, slots = segments.shape[1], self.segments.shape[1]
        segments = (segments > 0).astype(jnp.int32)
        known = jax.lax.dynamic_update_slice(self.segments, segments, (0, self.slot))
        # Slots fill in order, so a slot's index says what came earlier, even after padding.
        order = jnp.arange(slots)[None, :] <= self.slot + jnp.arange(time)[:, None]
        visible = order[None] & (known[:, None, :] == segments[:, :, None])
        positions = self.position[:, None] + jnp.cumsum(segments, axis=1) - segments
        cache = self.replace(
            segments=known,
            position=self.position + segments.sum(axis=1),
            slot=self.slot + time,
        )
        return cache, Routing(
            positions=positions, segments=segments, visible=visible[:, None], slot=self.slot
        )


class Stack(Transformer):
    """`layers` equal blocks: 'layer_0', 'layer_1', … or, scanned, one 'layers' with stacked parameters.

    Attributes:
        causal: tokens see only themselves and earlier ones.
        cross: blocks also attend to `routing.context`.
        modulated: blocks are told `routing.told`.
    """

    causal: bool = False
    cross: bool = False
    modulated: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, routing: Routing, cache: Cache | None = None):
        """Returns (x [batch, time, width], `cache` with the keys and values of these tokens)."""
        block, options = (
            TransformerBlock,
            {
                **self.shape(),
                'causal': self.causal,
                'cross': self.cross,
                'modulated': self.modulated,
            },
        )
        split = layout.ways(layout.axes('heads')[0])
        if self.heads % split:
            raise ValueError(f'heads={self.heads}: must be a multiple of mesh.tensor={split}')
        if pipeline.stages() > 1:
            if not self.scan_layers:
                raise ValueError(
                    'scan_layers=False: a pipeline (mesh.pipe) needs stacked layers; '
                    'set scan_layers=True'
                )
            if self.layers % pipeline.stages():
                raise ValueError(
                    f'layers={self.layers}: must be a multiple of mesh.pipe={pipeline.stages()}'
                )
            if cache is None and not self.is_initializing():
                return self._pipelined(TransformerBlock(**options, parent=None), x, routing), None
        if self.remat != 'none':
            # Inside a scan common subexpressions cannot be merged anyway, and the barrier costs.
            policy = remat_policy(self.remat)
            block = nn.remat(block, policy=policy, prevent_cse=not self.scan_layers)
        if self.scan_layers:
            scanned = nn.scan(
                block,
                variable_axes={'params': 0},
                split_rngs={'params': True, 'dropout': True},
                in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]  # Flax declares int
                length=self.layers,
            )
            past = None if cache is None else cache.layers
            x, past = scanned(**options, name='layers')(x, past, routing)
        else:
            past = []
            for i in range(self.layers):
                layer = None if cache is None else cache.layers[i]  # pyright: ignore[reportIndexIssue]
                x, layer = block(**options, name=f'layer_{i}')(x, layer, routing)
                past.append(layer)
            past = tuple(past)
        if self.pre_norm:
            x = self.make_norm('final_norm')(x)
        return x, None if cache is None else cache.replace(layers=past)

    def _pipelined(self, block: TransformerBlock, x: jax.Array, routing: Routing) -> jax.Array:
        """The scanned layers as a pipeline; the parameters are those of the scan."""

        def layer(params, x, routing, key):
            return block.apply({'params': params}, x, None, routing, rngs={'dropout': key})[0]

        if self.remat != 'none':
            layer = jax.checkpoint(layer, policy=remat_policy(self.remat), prevent_cse=False)
        key = self.make_rng('dropout') if self.has_rng('dropout') else jax.random.key(0)
        x = pipeline.run(layer, self.get_variable('params', 'layers'), x, routing, key)
        x = with_logical_constraint(x, ('batch', 'length', 'embed'))
        return self.make_norm('final_norm')(x) if self.pre_norm else x


def stack_layers(params: dict) -> dict:
    """Turns parameters of unscanned stacks ('layer_0', 'layer_1', …) into those of scanned ones."""
    if not isinstance(params, dict):
        return params
    names = sorted(
        (k for k in params if k.startswith('layer_') and k[6:].isdigit()), key=lambda k: int(k[6:])
    )
    rest = {k: stack_layers(v) for k, v in params.items() if k not in names}
    if names:
        rest['layers'] = jax.tree.map(lambda *x: jnp.stack(x), *(params[k] for k in names))
    return rest


def unstack_layers(params: dict) -> dict:
    """Turns parameters of scanned stacks ('layers') into those of unscanned ones."""
    if not isinstance(params, dict):
        return params
    rest = {k: unstack_layers(v) for k, v in params.items() if k != 'layers'}
    if 'layers' in params:
        count = len(jax.tree.leaves(params['layers'])[0])
        for i in range(count):
            rest[f'layer_{i}'] = jax.tree.map(lambda x, i=i: x[i], params['layers'])
    return rest
