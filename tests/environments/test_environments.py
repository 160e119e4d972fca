"""The adapter to gymnax, the wrappers and the arena, against gymnax itself and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.data.seeds import Seeds
from jaxdl.environments import arena as arena_lib
from jaxdl.environments.environment import Box, Discrete
from jaxdl.environments.gymnax import Gymnax
from jaxdl.environments.wrappers import FrameStack, StickyActions, TimeLimit, Visible
from jaxdl.models.moments import Moments, RewardScale
from tests.environments.chain import Chain

KEY = jax.random.key(0)


def play(environment, actions, key=KEY):
    """[(observation, reward, terminated, truncated)] of actions taken without any reset."""
    state, observation = environment.reset(key)
    step, found = jax.jit(environment.step), [(observation, 0.0, False, False)]
    for index, action in enumerate(actions):
        result = step(jax.random.fold_in(key, index), state, action)
        state = result.state
        found.append((result.observation, result.reward, result.terminated, result.truncated))
    return found


@pytest.mark.parametrize(
    'name',
    [
        'CartPole-v1',
        'Acrobot-v1',
        'MountainCar-v0',
        'Pendulum-v1',
        'Breakout-MinAtar',
        'MemoryChain-bsuite',
    ],
)
def test_gymnax_environments_are_those_of_gymnax(name):
    import gymnax

    theirs, values = gymnax.make(name)
    ours = Gymnax(name)
    ours.check()
    space = theirs.action_space(values)
    assert ours.limit == values.max_steps_in_episode
    if isinstance(ours.actions, Discrete):
        assert ours.actions.count == space.n
    else:
        assert ours.actions.shape == space.shape and float(ours.actions.high[0]) == space.high
    reset = jax.jit(ours.reset)
    observation, state = theirs.reset_env(KEY, values)
    mine, seen = reset(KEY)
    assert ours.observation.shape == seen.shape and ours.observation.dtype == seen.dtype
    step, their_step = jax.jit(ours.step), jax.jit(theirs.step_env)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), mine)
    for index in range(12):
        np.testing.assert_allclose(np.asarray(seen, np.float32), observation, atol=1e-5)
        key = jax.random.fold_in(KEY, index)
        action = space.sample(key)
        observation, state, reward, terminated, _ = their_step(key, state, action, values)
        found = step(key, mine, action)
        mine, seen = found.state, found.observation
        assert float(found.reward) == pytest.approx(float(np.squeeze(reward)), rel=1e-4)
        assert bool(found.terminated) == bool(terminated) and not found.truncated
        assert jax.tree.map(lambda x: (x.shape, x.dtype), mine) == shapes


def test_a_time_limit_is_no_end():
    short = Gymnax('Pendulum-v1', settings=(('max_steps_in_episode', 3),))
    assert short.limit == 3
    found = play(short, [jnp.zeros(1)] * 3)
    assert [bool(row[3]) for row in found] == [False, False, False, True]
    assert not any(row[2] for row in found)
    found = play(TimeLimit(Chain(most=20), most=2), [0, 0])
    assert bool(found[2][3]) and not found[2][2] and TimeLimit(Chain(), 2).limit == 2


def test_frame_stack_and_visible():
    stack = FrameStack(Chain(length=4), frames=3)
    places = [0, 1, 1, 2]
    found = play(stack, [1, 0, 1])
    for time, (observation, *_) in enumerate(found):
        seen = [places[max(0, time - back)] for back in (2, 1, 0)]
        np.testing.assert_array_equal(observation, np.eye(4)[seen].reshape(-1))
    some = Visible(Gymnax('CartPole-v1'), entries=(0, 2))
    whole = play(Gymnax('CartPole-v1'), [1, 0])
    for (part, *_), (all_of_it, *_) in zip(play(some, [1, 0]), whole, strict=True):
        np.testing.assert_array_equal(part, all_of_it[jnp.asarray([0, 2])])
    with pytest.raises(ValueError, match='from 0 to 3'):
        Visible(Gymnax('CartPole-v1'), entries=(4,)).check()


def test_sticky_actions_repeat_as_often_as_they_should():
    chain = Chain(length=5000, most=10**6)
    sticky = StickyActions(chain, probability=0.25)

    def episode(key):
        def body(carry, index):
            state, count = carry
            action = index % 2  # alternates, so an action that is repeated is a wrong one
            step = sticky.step(jax.random.fold_in(key, index), state, action)
            return (step.state, count + (step.state[1][1] != action)), step.state[1][1]

        (_, wrong), taken = jax.lax.scan(body, (sticky.reset(key)[0], 0), jnp.arange(2000))
        return wrong, taken

    wrong, taken = jax.jit(episode)(KEY)
    assert int(taken[0]) == 0
    # Stuck once, the next is right by itself; the share of wrong ones is p / (1 + p) = 0.2.
    assert float(wrong) / 2000 == pytest.approx(0.2, abs=0.03)


def test_the_arena_keeps_the_last_observation_and_counts_episodes():
    environment, count = Chain(length=3, most=4), 5
    arena = arena_lib.begin(environment, KEY, count)
    rng = np.random.default_rng(0)
    place, time, earned = np.zeros(count, int), np.zeros(count, int), np.zeros(count)
    last, finished = np.zeros(count), np.zeros(count, int)
    advance = jax.jit(lambda arena, action: arena_lib.advance(environment, arena, action, KEY))
    ends = set()
    for _ in range(40):
        action = rng.integers(0, 2, count)
        np.testing.assert_array_equal(arena.observation, np.eye(3)[place])
        np.testing.assert_array_equal(arena.first, time == 0)
        arena, seen = advance(arena, jnp.asarray(action))
        place, time = np.minimum(place + action, 2), time + 1
        np.testing.assert_array_equal(seen.next_observation, np.eye(3)[place])
        np.testing.assert_array_equal(seen.terminated, place == 2)
        np.testing.assert_array_equal(seen.truncated, (time == 4) & (place != 2))
        ends |= {(bool(a), bool(b)) for a, b in zip(seen.terminated, seen.truncated, strict=True)}
        earned += place == 2
        done = (place == 2) | (time == 4)
        last, finished = np.where(done, earned, last), finished + done
        place, time, earned = (np.where(done, 0, x) for x in (place, time, earned))
        np.testing.assert_array_equal(arena.last_return, last)
        np.testing.assert_array_equal(arena.finished, finished)
        np.testing.assert_array_equal(arena.length, time)
    assert ends == {(False, False), (True, False), (False, True)}


def test_moments_and_reward_scale():
    rng = np.random.default_rng(0)
    parts = [rng.normal(3, 2, (size, 7, 2)).astype(np.float32) for size in (1, 5, 40)]
    moments = Moments.fresh((2,))
    for part in parts:
        moments = moments.seen(jnp.asarray(part))
    whole = np.concatenate(parts).reshape(-1, 2)
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, whole.var(0), rtol=1e-5)
    np.testing.assert_allclose(
        moments.normalised(jnp.asarray(whole)), (whole - whole.mean(0)) / whole.std(0), atol=1e-5
    )
    rewards = rng.normal(size=(30, 4)).astype(np.float32)
    done = rng.random((30, 4)) < 0.2
    scale, running, seen = RewardScale.fresh(4), np.zeros(4), []
    for half in (slice(0, 15), slice(15, 30)):
        scale = scale.seen(jnp.asarray(rewards[half]), jnp.asarray(done[half]), 0.9)
    for reward, over in zip(rewards, done, strict=True):
        running = running * 0.9 + reward
        seen.append(running)
        running = np.where(over, 0, running)
    np.testing.assert_allclose(
        scale.scaled(jnp.asarray(rewards)), rewards / np.std(seen), rtol=1e-5
    )


def test_actions_in_units_of_the_bounds():
    space = Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]))
    np.testing.assert_allclose(space.scaled(jnp.array([[0.5, -3.0]])), [[1.0, 0.0]])


def test_seeds():
    data = Seeds(episodes=3, first=5, rows=8)
    rows = data.eval_sources()['episodes'].fetch(np.arange(3))
    assert rows['seed'].tolist() == [5, 6, 7] and (rows['place'] == np.eye(3)).all()
    assert len(data.train_source()) == 8
    with pytest.raises(ValueError, match='episodes=0'):
        Seeds(episodes=0).check()


@pytest.mark.parametrize(
    ('environment', 'message'),
    [
        (Gymnax('CartPole'), "did you mean 'CartPole-v1'"),
        (Gymnax('CartPole-v1', settings=(('lenght', 1.0),)), 'CartPole-v1 has force_mag'),
        (StickyActions(Chain(), probability=1.0), r'in \[0, 1\)'),
        (FrameStack(Chain(), frames=0), 'at least 1'),
    ],
)
def test_wrong_fields(environment, message):
    with pytest.raises(ValueError, match=message):
        environment.check()


def test_without_gymnax_the_message_says_how_to_install_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, 'gymnax', None)
    with pytest.raises(ValueError, match=r'pip install -r requirements-rl\.txt'):
        Gymnax().check()


@pytest.mark.parametrize('name', ['CartPole-v1', 'Pendulum-v1', 'Breakout-MinAtar'])
def test_pictures(name):
    state, observation = Gymnax(name).reset(KEY)
    picture = Gymnax(name).draw(state, np.asarray(observation))
    assert picture is not None and picture.dtype == np.uint8 and picture.shape[2] == 3
    assert len(np.unique(picture)) > 1
