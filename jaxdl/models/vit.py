"""The Vision Transformer (Dosovitskiy et al. 2020, arXiv:2010.11929)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint

from jaxdl.api import Limits
from jaxdl.errors import at_least, one_of
from jaxdl.models.attention import Routing
from jaxdl.models.layers import Conv, Dense, Dropout
from jaxdl.models.stack import Stack, Transformer


class ViT(Transformer):
    """Classifies images cut into patches; the defaults are ViT-Ti/16.

    `positions` is 'learned': a vector for each patch of the grid and one for the class token.

    Attributes:
        num_classes: number of classes.
        patch: side of a square patch, in pixels.
        pooling: 'class': a learned class token; 'mean': the mean of the patches, without one.
    """

    width: int = 192
    layers: int = 12
    heads: int = 3
    activation: str = 'gelu'
    norm_epsilon: float = 1e-6
    init_std: float = 0.02
    num_classes: int = 1000
    patch: int = 16
    pooling: str = 'class'

    def limits(self) -> Limits:
        return Limits(classes=self.num_classes)

    def check(self):
        super().check()
        at_least(self, num_classes=1, patch=1)
        one_of(self, positions=('learned',), pooling=('class', 'mean'))

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns float32 logits [batch, classes] of `images` [batch, height, width, channels]."""
        batch, height, width, channels = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f'patch={self.patch}: must divide the image size {height}×{width}')
        shape = self.shape(train)
        x = Conv(
            self.width,
            kernel_size=(self.patch, self.patch),
            strides=(self.patch, self.patch),
            padding='VALID',
            kernel_init=nn.initializers.normal((self.patch**2 * channels) ** -0.5),
            dtype=self.dtype,
            name='patches',
        )(images)
        # A grid, so that images of another shape with as many patches do not fit by accident.
        places = self.param('positions', nn.initializers.normal(0.02), x.shape[1:], jnp.float32)
        x = (x + places.astype(x.dtype)).reshape(batch, -1, self.width)
        if self.pooling == 'class':
            first = self.param('class_token', nn.initializers.zeros, (self.width,), jnp.float32)
            place = self.param(
                'class_position', nn.initializers.normal(0.02), (self.width,), jnp.float32
            )
            first = jnp.broadcast_to((first + place).astype(x.dtype), (batch, 1, self.width))
            x = jnp.concatenate([first, x], axis=1)
        x = Dropout(shape['dropout'])(x, train=train)
        x = with_logical_constraint(x, ('batch', 'length', 'embed'))
        x, _ = Stack(name='encoder', **shape)(x, Routing())
        x = x[:, 0] if self.pooling == 'class' else x.mean(axis=1)
        # Zeros: every class is equally likely at the start, as in the paper's own code.
        head = Dense(
            self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name='head'
        )
        return head(x).astype(jnp.float32)


def vit_ti(**changes) -> ViT:
    """Returns ViT-Ti: 5.7 million parameters with 16-pixel patches, 224-pixel images, 1000 classes."""
    return ViT(**changes)


def vit_s(**changes) -> ViT:
    """Returns ViT-S: 22.1 million parameters with 16-pixel patches, 224-pixel images, 1000 classes."""
    return ViT(**{**dict(width=384, heads=6), **changes})


def vit_b(**changes) -> ViT:
    """Returns ViT-B: 86.6 million parameters with 16-pixel patches, 224-pixel images, 1000 classes."""
    return ViT(**{**dict(width=768, heads=12), **changes})
