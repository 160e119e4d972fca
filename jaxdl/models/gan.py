"""A generator of images and the critic that it is trained against, for images such as 28×28 or 32×32."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.api import Model
from jaxdl.errors import at_least, one_of
from jaxdl.models import layers

SLOPE = 0.2  # of leaky ReLU below 0, as in R3GAN
SPECTRAL = 'spectral'  # the collection of the vectors of the power iteration


class Gan(Model, nn.Module):
    """Two players; their parameters are in params['generator'] and params['critic'].

    Attributes:
        generator: called as generator(latents [batch, latent], train=…) → images in [-1, 1].
        critic: called as critic(images, train=…) → scores [batch].
    """

    generator: Any
    critic: Any

    def __call__(
        self, images: jax.Array, latents: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Generated images, and the critic's scores [batch] of `images` and of those."""
        made = self.generate(latents, train=train)
        scores = self.judge(jnp.concatenate([images, made]), train=train)
        return made, scores[: len(images)], scores[len(images) :]

    def generate(self, latents: jax.Array, *, train: bool) -> jax.Array:
        return self.generator(latents, train=train)

    def judge(self, images: jax.Array, *, train: bool) -> jax.Array:
        return self.critic(images, train=train)


class Generator(nn.Module):
    """A dense layer, then stages that double the size; no normalisation, as in R3GAN.

    A stage is `blocks` residual blocks, and a convolution that gives four times the channels of
    the next stage, which become the pixels of the doubled image.

    Attributes:
        size: height and width of the images; two to the power of the number of stages divides it.
        channels: channels of the images.
        widths: channels of each stage, the coarsest first.
        blocks: residual blocks in a stage.
        dtype: compute precision, float32 or bfloat16.
    """

    size: int = 28
    channels: int = 1
    widths: tuple[int, ...] = (64, 32)
    blocks: int = 0
    dtype: str = 'float32'

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        _check(self)

    @nn.compact
    def __call__(self, latents: jax.Array, *, train: bool) -> jax.Array:
        del train
        self.check()
        side = self.size >> len(self.widths)
        x = layers.Dense(side * side * self.widths[0], dtype=self.dtype, name='first')(latents)
        x = x.reshape(-1, side, side, self.widths[0])
        following = (*self.widths[1:], self.channels)
        for stage, (width, after) in enumerate(zip(self.widths, following, strict=True)):
            for index in range(self.blocks):
                x = _Block(width, dtype=self.dtype, name=f'stage{stage}_{index}')(x)
            x = nn.leaky_relu(x, SLOPE)
            x = layers.Conv(4 * after, dtype=self.dtype, name=f'stage{stage}_up')(x)
            x = _pixels_of_channels(x)
        return jnp.tanh(x.astype(jnp.float32))


class Critic(nn.Module):
    """Stages that halve the size, and a dense layer that gives the score.

    A stage is a convolution of 4×4 in steps of two pixels, and `blocks` residual blocks.

    Attributes:
        widths: channels of each stage, the finest first.
        blocks: residual blocks in a stage.
        spectral: divide the kernel of every layer by its largest singular value (arXiv:1802.05957), found by a step of the power iteration in every training step.
        dtype: compute precision, float32 or bfloat16.
    """

    widths: tuple[int, ...] = (32, 64)
    blocks: int = 0
    spectral: bool = False
    dtype: str = 'float32'

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        _check(self)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        self.check()
        _check_size(images.shape[1], self.widths)
        x = images
        for stage, width in enumerate(self.widths):
            layer = layers.Conv(
                width, (4, 4), (2, 2), padding=1, dtype=self.dtype, name=f'stage{stage}_down'
            )
            x = nn.leaky_relu(normed(layer, self.spectral, train)(x), SLOPE)
            for index in range(self.blocks):
                block = _Block(width, self.spectral, self.dtype, name=f'stage{stage}_{index}')
                x = block(x, train=train)
        layer = layers.Dense(1, dtype=self.dtype, name='score')
        x = normed(layer, self.spectral, train)(x.reshape(len(x), -1))
        return x[:, 0].astype(jnp.float32)


class _Block(nn.Module):
    """x plus two convolutions of 3×3; the second begins at 0, or as usual under spectral norm."""

    width: int
    spectral: bool = False
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        last = layers.lecun_normal if self.spectral else nn.initializers.zeros
        first = layers.Conv(self.width, dtype=self.dtype, name='first')
        second = layers.Conv(self.width, dtype=self.dtype, kernel_init=last, name='second')
        y = normed(first, self.spectral, train)(nn.leaky_relu(x, SLOPE))
        return x + normed(second, self.spectral, train)(nn.leaky_relu(y, SLOPE))


def normed(layer: nn.Module, spectral: bool, train: bool) -> Any:
    """`layer`, or the same with every kernel divided by its largest singular value."""
    if not spectral:
        return layer
    wrapped = nn.SpectralNorm(layer, collection_name=SPECTRAL)
    return lambda x: wrapped(x, update_stats=train)


def _pixels_of_channels(x: jax.Array) -> jax.Array:
    """[batch, height, width, 4 · channels] → [batch, 2 · height, 2 · width, channels]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4).swapaxes(2, 3)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


def _check(module: Any) -> None:
    one_of(module, dtype=layers.DTYPES)
    at_least(module, blocks=0)
    if not module.widths or min(module.widths) < 1:
        raise ValueError(f'widths={module.widths}: must be positive, one number per stage')
    if isinstance(module, Generator):
        at_least(module, size=2, channels=1)
        _check_size(module.size, module.widths)


def _check_size(size: int, widths: tuple[int, ...]) -> None:
    if size % 2 ** len(widths):
        raise ValueError(
            f'widths={widths}: images of {size} pixels cannot be halved {len(widths)} times; give '
            'fewer stages'
        )
