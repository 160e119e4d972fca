"""Running means and variances as a state, to normalise observations and rewards."""

import flax.struct
import jax
import jax.numpy as jnp


class Moments(flax.struct.PyTreeNode):
    """Mean and variance of all that was seen (Chan, Golub and LeVeque 1979, for parts of a sample).

    Attributes:
        count: float32 [], how much was seen.
        mean: float32 [shape].
        variance: float32 [shape].
    """

    count: jax.Array
    mean: jax.Array
    variance: jax.Array

    @classmethod
    def fresh(cls, shape: tuple[int, ...] = ()) -> 'Moments':
        return cls(jnp.zeros(()), jnp.zeros(shape), jnp.ones(shape))

    def seen(self, values: jax.Array) -> 'Moments':
        """The moments after `values` [..., shape] too."""
        values = values.astype(jnp.float32)
        axes = tuple(range(values.ndim - self.mean.ndim))
        more = jnp.float32(values.size / max(self.mean.size, 1))
        mean, variance = values.mean(axes), values.var(axes)
        count = self.count + more
        apart = mean - self.mean
        squares = self.variance * self.count + variance * more
        squares += apart**2 * self.count * more / count
        return Moments(count, self.mean + apart * more / count, squares / count)

    def normalised(self, values: jax.Array, most: float = 10.0) -> jax.Array:
        """`values` [..., shape] with mean 0 and variance 1, clipped at ± `most`."""
        scaled = (values - self.mean) * jax.lax.rsqrt(self.variance + 1e-8)
        return jnp.clip(scaled, -most, most)


class RewardScale(flax.struct.PyTreeNode):
    """Divides rewards by the running standard deviation of the discounted return (arXiv:2005.12729).

    Attributes:
        moments: of the discounted return at every step.
        discounted: float32 [environments], the running discounted return of each.
    """

    moments: Moments
    discounted: jax.Array

    @classmethod
    def fresh(cls, environments: int) -> 'RewardScale':
        return cls(Moments.fresh(), jnp.zeros(environments))

    def seen(self, rewards: jax.Array, done: jax.Array, discount: float) -> 'RewardScale':
        """After rewards and ends of episodes [time, environments]."""

        def step(carry, row):
            reward, over = row
            carry = carry * discount + reward
            return jnp.where(over, 0.0, carry), carry

        discounted, values = jax.lax.scan(step, self.discounted, (rewards, done))
        return RewardScale(self.moments.seen(values), discounted)

    def scaled(self, rewards: jax.Array, most: float = 10.0) -> jax.Array:
        """The rewards in units of that deviation, clipped at ± `most`."""
        return jnp.clip(rewards * jax.lax.rsqrt(self.moments.variance + 1e-8), -most, most)
