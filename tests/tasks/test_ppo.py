"""PPO: its first update against numpy, known values, time limits, evaluation, devices."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.core import config as config_lib
from jaxdl.core.config import Checkpoint, Config, Mesh
from jaxdl.core.evaluation import Evaluator
from jaxdl.core.learner import StepLearner
from jaxdl.core.optim import AdamW, Constant, Sgd
from jaxdl.data.seeds import Seeds
from jaxdl.environments.gymnasium import Gymnasium
from jaxdl.environments.gymnax import Gymnax
from jaxdl.environments.wrappers import TimeLimit
from jaxdl.errors import UserError
from jaxdl.models.policy import ActorCritic
from jaxdl.run.loop import train
from jaxdl.tasks.ppo import Ppo
from jaxdl.tasks.reinforcement import SEEDS, interquartile_mean
from tests import golden, small
from tests.environments.chain import Chain


def config(environment=None, *, task=None, model=None, **changes) -> Config:
    own = dict(rollout=8, epochs=2, minibatches=2, value_clip=0.0, discount=0.9)
    values = dict(
        model=ActorCritic(**{'actions': 2, 'widths': (16,), **(model or {})}),
        task=Ppo(environment or Chain(), **{**own, **(task or {})}),
        data=Seeds(episodes=16, rows=64),
        optimizer=AdamW(learning_rate=1e-2, schedule=Constant()),
        batch_size=16,
        steps=12,
        log_every=4,
        checkpoint=Checkpoint(every=4),
        mesh=Mesh(data=-1),
    )
    return Config(**{**values, **changes})


def trained(run: Config, steps: int):
    """(program, final state)."""
    _, made, leaves = small.losses(run, steps)
    return made, jax.tree.unflatten(jax.tree.structure(made.abstract), leaves)


def thought(run: Config, state, environment):
    """The policy and the values at each place of a chain."""
    seen = jnp.eye(environment.length)[:, None]
    return run.model.apply({'params': state.params}, seen)


# ---- the update, in numpy -------------------------------------------------------------------------


def forward(params, x):
    """(log-probabilities, values) of a network with one hidden layer a head, float64."""
    dense = lambda x, layer: x @ layer['kernel'] + layer['bias']  # noqa: E731
    logits = dense(np.tanh(dense(x, params['torso']['dense_0'])), params['actor'])
    value = dense(np.tanh(dense(x, params['critic_torso']['dense_0'])), params['critic'])
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), value[..., 0]


def loss(params, piece, task):
    seen, action, old, before, advantage, target = piece
    logs, value = forward(params, seen)
    log_prob = np.take_along_axis(logs, action[..., None], -1)[..., 0]
    ratio = np.exp(log_prob - old)
    gain = np.minimum(ratio * advantage, np.clip(ratio, 1 - task.clip, 1 + task.clip) * advantage)
    near = before + np.clip(value - before, -task.value_clip, task.value_clip)
    apart = np.maximum((value - target) ** 2, (near - target) ** 2) / 2
    entropy = -(np.exp(logs) * logs).sum(-1)
    return (-gain + task.value_weight * apart - task.entropy_weight * entropy).mean()


def test_the_first_update_is_that_of_numpy():
    """Two epochs of one minibatch by gradient descent; gradients in numpy by differences."""
    environment = Chain(length=3, most=4)
    run = config(
        environment,
        task={'epochs': 2, 'minibatches': 1, 'clip': 0.1, 'value_clip': 0.1},
        model={'widths': (4,)},
        optimizer=Sgd(0.3, momentum=0, nesterov=False, schedule=Constant()),
        batch_size=6,
    )
    made, state = trained(run, 1)
    _, feed, order = small.program(run)
    start = made.init(feed.source.fetch(order.batch(0)))
    own, task = start.task_state, run.task
    learner = StepLearner(run, None, lambda grads: grads)
    # The step's key, as jaxdl.core.step makes it, and its first half.
    key = jax.random.split(jax.random.fold_in(jax.random.key(np.uint32(0)), 2))[0]
    _, _, seen, acted, _ = task._roll_out(learner, start, own['arena'], run.model.blank(6), key)

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), start.params)
    shown, action = np.asarray(seen.observation, np.float64), np.asarray(seen.action)
    logs, value = forward(params, shown)
    old = np.take_along_axis(logs, action[..., None], -1)[..., 0]
    np.testing.assert_allclose(acted.log_prob, old, atol=1e-5)
    # The chain, walked by hand: what followed each step, and whether it was cut off or ended.
    place, time = shown.argmax(-1), np.zeros(6, int)
    advantage, following, ended, over = (np.zeros(value.shape) for _ in range(4))
    for t in range(8):
        after = np.minimum(place[t] + action[t], 2)
        ended[t], time = after == 2, time + 1
        over[t] = (after == 2) | (time == 4)
        following[t] = forward(params, np.eye(3)[after])[1]
        time = np.where(over[t], 0, time)
    assert (over > ended).any() and ended.any()
    later = np.zeros(6)
    for t in reversed(range(8)):
        error = ended[t] + 0.9 * following[t] * (1 - ended[t]) - value[t]
        later = error + 0.9 * task.trace * (1 - over[t]) * later
        advantage[t] = later
    target = advantage + value
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    piece = shown, action, old, value, scaled, target
    leaves, tree = jax.tree.flatten(params)
    for _ in range(2):
        grads = []
        for leaf in leaves:
            grad = np.zeros_like(leaf)
            for index in np.ndindex(leaf.shape):
                kept, sides = leaf[index], []
                for change in (1e-6, -1e-6):
                    leaf[index] = kept + change
                    sides.append(loss(jax.tree.unflatten(tree, leaves), piece, task))
                leaf[index] = kept
                grad[index] = (sides[0] - sides[1]) / 2e-6
            grads.append(grad)
        leaves = [leaf - 0.3 * grad for leaf, grad in zip(leaves, grads, strict=True)]
    for ours, theirs in zip(jax.tree.leaves(state.params), leaves, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


# ---- what is learned ------------------------------------------------------------------------------


def test_a_chain_with_known_values():
    environment = Chain(length=4, most=50)
    run = config(environment, steps=150, task={'entropy_weight': 0.0})
    _, state = trained(run, 150)
    found = thought(run, state, environment)
    assert found.policy.mode()[:3, 0].tolist() == [1, 1, 1]
    np.testing.assert_allclose(found.value[:3, 0], [0.81, 0.9, 1.0], atol=0.08)


@pytest.mark.parametrize('rollout', [8, 3])
def test_a_time_limit_is_bootstrapped_from(rollout):
    """The last place pays 1 a step for ever: 1 / (1 - γ) = 5, though an episode is cut after 4 steps.

    Taken for an end, the cut would leave 1 + 0.8 + 0.64 = 2.4 at most. With 8 steps there are two
    cuts in a rollout, with 3 at most one.
    """
    environment = Chain(length=2, most=4, endless=True)
    run = config(
        environment,
        steps=150,
        task={'entropy_weight': 0.0, 'discount': 0.8, 'rollout': rollout, 'minibatches': 1},
    )
    _, state = trained(run, 150)
    found = thought(run, state, environment)
    assert float(found.value[1, 0]) == pytest.approx(5, rel=0.08)


def test_no_signal_leaves_the_policy_at_chance():
    """Seeds that see nothing walk at random around one half.

    No action ends an episode, since the first values, which are not 0, would tell for or against it.
    """
    environment = Chain(length=3, blind=True, endless=True)
    run = config(environment, optimizer=AdamW(learning_rate=1e-3, schedule=Constant()))
    made, feed, order = small.program(run)
    step, _ = made.compile_train(feed.abstract(mask=False), feed.resident)
    for seed in range(3):
        hyper = {**made.hyper, 'seed': np.uint32(seed)}
        state = made.init(feed.source.fetch(order.batch(0)), hyper)
        hyper = jax.device_put(hyper, jax.tree.leaves(state)[0].sharding)
        for index in range(60):
            batch = feed.place(feed.load(order.batch(index)))
            state, _ = step(state, batch, feed.resident, hyper)
        logits = thought(run, state, environment).policy.logits
        assert float(jax.nn.softmax(logits)[0, 0, 1]) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize('memory', [0, pytest.param(8, marks=pytest.mark.slow)])
def test_one_and_eight_devices(memory):
    environment = TimeLimit(Gymnax('CartPole-v1'), most=11)
    run = config(
        environment,
        model={'memory': memory, 'normalised': True},
        task={'scale_rewards': True},
        optimizer=AdamW(learning_rate=1e-3, schedule=Constant()),
    )
    one, _, first = small.losses(run, 10, 1)
    many, made, last = small.losses(run, 10, 8)
    placed = made.shardings.task_state
    assert placed['arena'].observation.spec[0] == ('data', 'fsdp', 'pipe')
    assert placed['rewards'].discounted.spec[0] == ('data', 'fsdp', 'pipe')
    np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-5)
    for a, b in zip(first, last, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_kl_limit_stops_the_updates_of_a_rollout():
    free = config(task={'epochs': 4}, optimizer=AdamW(learning_rate=0.05, schedule=Constant()))
    bound = dataclasses.replace(free, task=dataclasses.replace(free.task, target_kl=1e-9))
    counts = [
        int(
            next(
                x
                for p, x in jax.tree_util.tree_leaves_with_path(state.opt_state)
                if 'count' in str(p)
            )
        )
        for _, state in (trained(run, 1) for run in (free, bound))
    ]
    assert counts[0] == 8 and counts[1] < 8


# ---- evaluation -----------------------------------------------------------------------------------


def test_evaluation_plays_whole_episodes_from_their_seeds(tmp_path):
    environment = TimeLimit(Gymnax('CartPole-v1'), most=60)
    run = config(environment, steps=4)
    run = dataclasses.replace(run, data=Seeds(episodes=10, first=3, rows=64), eval_batch_size=8)
    result = train(run, str(tmp_path))
    made, feed, order = small.program(run)
    state = made.init(feed.source.fetch(order.batch(0)))
    found = Evaluator(made, run.data.eval_sources()).run(state, made.place_hyper(), lambda: None)[0]
    whole = dataclasses.replace(run, eval_batch_size=10)
    again = Evaluator(small.program(whole)[0], run.data.eval_sources())
    other = again.run(state, made.place_hyper(), lambda: None)[0]
    for name, value in found.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-6)
    # One episode by hand: greedy actions, the same keys.
    step = jax.jit(environment.step)
    apply = jax.jit(lambda seen: run.model.apply({'params': state.params}, seen).policy.logits)
    returns = []
    for seed in range(3, 13):
        key = jax.random.fold_in(jax.random.key(SEEDS), np.uint32(seed))
        place, seen = environment.reset(jax.random.fold_in(key, 0))
        total = 0.0
        for _ in range(60):
            logits = apply(seen[None, None])
            after = step(key, place, jnp.argmax(logits[0, 0]))
            total, place, seen = total + float(after.reward), after.state, after.observation
            if after.terminated or after.truncated:
                break
        returns.append(total)
    np.testing.assert_allclose(found['eval/episodes/returns'], returns)
    assert found['eval/episodes/return'] == pytest.approx(np.mean(returns))
    assert found['eval/episodes/length'] == pytest.approx(np.mean(returns))
    assert found['eval/episodes/return_iqm'] == pytest.approx(interquartile_mean(np.array(returns)))
    assert found['eval/episodes/return_median'] == pytest.approx(np.median(returns))
    assert result.metrics['eval/episodes/examples'] == 10


def test_a_run_leaves_a_strip_of_frames_and_the_return_in_the_twin(tmp_path):
    run = config(Gymnax('CartPole-v1'), steps=4)
    run = dataclasses.replace(
        run, task=dataclasses.replace(run.task, twin=Gymnasium('CartPole-v1'))
    )
    result = train(run, str(tmp_path))
    assert 5 < result.metrics['eval/episodes/twin_return'] <= 500
    (picture,) = (tmp_path / 'samples').rglob('*.png')
    assert picture.stat().st_size > 500
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert any(row.get('train/episode_return', 0) > 5 for row in rows)


@pytest.mark.slow
def test_gymnasium_environments_are_trained_on(tmp_path):
    """The same step, on objects of the host, interrupted in the middle of episodes."""
    run = config(Gymnasium('CartPole-v1'), steps=6)
    straight = train(run, str(tmp_path / 'straight'))
    train(dataclasses.replace(run, steps=3), str(tmp_path / 'split'))
    host = run.task.environment._host
    host.alive.clear()  # as in another process
    before = host.replayed
    split = train(run, str(tmp_path / 'split'))
    assert host.replayed > before
    for name in ('train/loss', 'train/episode_return', 'eval/episodes/return'):
        assert straight.metrics[name] == split.metrics[name]


# ---- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model': {'actions': 3}}, 'config.model.actions=3: the environment takes 2 discrete'),
        ({'model': {'continuous': True}}, 'config.model.continuous=True'),
        ({'task': {'minibatches': 3}}, r'minibatches=3: must divide task\.rollout=8'),
        ({'task': {'twin': Gymnasium('Pendulum-v1')}}, r'task\.twin: has observations \[3\]'),
        ({'task': {'minibatches': 3}, 'model': {'memory': 4}}, 'must divide batch_size=16'),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        small.program(config(**change))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'discount': 1.5}, 'config.task.discount=1.5'),
        ({'rollout': 0}, 'config.task.rollout=0'),
    ],
)
def test_wrong_fields(change, message):
    with pytest.raises(UserError, match=message):
        config_lib.check(config(task=change))


@pytest.mark.parametrize('name', ['cartpole_ppo', 'cartpole_rnn_ppo'])
def test_without_the_environments_the_command_to_install_them(name, monkeypatch):
    run = golden.load(name)
    for module in ('gymnax', 'gymnasium'):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r'needs gymnax; python -m pip install -r requirements-rl'):
        config_lib.check(run)
