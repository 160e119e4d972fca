"""The replay buffer against lists in Python: what is kept, n-step transitions, priorities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.environments.arena import Transition
from jaxdl.tasks.replay import Replay

GAMMA = 0.9


def stream(length: int, environments: int, seed: int = 0):
    """Steps of environments whose observations count up: the number tells where a sample is from."""
    rng = np.random.default_rng(seed)
    steps = []
    for step in range(length):
        terminated = rng.random(environments) < 0.15
        done = terminated | (rng.random(environments) < 0.15)
        number = step * environments + np.arange(environments)
        steps.append(
            Transition(
                observation=number.astype(np.float32)[:, None],
                first=np.zeros(environments, bool),
                action=rng.integers(0, 5, environments).astype(np.int32),
                reward=rng.normal(size=environments).astype(np.float32),
                terminated=terminated,
                truncated=done & ~terminated,
                next_observation=number.astype(np.float32)[:, None] + 0.5,
            )
        )
    return steps


def filled(replay: Replay, steps):
    stored = replay.start(jax.tree.map(jnp.asarray, steps[0]))
    add = jax.jit(replay.add)
    for rows in steps:
        stored = add(stored, jax.tree.map(jnp.asarray, rows))
    return stored


def expected(steps, environment: int, start: int, most: int):
    """(reward, next observation, discount) of a transition over `most` steps, step by step."""
    reward, factor = 0.0, 1.0
    for rows in steps[start : start + most]:
        reward += factor * rows.reward[environment]
        factor *= GAMMA
        after = rows.next_observation[environment, 0]
        if rows.done[environment]:
            return reward, after, 0.0 if rows.terminated[environment] else factor
    return reward, after, factor


@settings(max_examples=12, deadline=None)
@given(
    length=st.integers(1, 40),
    environments=st.sampled_from([1, 3]),
    slots=st.just(9),
    most=st.sampled_from([1, 3]),
    priority=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 99),
)
def test_samples_are_the_transitions_of_a_list(length, environments, slots, most, priority, seed):
    replay = Replay(environments * slots, minimum=environments, steps=most, priority=priority)
    steps = stream(length, environments, seed)
    stored = filled(replay, steps)
    assert bool(replay.ready(stored)) == (length >= most)
    if length < most:
        return
    sample = jax.jit(lambda s, key: replay.sample(s, key, 64 * environments, discount=GAMMA))(
        stored, jax.random.key(seed)
    )
    kept = range(max(0, length - slots), length - most + 1)
    numbers = np.asarray(sample.observation[:, 0]).astype(int)
    found = set()
    for row, number in enumerate(numbers):
        start, environment = divmod(int(number), environments)
        assert start in kept and row // 64 == environment
        found.add((start, environment))
        reward, after, discount = expected(steps, environment, start, most)
        assert sample.reward[row] == pytest.approx(reward, abs=1e-5)
        assert float(sample.next_observation[row, 0]) == after
        assert sample.discount[row] == pytest.approx(discount, abs=1e-6)
        assert sample.action[row] == steps[start].action[environment]
    # 64 samples of at most 9 transitions: that one of them never comes has a chance below 1 in 200.
    assert len(found) >= len(kept) * environments - 2
    np.testing.assert_allclose(sample.weight, 1, rtol=1e-5)  # new transitions are all alike


def test_uniform_sampling_is_uniform():
    replay = Replay(2 * 50, minimum=2)
    stored = filled(replay, stream(73, 2))
    sample = replay.sample(stored, jax.random.key(1), 2 * 20_000, discount=GAMMA)
    numbers = np.asarray(sample.observation[:, 0]).astype(int)
    counts = np.bincount(numbers - 2 * 23)
    assert counts.shape == (100,) and np.abs(counts / 400 - 1).max() < 0.25  # 5 standard errors


def test_prioritised_frequencies_and_weights():
    """Probabilities p^α / Σ p^α and weights (N P)^-β (arXiv:1511.05952, equations 1 and 3.4)."""
    replay = Replay(2 * 200, minimum=2, priority=0.5, correction=0.4)
    stored = filled(replay, stream(260, 2))
    errors = np.random.default_rng(0).exponential(size=(2, 200)).astype(np.float32)
    every = jnp.tile(jnp.arange(200, dtype=jnp.int32), (2, 1))
    stored = replay.prioritise(stored, every, jnp.asarray(errors.reshape(-1)))
    chance = np.sqrt(errors + 1e-6)
    chance /= chance.sum(1, keepdims=True)
    sample = replay.sample(stored, jax.random.key(0), 2 * 50_000, discount=1.0, progress=0.5)
    slots = np.asarray(sample.slot)
    for row in range(2):
        found = np.bincount(slots[row], minlength=200) / 50_000
        np.testing.assert_allclose(
            found, chance[row], atol=5e-4
        )  # stratified: within one sample or two
    weights = (200 * np.take_along_axis(chance, slots, 1)) ** -0.7
    np.testing.assert_allclose(sample.weight, (weights / weights.max()).reshape(-1), rtol=1e-4)


def test_the_newest_steps_wait_for_their_last_and_get_the_largest_priority():
    replay = Replay(100, minimum=1, steps=3, priority=1.0)
    steps = stream(150, 1)
    stored = filled(replay, steps)
    assert np.count_nonzero(stored.priorities) == 98
    slot = jnp.array([[10, 10, 11]])
    stored = replay.prioritise(stored, slot, jnp.array([7.0, -2.0, 0.5]))
    assert float(stored.priorities[0, 10]) == pytest.approx(7)  # the larger of the two
    # The next step completes the transition that began two steps before it, in slot 148 % 100.
    assert float(stored.priorities[0, 48]) == 0
    stored = replay.add(stored, jax.tree.map(jnp.asarray, steps[0]))
    assert float(stored.priorities[0, 48]) == pytest.approx(7)
    assert float(stored.priorities[0, 50]) == 0  # written just now
    # A slot that must not be sampled keeps its priority of 0.
    stored = replay.prioritise(stored, jnp.array([[50]]), jnp.array([3.0]))
    assert float(stored.priorities[0, 50]) == 0


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'minimum': 200}, 'minimum=200: must be at most capacity=100'),
        ({'steps': 0}, 'steps=0: must be at least 1'),
        ({'correction': 2.0}, 'correction=2.0: must be in'),
    ],
)
def test_wrong_fields(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Replay(100, minimum=10), **change).check()


def test_what_does_not_divide():
    with pytest.raises(ValueError, match='capacity=100: must be a multiple of the 3 environments'):
        Replay(100).slots(3)
    replay = Replay(100, minimum=10)
    stored = filled(replay, stream(2, 2))
    with pytest.raises(ValueError, match='3 samples cannot be taken alike from 2 environments'):
        replay.sample(stored, jax.random.key(0), 3, discount=GAMMA)
