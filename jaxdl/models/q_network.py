"""Networks that give the values of actions: Q(observation) of each discrete action, Q(observation, action)."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.api import Model
from jaxdl.errors import at_least
from jaxdl.models import layers


class Torso(nn.Module):
    """Observations [batch, …] to features [batch, last width]: convolutions if any, hidden layers.

    Attributes:
        channels: output channels of 3×3 convolutions without padding, for observations
            [batch, height, width, channels]; (): none.
        widths: units of each hidden layer.
        norm: LayerNorm before each ReLU (which keeps Q-learning stable, arXiv:2407.04811).
    """

    channels: tuple[int, ...] = ()
    widths: tuple[int, ...] = (64, 64)
    norm: bool = False

    @nn.compact
    def __call__(self, observations: jax.Array) -> jax.Array:
        x = observations.astype(jnp.float32)
        for index, features in enumerate(self.channels):
            x = layers.Conv(
                features,
                padding='VALID',
                kernel_init=layers.he_normal_fan_out,
                name=f'conv{index}',
            )(x)
            x = self._activate(x, f'conv{index}_norm')
        x = x.reshape(len(x), -1)
        for index, width in enumerate(self.widths):
            x = layers.Dense(width, kernel_init=nn.initializers.he_normal(), name=f'dense{index}')(
                x
            )
            x = self._activate(x, f'dense{index}_norm')
        return x

    def _activate(self, x: jax.Array, name: str) -> jax.Array:
        return nn.relu(nn.LayerNorm(name=name)(x) if self.norm else x)


class QNetwork(Model, nn.Module):
    """Takes observations [batch, …], returns the values of all actions, float32 [batch, actions].

    Attributes:
        actions: number of actions.
        channels: output channels of 3×3 convolutions, for pictures; (): none.
        widths: units of each hidden layer.
        norm: LayerNorm before each ReLU; PQN needs it.
        duelling: the value of the observation plus the advantage of each action, whose mean is 0
            (arXiv:1511.06581).
    """

    actions: int = 2
    channels: tuple[int, ...] = ()
    widths: tuple[int, ...] = (64, 64)
    norm: bool = False
    duelling: bool = False

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        at_least(self, actions=1)
        check_sizes(self, 'channels', 'widths')

    @nn.compact
    def __call__(self, observations: jax.Array, *, train: bool) -> jax.Array:
        del train
        x = Torso(self.channels, self.widths, self.norm, name='torso')(observations)
        values = layers.Dense(self.actions, name='actions')(x)
        if not self.duelling:
            return values
        return layers.Dense(1, name='value')(x) + values - values.mean(-1, keepdims=True)


class SoftActorCritic(Model, nn.Module):
    """A Gaussian policy, two critics and a temperature: the groups 'actor', 'critic', 'temperature'.

    Takes observations [batch, …], returns (mean, log standard deviation), each [batch, actions], of
    the action before it is squashed by tanh (arXiv:1812.05905).

    Attributes:
        actions: numbers in an action.
        channels: output channels of 3×3 convolutions, for pictures; (): none.
        widths: units of each hidden layer, in the actor and in each critic.
        norm: LayerNorm before each ReLU of the critics.
        temperature: the temperature to begin with.
    """

    LOG_STD: ClassVar[tuple[float, float]] = (-5.0, 2.0)

    actions: int = 1
    channels: tuple[int, ...] = ()
    widths: tuple[int, ...] = (256, 256)
    norm: bool = False
    temperature: float = 1.0

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        at_least(self, actions=1)
        check_sizes(self, 'channels', 'widths')
        if not self.temperature > 0:
            raise ValueError(f'temperature={self.temperature}: must be above 0')

    def setup(self):
        self.actor = Actor(self.actions, self.channels, self.widths)
        critics = nn.vmap(
            Critic,
            in_axes=None,  # pyright: ignore[reportArgumentType]
            axis_size=2,
            variable_axes={'params': 0},
            split_rngs={'params': True},
        )
        self.critic = critics(self.channels, self.widths, self.norm)
        self.heat = Temperature(self.temperature, name='temperature')

    def __call__(self, observations: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        mean, log_std = self.actor(observations)
        if self.is_initializing():
            self.critic(observations, mean)
            self.heat()
        return mean, log_std

    def values(self, observations: jax.Array, actions: jax.Array, *, train: bool) -> jax.Array:
        """Q of actions [batch, actions] in (-1, 1) by both critics: float32 [2, batch]."""
        del train
        return self.critic(observations, actions)

    def log_temperature(self, *, train: bool) -> jax.Array:
        """The logarithm of the temperature, float32 []."""
        del train
        return self.heat()


class Actor(nn.Module):
    """Observations to (mean, log standard deviation), each [batch, actions]; see SoftActorCritic."""

    actions: int
    channels: tuple[int, ...]
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = Torso(self.channels, self.widths, name='torso')(observations)
        mean = layers.Dense(self.actions, name='mean')(x)
        low, high = SoftActorCritic.LOG_STD
        log_std = jnp.tanh(layers.Dense(self.actions, name='log_std')(x))
        return mean, low + (high - low) * (log_std + 1) / 2


class Critic(nn.Module):
    """Observations [batch, …] and actions [batch, actions] to values [batch]; see SoftActorCritic."""

    channels: tuple[int, ...]
    widths: tuple[int, ...]
    norm: bool

    @nn.compact
    def __call__(self, observations: jax.Array, actions: jax.Array) -> jax.Array:
        x = observations.astype(jnp.float32)
        if self.channels:
            x = Torso(self.channels, (), self.norm, name='eyes')(x)
        x = jnp.concatenate([x.reshape(len(x), -1), actions], -1)
        x = Torso((), self.widths, self.norm, name='torso')(x)
        return layers.Dense(1, name='value')(x)[:, 0]


class Temperature(nn.Module):
    """The logarithm of a positive number that is learned."""

    start: float

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param('log', lambda _: jnp.log(jnp.float32(self.start)))


def check_sizes(holder: Any, *names: str) -> None:
    """Raises ValueError where a tuple of sizes holds one below 1."""
    for name in names:
        if any(size < 1 for size in getattr(holder, name)):
            raise ValueError(
                f'{name}={getattr(holder, name)}: must be positive, one number a layer'
            )
