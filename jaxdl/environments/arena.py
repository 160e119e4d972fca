"""Many environments side by side: what a run keeps of them, and one step of all."""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from jaxdl.api import Tree
from jaxdl.environments.environment import Environment


class Arena(flax.struct.PyTreeNode):
    """The environments of a run, all arrays [environments, …]; part of the run's state.

    Attributes:
        state: the environments' states.
        observation: what is seen now.
        first: bool, whether that begins an episode.
        earned: float32, the rewards of the running episode so far.
        length: int32, its steps so far.
        last_return: float32, the return of the newest finished episode.
        last_length: int32, its steps.
        finished: int32, finished episodes.
    """

    state: Tree
    observation: jax.Array
    first: jax.Array
    earned: jax.Array
    length: jax.Array
    last_return: jax.Array
    last_length: jax.Array
    finished: jax.Array


class Transition(NamedTuple):
    """What one step of all environments gave, all [environments, …].

    Attributes:
        observation: what the actions were chosen on.
        first: bool, whether that began an episode.
        action: as the environments took it.
        reward: float32.
        terminated: bool, the episode came to an end of its own.
        truncated: bool, it was cut off and not terminated.
        next_observation: what followed; at the end of an episode its last observation, which the
            arena does not show any more.
    """

    observation: jax.Array
    first: jax.Array
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    next_observation: jax.Array

    @property
    def done(self) -> jax.Array:
        return self.terminated | self.truncated


def begin(environment: Environment, key: jax.Array, count: int) -> Arena:
    """`count` environments at the start of an episode each."""
    state, observation = jax.vmap(environment.reset)(jax.random.split(key, count))
    whole, real = jnp.zeros(count, jnp.int32), jnp.zeros(count, jnp.float32)
    return Arena(state, observation, jnp.ones(count, bool), real, whole, real, whole, whole)


def advance(
    environment: Environment, arena: Arena, action: jax.Array, key: jax.Array
) -> tuple[Arena, Transition]:
    """One step of all environments; those at the end of an episode begin another one.

    Each environment's randomness is that of its place in the arena, on any number of devices.
    """
    count = len(arena.first)
    step_key, reset_key = jax.random.split(key)
    step = jax.vmap(environment.step)(jax.random.split(step_key, count), arena.state, action)
    truncated = step.truncated & ~step.terminated
    done = step.terminated | truncated
    state, observation = jax.vmap(environment.renew)(
        jax.random.split(reset_key, count), done, step.state, step.observation
    )
    earned, length = arena.earned + step.reward, arena.length + 1
    transition = Transition(
        arena.observation,
        arena.first,
        action,
        step.reward,
        step.terminated,
        truncated,
        step.observation,
    )
    arena = Arena(
        state=state,
        observation=observation,
        first=done,
        earned=jnp.where(done, 0, earned),
        length=jnp.where(done, 0, length),
        last_return=jnp.where(done, earned, arena.last_return),
        last_length=jnp.where(done, length, arena.last_length),
        finished=arena.finished + done,
    )
    return arena, transition
