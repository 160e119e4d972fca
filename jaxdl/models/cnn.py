"""A small convolutional network for images of 8 to 64 pixels."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.api import Limits, Model
from jaxdl.errors import at_least, below_one, one_of
from jaxdl.models import layers


class Cnn(Model, nn.Module):
    """Stages of 3×3 convolution, BatchNorm and ReLU with max-pooling between, then a classifier.

    Takes images [batch, height, width, channels] and returns float32 logits [batch, num_classes].

    Attributes:
        channels: output channels of each stage.
        convs: convolutions in each stage.
        pools: the first so many stages end in 2×2 max-pooling, which halves height and width.
        dense: units of a hidden layer over the flattened features; 0 averages over the pixels
            instead and has no hidden layer.
        num_classes: number of classes.
        dropout: probability of dropping a feature before the last layer.
        momentum: share of the old BatchNorm statistics that is kept at each step.
        dtype: compute precision, float32 or bfloat16.
    """

    scalars: ClassVar[tuple[str, ...]] = ('dropout',)
    # The hidden layer holds most parameters; what the tensor axis splits it gives back in one sum.
    sharding: ClassVar[tuple] = (
        (r'(^|/)hidden/kernel$', ('fsdp', 'tensor')),
        (r'(^|/)hidden/bias$', ('tensor',)),
        (r'(^|/)classifier/kernel$', ('tensor', 'fsdp')),
    )
    splits: ClassVar[tuple[str, ...]] = ('tensor',)
    matrices: ClassVar[tuple] = (
        (r'^(?!stage0_0_)stage\d+_\d+_conv/kernel$', 0),
        (r'^hidden/kernel$', 0),
    )

    channels: tuple[int, ...] = (32, 64, 128)
    convs: int = 1
    pools: int = 3
    dense: int = 128
    num_classes: int = 10
    dropout: float = 0.0
    momentum: float = 0.9
    dtype: str = 'float32'

    def limits(self) -> Limits:
        return Limits(classes=self.num_classes)

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        one_of(self, dtype=layers.DTYPES)
        below_one(self, 'dropout', 'momentum')
        at_least(self, convs=1, num_classes=1, dense=0)
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f'channels={self.channels}: must be positive, one number per stage')
        if not 0 <= self.pools <= len(self.channels):
            raise ValueError(f'pools={self.pools}: must be in 0..{len(self.channels)}, one a stage')

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        self.check()
        most = min(images.shape[1:3]).bit_length() - 1
        if self.pools > most:
            size = '×'.join(map(str, images.shape[1:3]))
            raise ValueError(f'pools={self.pools}: images of {size} can be halved {most} times')
        x = images.astype(self.dtype)
        for stage, features in enumerate(self.channels):
            for index in range(self.convs):
                name = f'stage{stage}_{index}'
                x = layers.Conv(
                    features,
                    use_bias=False,
                    dtype=self.dtype,
                    kernel_init=layers.he_normal_fan_out,
                    name=f'{name}_conv',
                )(x)
                norm = layers.BatchNorm(
                    momentum=self.momentum, relu=True, dtype=self.dtype, name=f'{name}_norm'
                )
                x = layers.mark_images(norm(x, train=train))
            if stage < self.pools:
                x = layers.max_pool(x)
        if self.dense:
            x = x.reshape(x.shape[0], -1)
            x = nn.relu(layers.Dense(self.dense, dtype=self.dtype, name='hidden')(x))
        else:
            x = layers.global_avg_pool(x)
        x = layers.Dropout(self.dropout, name='dropout')(x, train=train)
        x = layers.Dense(self.num_classes, dtype=self.dtype, name='classifier')(x)
        return x.astype(jnp.float32)
