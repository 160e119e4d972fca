"""The diffusion Transformer, DiT, with adaLN-zero (Peebles and Xie 2022, arXiv:2212.09748)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxdl.api import Limits
from jaxdl.errors import at_least, one_of
from jaxdl.models.attention import Routing
from jaxdl.models.denoiser import Conditioning, Denoiser
from jaxdl.models.layers import Dense, Dropout
from jaxdl.models.stack import Stack, Transformer, modulation


class DiT(Denoiser, Transformer):
    """A Transformer over the patches of an image; the defaults are DiT-B/4.

    Called as jaxdl.models.denoiser.Denoiser says. Each block is told noise and class by adaLN-zero;
    its norms keep a scale and shift of their own besides, which the paper's have not.

    `positions` is 'sinusoidal', those of the patch's row and column, as in the paper, or 'learned'.

    Attributes:
        patch: side of a square patch, in pixels.
        num_classes: number of classes; 0: labels are not looked at.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    norm_epsilon: float = 1e-6
    positions: str = 'sinusoidal'
    patch: int = 4
    num_classes: int = 1000

    def limits(self) -> Limits:
        return Limits(classes=self.num_classes or None)

    def check(self):
        super().check()
        at_least(self, patch=1, num_classes=0)
        one_of(self, positions=('sinusoidal', 'learned'), pre_norm=(True,))
        if self.positions == 'sinusoidal' and self.width % 4:
            raise ValueError(f'width={self.width}: sinusoidal positions need a multiple of 4')

    @nn.compact
    def __call__(
        self, images: jax.Array, noise: jax.Array, labels: jax.Array, *, train: bool
    ) -> jax.Array:
        batch, height, width, channels = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f'patch={self.patch}: must divide the image size {height}×{width}')
        shape = self.shape(train)
        rows, columns = height // self.patch, width // self.patch
        x = images.reshape(batch, rows, self.patch, columns, self.patch, channels)
        x = x.swapaxes(2, 3).reshape(batch, rows * columns, -1)
        x = Dense(self.width, dtype=self.dtype, name='patches')(x)
        if self.positions == 'learned':
            places = self.param(
                'positions', nn.initializers.normal(0.02), (rows, columns, self.width), jnp.float32
            )
        else:
            places = grid_positions(rows, columns, self.width)
        x = x + places.reshape(-1, self.width).astype(x.dtype)
        x = Dropout(shape['dropout'])(x, train=train)
        x = with_logical_constraint(x, ('batch', 'length', 'embed'))
        told = Conditioning(self.width, self.num_classes, name='conditioning')(noise, labels)
        routing = Routing(told=nn.silu(told).astype(self.dtype))
        x, _ = Stack(name='blocks', modulated=True, **shape)(x, routing)
        shift, scale = modulation(routing, 2, self.dtype, 'last_modulation')
        x = x * (1 + scale) + shift
        x = Dense(
            self.patch**2 * channels,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name='last',
        )(x)
        x = x.reshape(batch, rows, columns, self.patch, self.patch, channels).swapaxes(2, 3)
        return x.reshape(images.shape).astype(jnp.float32)


def grid_positions(rows: int, columns: int, width: int) -> jax.Array:
    """Sines and cosines of row and column, [rows, columns, width]."""
    rates = 10000 ** (-jnp.arange(width // 4) / (width // 4))
    row = jnp.arange(rows)[:, None, None] * rates
    column = jnp.arange(columns)[None, :, None] * rates
    parts = [jnp.sin(row), jnp.cos(row), jnp.sin(column), jnp.cos(column)]
    return jnp.concatenate(
        [jnp.broadcast_to(part, (rows, columns, width // 4)) for part in parts], axis=-1
    )
