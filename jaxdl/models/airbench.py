"""A fast network for CIFAR-10, after airbench (Jordan 2024, arXiv:2404.00498)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.api import Limits, Model
from jaxdl.errors import above_zero, at_least, below_one, one_of
from jaxdl.models import layers, ops


def dirac_or_torch(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Convolution kernels [height, width, in, out] whose first `in` filters pass one channel each.

    The filters beyond those start as PyTorch's do.
    """
    kernel = layers.torch_uniform(key, shape, dtype)
    height, width, inputs, outputs = shape
    passed = min(inputs, outputs)
    identity = jnp.zeros((height, width, inputs, passed), dtype)
    channel = jnp.arange(passed)
    identity = identity.at[height // 2, width // 2, channel, channel].set(1)
    return kernel.at[..., :passed].set(identity)


def whitening_kernel(images: jax.Array, size: int, epsilon: float) -> jax.Array:
    """Filters [size, size, channels, 2 · size² · channels] whose responses to `images` are white.

    They are the principal directions of all patches of `images` [batch, height, width, channels],
    whose mean is taken to be 0, each divided by the square root of (variance + epsilon), and their
    negatives. Where all patches are equal, as in a batch of zeros that serves for its shape alone,
    the correlations usual in natural images of variance 1 take the place of the measured ones.
    """
    images = images.astype(jnp.float32)
    channels = images.shape[-1]
    height, width = (n - size + 1 for n in images.shape[1:3])
    shifted = [images[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    patches = jnp.concatenate(shifted, -1)  # [batch, height, width, size · size · channels]
    count = patches.size // patches.shape[-1]
    covariance = jnp.einsum('bhwi,bhwj->ij', patches, patches, precision='highest') / count
    varies = jnp.max(patches.max((0, 1, 2)) - patches.min((0, 1, 2))) > 0
    covariance = jnp.where(varies, covariance, _usual_covariance(size, channels))
    variances, directions = jnp.linalg.eigh(covariance)
    # A direction's sign is arbitrary: the largest entry is made positive, so that a rounding error,
    # as between one device and many, cannot swap a filter with its negative.
    peak = jnp.take_along_axis(directions, jnp.abs(directions).argmax(0)[None], 0)
    directions = directions * jnp.where(peak < 0, -1.0, 1.0)
    scale = jax.lax.rsqrt(jnp.maximum(variances, 0.0) + epsilon)
    filters = (directions * scale)[:, ::-1].reshape(size, size, channels, -1)
    return jnp.concatenate([filters, -filters], -1)


def _usual_covariance(size: int, channels: int) -> jax.Array:
    """Of patches whose neighbouring pixels correlate by 0.95 and neighbouring channels by 0.93."""
    pixel, channel = jnp.arange(size), jnp.arange(channels)
    pixels = 0.95 ** jnp.abs(pixel[:, None] - pixel)
    between = 0.93 ** jnp.abs(channel[:, None] - channel)
    return jnp.kron(jnp.kron(pixels, pixels), between)


class Airbench(Model, nn.Module):
    """Whitening 2×2 convolution, three groups of convolutions with pooling, and scaled logits.

    The whitening kernel is not trained: it is computed from the images that the model is
    initialised with, which therefore should be a batch of real, normalised training images (zeros
    give a kernel for natural images in general), and kept in the collection `whitening`. Takes images [batch, height, width, channels] of at least 9
    pixels and returns float32 logits [batch, num_classes].

    The defaults are the published network for 94 % on CIFAR-10. The one for 95 % has
    widths=(128, 384, 384); the one for 96 % widths=(128, 512, 512), convs=3, momentum=0.9.

    Attributes:
        widths: channels of the three groups.
        convs: convolutions in each group, 2 or 3; with 3, a shortcut leads around the last two.
        num_classes: number of classes.
        logit_scale: the logits are multiplied by this.
        momentum: share of the old BatchNorm statistics that is kept at each step.
        whitening_epsilon: added to the variance of each whitened direction.
        views: in evaluation, logits are averaged over 1 (the image alone), 2 (and its mirror image)
            or 6 (and both shifted by a pixel up-left and down-right) views.
        dtype: compute precision, float32 or bfloat16.
    """

    matrices: ClassVar[tuple] = ((r'^group\d_\d_conv/kernel$', 0),)

    widths: tuple[int, ...] = (64, 256, 256)
    convs: int = 2
    num_classes: int = 10
    logit_scale: float = 1 / 9
    momentum: float = 0.6
    whitening_epsilon: float = 5e-4
    views: int = 1
    dtype: str = 'float32'

    def limits(self) -> Limits:
        return Limits(classes=self.num_classes)

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        if len(self.widths) != 3 or min(self.widths) < 1:
            raise ValueError(f'widths={self.widths}: must be three positive numbers')
        one_of(self, convs=(2, 3), views=(1, 2, 6), dtype=layers.DTYPES)
        above_zero(self, 'logit_scale', 'whitening_epsilon')
        at_least(self, num_classes=1)
        below_one(self, 'momentum')

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        self.check()
        if min(images.shape[1:3]) < 9:
            size = '×'.join(map(str, images.shape[1:3]))
            raise ValueError(f'Airbench needs images of at least 9×9 pixels; these have {size}')
        kernel = self.variable(
            'whitening', 'kernel', whitening_kernel, images, 2, self.whitening_epsilon
        ).value
        bias = self.param('whitening_bias', nn.initializers.zeros, kernel.shape[-1:], jnp.float32)
        views = 1 if train else self.views
        if views > 1:
            images, weights = stacked_views(images, views)

        x = ops.conv(images.astype(self.dtype), kernel.astype(self.dtype), padding='VALID')
        x = _gelu(x + bias.astype(self.dtype))
        for group, width in enumerate(self.widths):
            name = f'group{group}'
            x = layers.max_pool(self._conv(width, f'{name}_0_conv')(x))
            x = shortcut = _gelu(self._norm(f'{name}_0_norm')(x, train=train))
            for index in range(1, self.convs):
                x = self._conv(width, f'{name}_{index}_conv')(x)
                x = self._norm(f'{name}_{index}_norm')(x, train=train)
                x = _gelu(x + shortcut if index == 2 else x)
            x = layers.mark_images(x)
        x = x.max((1, 2))
        logits = layers.Dense(
            self.num_classes,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=layers.torch_uniform,
            name='classifier',
        )(x)
        logits = logits.astype(jnp.float32) * self.logit_scale
        if views > 1:
            logits = logits.reshape(-1, views, self.num_classes)
            logits = jnp.einsum('bvc,v->bc', logits, jnp.asarray(weights), precision='highest')
        return logits

    @nn.nowrap
    def _conv(self, width: int, name: str) -> layers.Conv:
        return layers.Conv(
            width, use_bias=False, dtype=self.dtype, kernel_init=dirac_or_torch, name=name
        )

    @nn.nowrap
    def _norm(self, name: str) -> layers.BatchNorm:
        return layers.BatchNorm(
            momentum=self.momentum, use_scale=False, dtype=self.dtype, name=name
        )


def stacked_views(images: jax.Array, views: int) -> tuple[jax.Array, tuple[float, ...]]:
    """All views of all images, [batch · views, height, width, channels], and each view's weight.

    The views of one image follow each other, so that a batch split over devices stays split as it
    was. Shifted copies have half of the weight, mirror images share equally with their originals.
    """
    height, width = images.shape[1:3]
    shown, weights = [images], [1.0]
    if views == 6:
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='reflect')
        shown += [padded[:, :height, :width], padded[:, 2:, 2:]]
        weights = [0.5, 0.25, 0.25]
    shown += [image[:, :, ::-1] for image in shown]
    stacked = jnp.stack(shown, 1).reshape(-1, *images.shape[1:])
    return stacked, tuple(weight / 2 for weight in weights * 2)


def _gelu(x: jax.Array) -> jax.Array:
    return ops.gelu(x, approximate=False)
