"""Environments with known values, for tests."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdl.environments.environment import Discrete, Environment, Step
from jaxdl.errors import at_least


@dataclasses.dataclass
class Chain(Environment):
    """Places 0 … length - 1 in a row; action 1 goes right, 0 stays; 1 for the last step to the end.

    Attributes:
        length: places.
        most: steps after which an episode is truncated.
        blind: the observation says nothing and no reward comes.
        endless: the last place pays 1 at every step and never ends.
    """

    length: int = 4
    most: int = 20
    blind: bool = False
    endless: bool = False

    def check(self):
        at_least(self, length=2, most=1)

    @property
    def actions(self):
        return Discrete(2)

    @property
    def limit(self):
        return self.most

    def _seen(self, place):
        shown = jnp.zeros_like(place) if self.blind else place
        return jax.nn.one_hot(shown, self.length)

    def reset(self, key):
        del key
        place = jnp.zeros((), jnp.int32)
        return (place, place), self._seen(place)

    def step(self, key, state, action):
        del key
        place, time = state
        last = self.length - 1
        new = jnp.minimum(place + action, last)
        if self.endless:
            reward, ended = (place == last) * 1.0, jnp.zeros((), bool)
        else:
            reward, ended = (new == last) * 1.0, new == last
        reward = jnp.zeros(()) if self.blind else reward
        over = time + 1 >= self.most
        return Step((new, time + 1), self._seen(new), reward, ended, over)
