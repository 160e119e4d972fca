"""What denoising networks share: their inputs, the embedding of noise and class, a latent space."""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.api import Limits, Model, facts_of
from jaxdl.errors import above_zero
from jaxdl.models import vae
from jaxdl.models.layers import Dense


class Denoiser(Model):
    """A network called with (images, noise, labels, train=…) that returns an array like `images`.

    `images` are float [batch, height, width, channels], scaled by the task; `noise` [batch] says how
    noisy they are, a number of order 1; `labels` int32 [batch] are classes, -1 for none. A network
    without classes does not look at them.
    """

    def encode(self, images: jax.Array, *, train: bool) -> jax.Array:
        """The space in which noise is added: here that of the images themselves."""
        del train
        return images

    def decode(self, latents: jax.Array, *, train: bool) -> jax.Array:
        """Images in [-1, 1] of what `encode` gives."""
        del train
        return latents


class Conditioning(nn.Module):
    """A vector for each image, float32 [batch, width], from its noise and its class.

    Attributes:
        width: channels of the vector.
        num_classes: number of classes; 0: labels are not looked at.
        frequencies: sines and cosines of the noise, of wavelengths from 0.03 to 12.
    """

    width: int
    num_classes: int = 0
    frequencies: int = 64

    @nn.compact
    def __call__(self, noise: jax.Array, labels: jax.Array) -> jax.Array:
        rates = jnp.geomspace(0.5, 200.0, self.frequencies)
        angles = noise.astype(jnp.float32)[:, None] * rates
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1) * math.sqrt(2)
        x = Dense(self.width, name='noise_in')(x)
        x = Dense(self.width, name='noise_out')(nn.silu(x))
        if self.num_classes:
            table = nn.Embed(
                self.num_classes + 1,  # the last row is no class
                self.width,
                embedding_init=nn.initializers.normal(0.5),
                name='classes',
            )
            x = x + table(jnp.where(labels < 0, self.num_classes, labels))
        return x


class Latent(Denoiser, nn.Module):
    """A denoiser in the latent space of a trained autoencoder, which is kept as it is (arXiv:2112.10752).

    The autoencoder's weights come from its run (init_from, renamed to 'autoencoder/…') and get no
    gradient; leave them out of the weight decay (optimizer.no_decay).

    Attributes:
        autoencoder: the network of that run, as jaxdl.models.vae.Vae with a grid of latents.
        denoiser: the network that is trained.
        scale: the latents are multiplied by it; 1 / their deviation, which the run of the autoencoder reports as latent_std.
    """

    splits: ClassVar[tuple[str, ...]] = ()

    autoencoder: nn.Module
    denoiser: nn.Module
    scale: float = 1.0

    def limits(self) -> Limits:
        return facts_of(self.denoiser).limits()

    @nn.nowrap
    def check(self) -> None:
        above_zero(self, 'scale')

    def encode(self, images: jax.Array, *, train: bool) -> jax.Array:
        del train
        mean, _ = self.autoencoder.encode(images, train=False)  # pyright: ignore
        return jax.lax.stop_gradient(mean * self.scale)

    def decode(self, latents: jax.Array, *, train: bool) -> jax.Array:
        del train
        outputs = self.autoencoder.decode(latents / self.scale, train=False)  # pyright: ignore
        return vae.mean_of(outputs)

    def __call__(
        self, images: jax.Array, noise: jax.Array, labels: jax.Array, *, train: bool
    ) -> jax.Array:
        """`images` are latents; where the parameters are made, images."""
        if self.is_initializing():
            images = self.encode(images, train=False)
            self.decode(images, train=False)
        return self.denoiser(images, noise, labels, train=train)
