"""Gymnasium's environments behind pure functions, against Gymnasium itself."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.environments import arena as arena_lib
from jaxdl.environments.environment import Discrete
from jaxdl.environments.gymnasium import Gymnasium, Host
from jaxdl.environments.gymnax import Gymnax

KEY = jax.random.key(0)


def plain(name, seed, actions):
    """[(observation, reward, terminated, truncated)] of Gymnasium alone."""
    environment = gymnasium.make(name)
    found = [(environment.reset(seed=seed)[0], 0, False, False)]
    for action in actions:
        found.append(environment.step(action)[:4])
    return found


@pytest.mark.parametrize('name', ['CartPole-v1', 'Pendulum-v1', 'LunarLander-v3'])
def test_episodes_are_those_of_gymnasium(name):
    if name.startswith('Lunar'):
        pytest.importorskip('Box2D')
    ours = Gymnasium(name)
    ours.check()
    state, observation = jax.jit(ours.reset)(KEY)
    rng, step = np.random.default_rng(0), jax.jit(ours.step)
    space = ours.actions
    actions = [
        int(rng.integers(space.count))
        if isinstance(space, Discrete)
        else rng.uniform(space.low, space.high).astype(np.float32)
        for _ in range(15)
    ]
    theirs = plain(name, int(state['seed']), actions)
    np.testing.assert_array_equal(observation, theirs[0][0])
    for action, (seen, reward, terminated, truncated) in zip(actions, theirs[1:], strict=True):
        found = step(KEY, state, action)
        np.testing.assert_array_equal(found.observation, seen.astype(np.float32))
        assert float(found.reward) == pytest.approx(float(reward), rel=1e-6)
        assert (bool(found.terminated), bool(found.truncated)) == (terminated, truncated)
        state = found.state
        if terminated:
            break
    again = step(KEY, state, action)
    assert not terminated or (bool(again.terminated) and float(again.reward) == 0)


def test_a_state_can_be_taken_up_again_by_another_host():
    """As after a resume: the objects are gone, and the actions of the episode are played again."""
    first = Gymnasium('LunarLander-v3', kept=5)
    state, _ = first.reset(KEY)
    states = [state]
    for index in range(12):
        states.append(first.step(KEY, states[-1], jnp.int32(index % 4)).state)
    ahead = first.step(KEY, states[-1], jnp.int32(2))
    host = Host('LunarLander-v3', (), 0, 5)
    found = host.step(states[-1], np.int32(2))
    assert host.replayed == 12
    for a, b in zip(ahead[1:], found[:4], strict=True):
        np.testing.assert_array_equal(a, b)
    # The same state once more, on the host that had it: what it had has gone on.
    again = first.step(KEY, states[-1], jnp.int32(2))
    np.testing.assert_array_equal(again.observation, ahead.observation)
    assert first._host.replayed == 12
    branch = first.step(KEY, states[5], jnp.int32(1))  # and from the middle of the episode
    other = Host('LunarLander-v3', (), 0, 5).step(states[5], np.int32(1))
    np.testing.assert_array_equal(branch.observation, other[0])


def test_an_arena_of_them():
    environment = Gymnasium('CartPole-v1', most=9)
    arena = arena_lib.begin(environment, KEY, 3)
    host = environment._host
    host.replayed = 0
    advance = jax.jit(
        lambda arena, key: arena_lib.advance(environment, arena, jnp.ones(3, int), key)
    )
    seeds, ends = [np.asarray(arena.state['seed'])], 0
    for index in range(20):
        before = np.asarray(arena.observation)
        arena, seen = advance(arena, jax.random.fold_in(KEY, index))
        np.testing.assert_array_equal(seen.observation, before)
        ends += int(seen.done.sum())
        if seen.done.any():
            seeds.append(np.asarray(arena.state['seed']))
            np.testing.assert_array_equal(
                arena.observation[np.flatnonzero(seen.done)[0]],
                gymnasium.make('CartPole-v1').reset(
                    seed=int(seeds[-1][np.flatnonzero(seen.done)[0]])
                )[0],
            )
    assert ends >= 6 and len({*np.concatenate(seeds).tolist()}) == ends + 3
    assert host.replayed == 0


def test_gymnax_has_the_same_cart_pole():
    """Same state, same actions: the two implementations agree to the precision of float32."""
    ours, theirs = Gymnax('CartPole-v1'), gymnasium.make('CartPole-v1').unwrapped
    state, observation = ours.reset(KEY)
    theirs.reset(seed=0)
    theirs.state = np.asarray(observation, np.float64)
    step = jax.jit(ours.step)
    for index in range(8):
        found = step(KEY, state, index % 2)
        state = found.state
        np.testing.assert_allclose(found.observation, theirs.step(index % 2)[0], atol=1e-5)


@pytest.mark.parametrize(
    ('environment', 'message'),
    [
        (Gymnasium('CartPole-v9'), "did you mean 'CartPole-v"),
        (Gymnasium('Blackjack-v1', most=9), 'not one array'),
        (Gymnasium('CartPole-v1', settings=(('lenght', 1),)), 'lenght'),
    ],
)
def test_wrong_fields(environment, message):
    with pytest.raises(ValueError, match=message):
        environment.check()
