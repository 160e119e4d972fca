"""What an algorithm asks of an environment: pure functions of one environment, under vmap in a run.

A class of your own derives from `Environment` and stands in a config like those of this folder.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.api import Tree


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions int32 [] in 0 … count - 1.

    Attributes:
        count: number of actions.
    """

    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """Actions float32 [shape] between two bounds.

    Attributes:
        low: least values, of the action's shape; all finite.
        high: greatest values, likewise.
    """

    low: np.ndarray
    high: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.low.shape

    def scaled(self, action: jax.Array) -> jax.Array:
        """The action for `action` [..., shape] in units in which the bounds are -1 and 1; clipped."""
        return jnp.asarray(self.low) + (jnp.clip(action, -1, 1) + 1) * (self.high - self.low) / 2


class Step(NamedTuple):
    """What follows an action.

    Attributes:
        state: the environment's new state.
        observation: of that state, also where the episode is over.
        reward: float32 [].
        terminated: bool [], the episode came to an end of its own: nothing more can be earned.
        truncated: bool [], it was cut off, such as by a time limit: more could have been earned.
    """

    state: Tree
    observation: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


class Environment(abc.ABC):
    """One environment. Its methods are traced, and must not keep anything but what they return.

    The state is a tree of arrays of fixed shapes and dtypes without typed keys, so that it can be
    saved. All randomness follows from `key`.
    """

    @abc.abstractmethod
    def reset(self, key: jax.Array) -> tuple[Tree, jax.Array]:
        """The state and the observation with which an episode begins."""

    @abc.abstractmethod
    def step(self, key: jax.Array, state: Tree, action: jax.Array) -> Step:
        """One step of an episode; nothing is reset at its end."""

    @property
    @abc.abstractmethod
    def actions(self) -> Discrete | Box:
        """The actions that `step` takes."""

    @property
    @abc.abstractmethod
    def limit(self) -> int:
        """The most steps of an episode: it has ended or is truncated by then."""

    @property
    def observation(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an observation."""
        return jax.eval_shape(self.reset, jax.random.key(0))[1]

    def renew(
        self, key: jax.Array, done: jax.Array, state: Tree, observation: jax.Array
    ) -> tuple[Tree, jax.Array]:
        """State and observation, or those of a new episode where `done` (bool [])."""
        return jax.tree.map(
            lambda new, old: jnp.where(done, new, old), self.reset(key), (state, observation)
        )

    def draw(self, state: Any, observation: np.ndarray) -> np.ndarray | None:
        """A picture uint8 [height, width, 3] of one state, by the host; None: it cannot be drawn."""
        del state, observation
        return None
