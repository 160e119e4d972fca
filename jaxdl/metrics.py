"""Metrics as sums and weights, divided only when they are logged.

Means of means are wrong under padding, masks, gradient accumulation and unequal shards; sums are
not. So a metric is `Mean(total, weight)` everywhere until it is logged.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


class Mean(flax.struct.PyTreeNode):
    """A weighted mean that has not been divided yet.

    Attributes:
        total: float32 sum of value * weight; a scalar, or an array for matrix-valued metrics.
        weight: float32 scalar sum of the weights.
    """

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: jax.Array, mask: jax.Array | None = None) -> 'Mean':
        """Sums `values` weighted by `mask`, which broadcasts from the left ([batch] to [batch, …])."""
        values = values.astype(jnp.float32)
        if mask is None:
            return cls(values.sum(), jnp.asarray(values.size, jnp.float32))
        mask = mask.astype(jnp.float32)
        mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
        mask = jnp.broadcast_to(mask, values.shape)
        # where, not a product: a padded row may hold inf or nan, and 0 * nan is nan.
        return cls(jnp.where(mask > 0, values * mask, 0.0).sum(), mask.sum())

    def merge(self, other: 'Mean') -> 'Mean':
        return Mean(self.total + other.total, self.weight + other.weight)

    def value(self) -> jax.Array:
        """total / weight, and 0 where nothing was counted."""
        return self.total / jnp.maximum(self.weight, jnp.finfo(jnp.float32).tiny)


@dataclasses.dataclass(frozen=True)
class MetricPacking:
    """Where each metric stands in the vector that a step returns.

    Attributes:
        shapes: {name: shape of the total}; a scalar is ().
    """

    shapes: dict[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) + 1 for shape in self.shapes.values())

    @classmethod
    def of(cls, metrics: dict[str, Mean]) -> 'MetricPacking':
        return cls({name: tuple(metrics[name].total.shape) for name in sorted(metrics)})

    def pack(self, metrics: dict[str, Mean]) -> jax.Array:
        parts = []
        for name in self.shapes:
            parts += [metrics[name].total.reshape(-1), metrics[name].weight.reshape(1)]
        return jnp.concatenate([part.astype(jnp.float32) for part in parts])

    def unpack(self, vector: np.ndarray) -> dict[str, tuple[np.ndarray, float]]:
        """{name: (total, weight)}; the vector may be a float64 sum over many steps."""
        found, place = {}, 0
        for name, shape in self.shapes.items():
            count = int(np.prod(shape))
            found[name] = (vector[place : place + count].reshape(shape), vector[place + count])
            place += count + 1
        return found

    def means(self, vector: np.ndarray) -> dict[str, Any]:
        """{name: total / weight}: floats, and arrays for matrix-valued metrics.

        Names that start with '_' are for the loop, and are left out.
        """
        found = {}
        for name, (total, weight) in self.unpack(np.asarray(vector, np.float64)).items():
            if name.startswith('_'):
                continue
            value = total / weight if weight else total * 0
            found[name] = float(value) if not value.shape else value
        return found
