"""A convolutional variational autoencoder (Kingma and Welling 2013, arXiv:1312.6114)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.api import Model
from jaxdl.errors import at_least, one_of
from jaxdl.models import layers
from jaxdl.models.layers import Conv, Dense

# The outputs for each channel of a pixel are, for each logistic distribution of a mixture, the
# logit of its weight, its mean and the logarithm of its scale, with pixels in [-1, 1].
NUMBERS = 3


def mixture(outputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(logits, means, log scales), float32 [..., parts] each, of outputs [..., NUMBERS · parts]."""
    parts = jnp.split(outputs.astype(jnp.float32), NUMBERS, axis=-1)
    return parts[0], parts[1], parts[2]


def mean_of(outputs: jax.Array) -> jax.Array:
    """The mean of the mixtures, [...]: an image in about [-1, 1]."""
    logits, means, _ = mixture(outputs)
    return (jax.nn.softmax(logits) * means).sum(-1)


class Block(nn.Module):
    """3×3 convolution, GroupNorm and SiLU.

    Attributes:
        features: channels of the result.
        stride: step of the convolution.
        dtype: compute precision.
    """

    features: int
    stride: int = 1
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        stride = (self.stride, self.stride)
        x = Conv(self.features, strides=stride, padding=1, dtype=self.dtype, name='conv')(x)
        return layers.mark_images(nn.silu(layers.GroupNorm(dtype=self.dtype, name='norm')(x)))


class Vae(Model, nn.Module):
    """An encoder that halves the image once a stage, and a decoder that doubles it again.

    Called with images float [batch, height, width, channels] in [-1, 1] it returns the outputs for
    their mean latents; see `encode` and `decode`.

    Attributes:
        shape: height, width and channels of an image; each stage halves height and width.
        channels: channels of each stage.
        convs: convolutions of each stage.
        latent: numbers of the latent vector, or channels of the grid.
        grid: whether the latents are a grid of the last stage's size instead of a vector.
        mixtures: logistic distributions mixed for each channel of a pixel.
        dtype: compute precision, float32 or bfloat16.
    """

    matrices: ClassVar[tuple] = ((r'(?<!down_0_0)/conv/kernel$', 0),)

    shape: tuple[int, int, int] = (28, 28, 1)
    channels: tuple[int, ...] = (32, 64)
    convs: int = 2
    latent: int = 16
    grid: bool = False
    mixtures: int = 1
    dtype: str = 'float32'

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        one_of(self, dtype=layers.DTYPES)
        at_least(self, convs=1, latent=1, mixtures=1)
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f'channels={self.channels}: must be positive, one number per stage')
        factor = 2 ** len(self.channels)
        if len(self.shape) != 3 or min(self.shape) < 1 or any(n % factor for n in self.shape[:2]):
            raise ValueError(
                f'shape={self.shape}: must be height, width and channels of an image, and '
                f'{len(self.channels)} stages halve it, so {factor} must divide height and width'
            )

    def setup(self) -> None:
        def blocks(stages: tuple[int, ...], stride: int) -> list[list[Block]]:
            return [
                [
                    Block(features, stride if index == 0 else 1, self.dtype)
                    for index in range(self.convs)
                ]
                for features in stages
            ]

        self.down = blocks(self.channels, stride=2)
        self.up = blocks(self.channels[::-1], stride=1)
        height, width, colours = self.shape
        factor = 2 ** len(self.channels)
        self.bottom = (height // factor, width // factor, self.channels[-1])
        size = self.bottom[0] * self.bottom[1] * self.bottom[2]
        dtype = self.dtype
        if self.grid:
            self.to_latent = Conv(2 * self.latent, kernel_size=(1, 1), dtype=dtype)
            self.from_latent = Conv(self.bottom[2], kernel_size=(1, 1), dtype=dtype)
        else:
            self.to_latent = Dense(2 * self.latent, dtype=dtype)
            self.from_latent = Dense(size, dtype=dtype)
        self.last = Conv(
            colours * NUMBERS * self.mixtures, kernel_init=nn.initializers.normal(0.02), dtype=dtype
        )

    def encode(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """(means, log deviations) of the latents, float32 [batch, latent] or [batch, h, w, latent]."""
        del train
        if images.shape[1:] != tuple(self.shape):
            raise ValueError(
                f'shape={self.shape}: the images are {images.shape[1:]}; set model.shape to that'
            )
        x = images
        for stage in self.down:
            for block in stage:
                x = block(x)
        x = self.to_latent(x if self.grid else x.reshape(len(x), -1)).astype(jnp.float32)
        mean, log_std = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(log_std, -8.0, 4.0)

    def decode(self, latents: jax.Array, *, train: bool) -> jax.Array:
        """float32 [batch, height, width, channels, NUMBERS · mixtures], see `mixture`."""
        del train
        x = self.from_latent(latents)
        x = x.reshape(len(x), *self.bottom)
        for stage in self.up:
            x = layers.doubled(x)
            for block in stage:
                x = block(x)
        x = self.last(x).astype(jnp.float32)
        return x.reshape(*x.shape[:-1], self.shape[-1], NUMBERS * self.mixtures)

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        mean, _ = self.encode(images, train=train)
        return self.decode(mean, train=train)
