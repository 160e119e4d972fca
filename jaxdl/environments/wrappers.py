"""Environments made of another one: time limits, frame stacking, sticky actions, hidden entries."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.api import Tree
from jaxdl.environments.environment import Box, Discrete, Environment, Step
from jaxdl.errors import at_least


@dataclasses.dataclass
class Wrapper(Environment):
    """Does what `environment` does; subclasses change something. Their state is (inner, own).

    Attributes:
        environment: the environment inside.
    """

    environment: Environment

    @property
    def actions(self) -> Discrete | Box:
        return self.environment.actions

    @property
    def limit(self) -> int:
        return self.environment.limit

    def reset(self, key: jax.Array) -> tuple[Tree, jax.Array]:
        state, observation = self.environment.reset(key)
        return (state, ()), observation

    def step(self, key: jax.Array, state: Tree, action: jax.Array) -> Step:
        inner, own = state
        step = self.environment.step(key, inner, action)
        return step._replace(state=(step.state, own))

    def draw(self, state: Any, observation: np.ndarray) -> np.ndarray | None:
        return self.environment.draw(state[0], observation)


@dataclasses.dataclass
class TimeLimit(Wrapper):
    """Truncates an episode after `most` steps.

    Attributes:
        most: steps of an episode.
    """

    most: int = 1000

    def check(self):
        at_least(self, most=1)

    @property
    def limit(self) -> int:
        return min(self.most, self.environment.limit)

    def reset(self, key):
        state, observation = self.environment.reset(key)
        return (state, jnp.zeros((), jnp.int32)), observation

    def step(self, key, state, action):
        inner, count = state
        step = self.environment.step(key, inner, action)
        over = count + 1 >= self.most
        return step._replace(state=(step.state, count + 1), truncated=step.truncated | over)


@dataclasses.dataclass
class StickyActions(Wrapper):
    """Repeats the last action instead of the given one with a probability (arXiv:1709.06009).

    The first action of an episode is always the given one.

    Attributes:
        probability: of repeating the last action; 0.25 for Atari, 0.1 for MinAtar.
    """

    probability: float = 0.1

    def check(self):
        if not 0 <= self.probability < 1:
            raise ValueError(f'probability={self.probability}: must be in [0, 1)')

    def reset(self, key):
        state, observation = self.environment.reset(key)
        space = self.actions
        shape, kind = ((), jnp.int32) if isinstance(space, Discrete) else (space.shape, jnp.float32)
        return (state, (jnp.zeros((), bool), jnp.zeros(shape, kind))), observation

    def step(self, key, state, action):
        inner, (begun, last) = state
        key, own = jax.random.split(key)
        stuck = begun & jax.random.bernoulli(own, self.probability)
        action = jnp.where(stuck, last, action).astype(last.dtype)
        step = self.environment.step(key, inner, action)
        return step._replace(state=(step.state, (jnp.ones((), bool), action)))


@dataclasses.dataclass
class FrameStack(Wrapper):
    """Observes the last `frames` observations, side by side in the last dimension, newest last.

    An episode begins with its first observation repeated.

    Attributes:
        frames: observations that are seen at a time.
    """

    frames: int = 4

    def check(self):
        at_least(self, frames=1)

    def reset(self, key):
        state, observation = self.environment.reset(key)
        stacked = jnp.concatenate([observation] * self.frames, -1)
        return (state, stacked), stacked

    def step(self, key, state, action):
        inner, stacked = state
        step = self.environment.step(key, inner, action)
        size = step.observation.shape[-1]
        stacked = jnp.concatenate([stacked[..., size:], step.observation], -1)
        return step._replace(state=(step.state, stacked), observation=stacked)

    def draw(self, state, observation):
        size = observation.shape[-1] // self.frames
        return self.environment.draw(state[0], observation[..., -size:])


@dataclasses.dataclass
class Visible(Wrapper):
    """Observes only some entries of an observation [entries], such as positions without velocities.

    Attributes:
        entries: the indices of the entries that are seen.
    """

    entries: tuple[int, ...] = ()

    def check(self):
        inner = getattr(self.environment, 'check', None)
        if inner is not None:  # its observation cannot be known before it is right
            inner()
        size = self.environment.observation.shape[-1]
        if not self.entries or not all(0 <= entry < size for entry in self.entries):
            raise ValueError(f'entries={self.entries}: must be indices from 0 to {size - 1}')

    def reset(self, key):
        state, observation = self.environment.reset(key)
        return (state, ()), observation[..., jnp.asarray(self.entries)]

    def step(self, key, state, action):
        step = super().step(key, state, action)
        return step._replace(observation=step.observation[..., jnp.asarray(self.entries)])
