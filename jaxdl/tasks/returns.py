"""Targets of reinforcement learning: advantages and returns of a piece of experience.

All arrays are [time, …] with time from early to late. `next_value` is the value of what followed
each step: where an episode was cut off, that of its last observation. So a time limit is bootstrapped
from, and an end is not.
"""

import jax
import jax.numpy as jnp

Number = float | jax.Array


def _backward(step, carry, *rows):
    return jax.lax.scan(step, carry, rows, reverse=True)[1]


def advantages(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    done: jax.Array,
    discount: Number,
    trace: Number,
) -> jax.Array:
    """Generalised advantage estimation (arXiv:1506.02438), of the shape of `reward`.

    Args:
        reward: of each step.
        value: of what each step was chosen on.
        next_value: of what followed it.
        terminated: whether the episode ended with it.
        done: whether it ended or was cut off with it.
        discount: γ.
        trace: λ; 0 is one step, 1 the whole rest of the piece.
    """
    error = reward + discount * next_value * ~terminated - value

    def step(after, row):
        error, over = row
        now = error + discount * trace * ~over * after
        return now, now

    return _backward(step, jnp.zeros_like(reward[0]), error, done)


def lambda_returns(
    reward: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    done: jax.Array,
    discount: Number,
    trace: Number,
) -> jax.Array:
    """λ-returns, the mixture of all n-step returns (Sutton and Barto 2018, chapter 12).

    The arguments are those of `advantages`; the sum of its result and the values is the same.
    """

    def step(after, row):
        reward, following, ended, over = row
        mixed = jnp.where(over, following, following + trace * (after - following))
        now = reward + discount * ~ended * mixed
        return now, now

    return _backward(step, next_value[-1], reward, next_value, terminated, done)


def n_step_returns(
    reward: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    done: jax.Array,
    discount: Number,
    steps: int,
) -> jax.Array:
    """Returns of `steps` rewards and the value that follows them.

    They are shorter at the end of an episode and of the piece. The arguments are those of
    `advantages`.
    """
    last = len(reward) - 1

    def shifted(x):
        """x of the step after each; the last step keeps its own."""
        return jnp.concatenate([x[1:], x[-1:]])

    found = reward + discount * ~terminated * next_value
    stops = done | (jnp.arange(len(reward)) == last).reshape(-1, *[1] * (reward.ndim - 1))
    one = found
    for _ in range(steps - 1):
        found = jnp.where(stops, one, reward + discount * shifted(found))
    return found
