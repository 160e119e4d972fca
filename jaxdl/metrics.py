"""Metrics as sums and weights, divided only at the very end.

Means of means are wrong under padding, masks, gradient accumulation and unequal shards; sums are
not. So a metric is `Mean(total, weight)` everywhere until it is written down.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Mean:
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
