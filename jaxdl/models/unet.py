"""A U-Net with residual blocks that are told the noise and the class (arXiv:2006.11239, 2105.05233)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.api import Limits
from jaxdl.errors import at_least, below_one, one_of
from jaxdl.models import layers, ops
from jaxdl.models.denoiser import Conditioning, Denoiser
from jaxdl.models.layers import Conv, Dense, Dropout, GroupNorm


class UNet(Denoiser, nn.Module):
    """Stages of residual blocks, each half as large as the one before, and back with connections.

    Called as jaxdl.models.denoiser.Denoiser says. The last convolution begins as zeros.

    Attributes:
        channels: channels of each stage.
        blocks: residual blocks of a stage on the way down; one more on the way up.
        attention: stages whose blocks are followed by self-attention, counted from 0; the one between the ways has it if the last stage has.
        heads: attention heads.
        num_classes: number of classes; 0: labels are not looked at.
        dropout: rate inside the residual blocks, in [0, 1).
        dtype: compute precision, float32 or bfloat16.
    """

    scalars: ClassVar[tuple[str, ...]] = ('dropout',)
    matrices: ClassVar[tuple] = (
        (r'(^|/)(first|second)/kernel$', 0),
        (r'(^|/)(query|key|value|out)/kernel$', 0),
    )

    channels: tuple[int, ...] = (64, 128, 256)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    heads: int = 4
    num_classes: int = 0
    dropout: float = 0.0
    dtype: str = 'float32'

    def limits(self) -> Limits:
        return Limits(classes=self.num_classes or None)

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        one_of(self, dtype=layers.DTYPES)
        below_one(self, 'dropout')
        at_least(self, blocks=1, heads=1, num_classes=0)
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f'channels={self.channels}: must be positive, one number per stage')
        for stage in self.attention:
            if not 0 <= stage < len(self.channels):
                raise ValueError(
                    f'attention={self.attention}: must be stages, 0 to {len(self.channels) - 1}'
                )
            if self.channels[stage] % self.heads:
                raise ValueError(
                    f'heads={self.heads}: must divide the {self.channels[stage]} channels of '
                    f'stage {stage}, which has attention'
                )

    @nn.compact
    def __call__(
        self, images: jax.Array, noise: jax.Array, labels: jax.Array, *, train: bool
    ) -> jax.Array:
        self.check()
        factor = 2 ** (len(self.channels) - 1)
        if images.shape[1] % factor or images.shape[2] % factor:
            size = '×'.join(map(str, images.shape[1:3]))
            raise ValueError(
                f'channels={self.channels}: {len(self.channels)} stages halve images of {size} '
                f'{len(self.channels) - 1} times, so {factor} must divide height and width'
            )
        told = Conditioning(4 * self.channels[0], self.num_classes, name='conditioning')
        told = nn.silu(told(noise, labels)).astype(self.dtype)

        def stage_block(x: jax.Array, stage: int, name: str) -> jax.Array:
            x = Residual(self.channels[stage], dropout=self.dropout, dtype=self.dtype, name=name)(
                x, told, train=train
            )
            if stage in self.attention:
                x = SelfAttention(self.heads, dtype=self.dtype, name=f'{name}_attention')(x)
            return layers.mark_images(x)

        x = Conv(self.channels[0], dtype=self.dtype, name='images')(images)
        kept = [x]
        for stage, features in enumerate(self.channels):
            for index in range(self.blocks):
                x = stage_block(x, stage, f'down{stage}_{index}')
                kept.append(x)
            if stage < len(self.channels) - 1:
                name = f'down{stage}_half'
                x = Conv(features, strides=(2, 2), padding=1, dtype=self.dtype, name=name)(x)
                kept.append(x)
        x = stage_block(x, len(self.channels) - 1, 'middle')
        for stage, features in reversed(list(enumerate(self.channels))):
            for index in range(self.blocks + 1):
                x = jnp.concatenate([x, kept.pop()], axis=-1)
                x = stage_block(x, stage, f'up{stage}_{index}')
            if stage:
                x = Conv(features, dtype=self.dtype, name=f'up{stage}_double')(layers.doubled(x))
        x = nn.silu(GroupNorm(dtype=self.dtype, name='norm')(x))
        zeros = nn.initializers.zeros
        x = Conv(images.shape[-1], kernel_init=zeros, dtype=self.dtype, name='last')(x)
        return x.astype(jnp.float32)


class Residual(nn.Module):
    """Two convolutions beside a connection; the second norm is scaled and shifted by what is told.

    Attributes:
        features: channels of the result.
        dropout: rate before the second convolution.
        dtype: compute precision.
    """

    features: int
    dropout: float = 0.0
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array, told: jax.Array, *, train: bool) -> jax.Array:
        """x [batch, height, width, channels], told [batch, width]."""
        dtype = self.dtype
        y = nn.silu(GroupNorm(name='first_norm', dtype=dtype)(x))
        y = Conv(self.features, name='first', dtype=dtype)(y)
        moved = Dense(2 * self.features, name='told', dtype=dtype)(told)[:, None, None]
        scale, shift = jnp.split(moved, 2, axis=-1)
        y = nn.silu(GroupNorm(name='second_norm', dtype=dtype)(y) * (1 + scale) + shift)
        y = Dropout(self.dropout)(y, train=train)
        zeros = nn.initializers.zeros
        y = Conv(self.features, kernel_init=zeros, name='second', dtype=dtype)(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel_size=(1, 1), name='shortcut', dtype=dtype)(x)
        return x + y


class SelfAttention(nn.Module):
    """Every pixel attends to every other, beside a connection; begins as zeros.

    Attributes:
        heads: attention heads.
        dtype: compute precision.
    """

    heads: int
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        y = GroupNorm(dtype=self.dtype, name='norm')(x).reshape(batch, height * width, channels)
        query, key, value = (
            Dense(channels, dtype=self.dtype, name=name)(y).reshape(*y.shape[:2], self.heads, -1)
            for name in ('query', 'key', 'value')
        )
        y = ops.attention(query, key, value).reshape(y.shape)
        zeros = nn.initializers.zeros
        y = Dense(channels, kernel_init=zeros, dtype=self.dtype, name='out')(y)
        return x + y.reshape(x.shape)
