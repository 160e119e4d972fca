"""A multilayer perceptron for vectors of features."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.api import Limits, Model
from jaxdl.errors import at_least, below_one, one_of
from jaxdl.models import layers


class Mlp(Model, nn.Module):
    """Dense layers with ReLU, then a classifier.

    Takes features [batch, features] and returns float32 logits [batch, num_classes].

    Attributes:
        widths: units of each hidden layer.
        num_classes: number of classes.
        dropout: probability of dropping a unit behind each hidden layer.
        dtype: compute precision, float32 or bfloat16.
    """

    scalars: ClassVar[tuple[str, ...]] = ('dropout',)
    sharding: ClassVar[tuple] = ((r'(^|/)(hidden\d+|classifier)/kernel$', ('fsdp', 'tensor')),)
    matrices: ClassVar[tuple] = ((r'^hidden[1-9]\d*/kernel$', 0),)

    widths: tuple[int, ...] = (128, 128)
    num_classes: int = 10
    dropout: float = 0.0
    dtype: str = 'float32'

    def limits(self) -> Limits:
        return Limits(classes=self.num_classes)

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        one_of(self, dtype=layers.DTYPES)
        below_one(self, 'dropout')
        at_least(self, num_classes=1)
        if min(self.widths, default=1) < 1:
            raise ValueError(f'widths={self.widths}: must be positive')

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        self.check()
        x = features.astype(self.dtype)
        for index, width in enumerate(self.widths):
            x = nn.relu(layers.Dense(width, dtype=self.dtype, name=f'hidden{index}')(x))
            x = layers.Dropout(self.dropout, name=f'dropout{index}')(x, train=train)
        x = layers.Dense(self.num_classes, dtype=self.dtype, name='classifier')(x)
        return x.astype(jnp.float32)
