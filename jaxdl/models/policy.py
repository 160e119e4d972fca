"""Networks that choose actions and value states: fully connected, convolutional, recurrent."""

from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.api import Model
from jaxdl.errors import at_least, one_of
from jaxdl.models.layers import DTYPES, Conv, Dense
from jaxdl.models.moments import Moments
from jaxdl.models.rnn import RecurrentLayer

ACTIVATIONS = {'tanh': nn.tanh, 'relu': nn.relu, 'silu': nn.silu}


class Categorical(flax.struct.PyTreeNode):
    """A distribution over actions 0 … count - 1.

    Attributes:
        logits: float32 [..., count].
    """

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return jax.random.categorical(key, self.logits)

    def mode(self) -> jax.Array:
        return self.logits.argmax(-1)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Float32 [...] of actions int [...]."""
        # A product with the one-hot vector: gathers are slow, and so are their gradients.
        chosen = jax.nn.one_hot(action, self.logits.shape[-1])
        return (jax.nn.log_softmax(self.logits) * chosen).sum(-1)

    def entropy(self) -> jax.Array:
        logs = jax.nn.log_softmax(self.logits)
        return -(jnp.exp(logs) * logs).sum(-1)


class Gaussian(flax.struct.PyTreeNode):
    """Independent normal distributions of the entries of an action.

    Attributes:
        mean: float32 [..., entries], in units in which the environment's bounds are -1 and 1.
        log_std: float32, broadcasts to `mean`.
    """

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, self.mean.shape)
        return self.mean + jnp.exp(self.log_std) * noise

    def mode(self) -> jax.Array:
        return self.mean

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Float32 [...] of actions [..., entries]."""
        apart = (action - self.mean) * jnp.exp(-self.log_std)
        return (-0.5 * apart**2 - self.log_std - 0.5 * np.log(2 * np.pi)).sum(-1)

    def entropy(self) -> jax.Array:
        one = self.log_std + 0.5 * np.log(2 * np.pi * np.e)
        return jnp.broadcast_to(one, self.mean.shape).sum(-1)


class Acted(flax.struct.PyTreeNode):
    """What an actor-critic says of observations [batch, time, …].

    Attributes:
        policy: Categorical or Gaussian, [batch, time, …].
        value: float32 [batch, time].
        memory: float32 [batch, units], what a recurrent network goes on with; [batch, 0] otherwise.
    """

    policy: Any
    value: jax.Array
    memory: jax.Array


class Torso(nn.Module):
    """Observations [..., shape] to features [..., width].

    Attributes:
        channels: 3×3 convolutions without padding over the last three dimensions; (): none.
        widths: units of the fully connected layers that follow.
        activation: after each layer.
        dtype: compute precision.
    """

    channels: tuple[int, ...]
    widths: tuple[int, ...]
    activation: str
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        orthogonal = nn.initializers.orthogonal(np.sqrt(2))
        if self.channels:
            lead = x.shape[:-3]
            x = x.reshape(-1, *x.shape[-3:])
            for index, channels in enumerate(self.channels):
                conv = Conv(
                    channels,
                    padding='VALID',
                    dtype=self.dtype,
                    kernel_init=orthogonal,
                    name=f'conv_{index}',
                )
                x = act(conv(x))
            x = x.reshape(*lead, -1)
        for index, width in enumerate(self.widths):
            dense = Dense(width, dtype=self.dtype, kernel_init=orthogonal, name=f'dense_{index}')
            x = act(dense(x))
        return x


class Normaliser(nn.Module):
    """Observations [batch, time, …] with running mean 0 and variance 1, kept in 'statistics'."""

    @nn.compact
    def __call__(self, x: jax.Array, *, observe: bool = False) -> jax.Array:
        """`x` normalised by what was observed before; with `observe` it is observed as well."""
        moments = self.variable('statistics', 'moments', Moments.fresh, x.shape[2:])
        before = moments.value
        if observe:
            moments.value = before.seen(x)
        return before.normalised(x)


class ActorCritic(Model, nn.Module):
    """A policy and a value function, apart or on a common torso, with or without a memory.

    Attributes:
        actions: number of discrete actions, or entries of a continuous one.
        continuous: whether actions are vectors of numbers; their standard deviation is a parameter.
        channels: 3×3 convolutions before the fully connected layers, for images; (): none.
        widths: units of the fully connected layers.
        activation: after each layer: 'tanh', 'relu' or 'silu'.
        shared: one torso for policy and value; a network with a memory always shares it.
        memory: units of a GRU after the torso; 0: none.
        normalised: subtract the running mean of the observations and divide by their deviation; both belong to the model's state.
        log_std: logarithm of the standard deviation of a continuous action at the start.
        dtype: compute precision, float32 or bfloat16.
    """

    matrices: ClassVar[tuple] = ((r'(^|/)dense_\d+/kernel$', 0),)

    actions: int = 2
    continuous: bool = False
    channels: tuple[int, ...] = ()
    widths: tuple[int, ...] = (64, 64)
    activation: str = 'tanh'
    shared: bool = False
    memory: int = 0
    normalised: bool = False
    log_std: float = 0.0
    dtype: str = 'float32'

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        at_least(self, actions=1, memory=0)
        one_of(self, activation=ACTIVATIONS, dtype=DTYPES)
        if min((1, *self.widths, *self.channels)) < 1:
            raise ValueError(f'widths={self.widths}, channels={self.channels}: must be positive')
        if not (self.widths or self.channels):
            raise ValueError('widths=(): a network needs at least one layer')

    def setup(self):
        if self.normalised:
            self.normaliser = Normaliser()
        parts = (self.channels, self.widths, self.activation, self.dtype)
        self.torso = Torso(*parts)
        if not (self.shared or self.memory):
            self.critic_torso = Torso(*parts)
        if self.memory:
            self.cell = RecurrentLayer(self.memory, cell='gru', dtype=self.dtype)
        small, one = nn.initializers.orthogonal(0.01), nn.initializers.orthogonal(1.0)
        self.actor = Dense(self.actions, dtype=self.dtype, kernel_init=small)
        self.critic = Dense(1, dtype=self.dtype, kernel_init=one)
        if self.continuous:
            start = nn.initializers.constant(self.log_std)
            self.deviation = self.param('log_std', start, (self.actions,), jnp.float32)

    @nn.nowrap
    def blank(self, batch: int, *, train: bool = False) -> jax.Array:
        """The memory with which an episode begins, [batch, units]."""
        del train
        return jnp.zeros((batch, self.memory))

    def observe(self, observation: jax.Array, *, train: bool = True) -> None:
        """Adds observations [batch, time, …] to the running mean and deviation."""
        del train
        if self.normalised:
            self.normaliser(observation.astype(jnp.float32), observe=True)

    def __call__(
        self,
        observation: jax.Array,
        first: jax.Array | None = None,
        memory: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> Acted:
        """What to do on observations [batch, time, …] and what they are worth.

        Args:
            observation: [batch, time, …].
            first: bool [batch, time], whether an episode begins, so that the memory is blank; None:
                nowhere but at the start.
            memory: [batch, units] before the first of them; None: blank.
        """
        del train
        self.check()
        x = observation.astype(jnp.float32)
        x = self.normaliser(x) if self.normalised else x
        features = self.torso(x)
        if memory is None:
            memory = self.blank(len(x))
        if self.memory:
            segments = None
            if first is not None:
                memory = jnp.where(first[:, :1], 0, memory)
                segments = jnp.cumsum(first.astype(jnp.int32), axis=1)
            carry = memory.astype(self.dtype)
            features, carry = self.cell(features, carry, segments=segments)
            memory = jnp.asarray(carry, jnp.float32)
        other = features if self.shared or self.memory else self.critic_torso(x)
        outputs = self.actor(features).astype(jnp.float32)
        policy = Gaussian(outputs, self.deviation) if self.continuous else Categorical(outputs)
        return Acted(policy, self.critic(other)[..., 0].astype(jnp.float32), memory)
