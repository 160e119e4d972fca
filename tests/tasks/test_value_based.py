"""DQN, PQN and SAC as runs: known values, time limits, buffers, devices, resumes, wrong inputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.core.config import Checkpoint, Config, Mesh
from jaxdl.core.optim import AdamW, Constant, SacGroups
from jaxdl.data.seeds import Seeds
from jaxdl.environments.environment import Box, Environment, Step
from jaxdl.environments.gymnax import Gymnax
from jaxdl.errors import UserError
from jaxdl.models.q_network import QNetwork, SoftActorCritic
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.run.loop import train
from jaxdl.tasks.dqn import Dqn
from jaxdl.tasks.pqn import Pqn
from jaxdl.tasks.q_learning import Exploration
from jaxdl.tasks.replay import Replay
from jaxdl.tasks.sac import Sac
from tests import small
from tests.environments.chain import Chain

RANDOM = Exploration(start=1.0, final=1.0, fraction=0.0)


@dataclasses.dataclass
class Aim(Environment):
    """One step: two numbers are chosen, and what they miss of (1, -0.5) is lost, squared."""

    @property
    def actions(self):
        return Box(np.full(2, -2, np.float32), np.full(2, 2, np.float32))

    @property
    def limit(self):
        return 1

    def reset(self, key):
        del key
        return jnp.zeros(()), jnp.ones(1)

    def step(self, key, state, action):
        del key
        reward = -((action - jnp.array([1.0, -0.5])) ** 2).sum()
        return Step(state, jnp.ones(1), reward, jnp.ones((), bool), jnp.zeros((), bool))


def config(task, model=None, rate=2e-2, **changes) -> Config:
    adam = AdamW(rate, schedule=Constant())
    sac = isinstance(task, Sac)
    values = dict(
        model=model or QNetwork(actions=2, widths=()),
        task=task,
        data=Seeds(episodes=16, rows=64),
        optimizer=SacGroups(adam, adam, adam) if sac else adam,
        batch_size=8,
        steps=12,
        log_every=4,
        checkpoint=Checkpoint(every=4),
        mesh=Mesh(data=-1),
    )
    return Config(**{**values, **changes})


def dqn(environment=None, *, replay=None, **changes) -> Dqn:
    own = dict(rounds=50, samples=64, discount=0.9, tau=0.05, exploration=RANDOM)
    own['replay'] = Replay(**{'capacity': 800, 'minimum': 80, **(replay or {})})
    return Dqn(environment or Chain(most=7), **{**own, **changes})


def pqn(environment=None, **changes) -> Pqn:
    own = dict(horizon=16, minibatches=4, discount=0.9, decay=0.0, exploration=RANDOM)
    return Pqn(environment or Chain(most=7), **{**own, **changes})


def sac(environment=None, **changes) -> Sac:
    own = dict(rounds=20, samples=64, discount=0.9, tau=0.05)
    return Sac(environment or Aim(), replay=Replay(1600, minimum=80), **{**own, **changes})


def trained(run: Config, steps: int, devices: int = 1):
    """(losses of each step, program, final state)."""
    losses, made, leaves = small.losses(run, steps, devices)
    return losses, made, jax.tree.unflatten(jax.tree.structure(made.abstract), leaves)


def known_values(chain: Chain, discount: float) -> np.ndarray:
    """The best values of a chain without time limits, by iteration: [places, actions]."""
    last, values = chain.length - 1, np.zeros((chain.length, 2))
    for _ in range(500):
        best = values.max(1)
        for place in range(chain.length):
            for action in range(2):
                after = min(place + action, last)
                paid = place == last if chain.endless else after == last
                goes_on = chain.endless or after != last
                values[place, action] = paid + discount * goes_on * best[after]
    return values


@pytest.mark.parametrize(
    ('name', 'steps', 'endless'),
    [
        ('dqn', 40, False),
        ('dqn', 40, True),
        ('pqn', 200, True),
        ('duelling and priorities', 40, True),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ('plain dqn', 40, True),
                ('pqn', 200, False),
                ('duelling and priorities', 40, False),
            )
        ),
    ],
)
def test_a_chain_has_its_known_values(name, steps, endless):
    """The endless chain is cut off after 7 steps: if that were an end, 10 would be about 4."""
    chain = Chain(endless=endless, most=7)
    task, model = pqn(chain) if name == 'pqn' else dqn(chain), QNetwork(actions=2, widths=())
    if name == 'plain dqn':
        task = dqn(chain, double=False, huber=0.0, tau=1.0, target_every=20)
    if name == 'duelling and priorities':
        task, model = dqn(chain, replay={'priority': 0.6}), QNetwork(widths=(), duelling=True)
    _, _, state = trained(config(task, model), steps)
    values = model.apply({'params': state.params}, jnp.eye(4), train=False)
    # Without an end nobody acts at the last place.
    rows = slice(None) if endless else slice(3)
    np.testing.assert_allclose(values[rows], known_values(chain, 0.9)[rows], rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_soft_actor_critic_finds_the_aim_and_its_entropy():
    """The critics learn the rewards themselves; the temperature brings the entropy to its aim."""
    model = SoftActorCritic(actions=2, widths=(32,))
    _, _, state = trained(config(sac(entropy=-1.5), model, rate=1e-2), 60)
    variables = {'params': state.params}
    mean, log_std = model.apply(variables, jnp.ones((1, 1)), train=False)
    np.testing.assert_allclose(2 * np.tanh(mean[0]), [1, -0.5], atol=0.15)
    deviation = np.exp(log_std) * (1 - np.tanh(mean) ** 2)  # of a narrow policy, after tanh
    entropy = np.log(deviation).sum() + np.log(2 * np.pi * np.e)
    assert entropy == pytest.approx(-3.0, abs=0.5)
    actions = jnp.array([[0.5, -0.25], [0.4, -0.1], [0.6, -0.4]])
    values = model.apply(variables, jnp.ones((3, 1)), actions, train=False, method='values')
    rewards = -((2 * actions - jnp.array([1.0, -0.5])) ** 2).sum(1)
    np.testing.assert_allclose(values, np.stack([rewards] * 2), atol=0.1)


def test_nothing_is_learned_before_the_minimum():
    run = config(dqn(replay={'minimum': 401}))  # a step brings 400
    losses, made, state = trained(run, 1)
    start = made.init({'id': np.arange(8), 'seed': np.arange(8, dtype=np.uint32)})
    assert losses[0] == 0 and int(state.task_state['updates']) == 0
    assert int(state.task_state['replay'].added) == 50
    for a, b in zip(jax.tree.leaves(start.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    losses, _, state = trained(run, 2)
    assert losses[1] > 0 and int(state.task_state['updates']) == 50


def test_the_target_is_copied_and_averaged():
    kernel = lambda tree: np.asarray(tree['actions']['kernel'])  # noqa: E731
    copied = dqn(tau=1.0, target_every=41)  # 50 updates in a step, less 9 before the minimum
    _, _, state = trained(config(copied), 1)
    assert int(state.task_state['updates']) == 41
    np.testing.assert_array_equal(kernel(state.task_state['target']), kernel(state.params))
    kept = dataclasses.replace(copied, target_every=42)
    _, made, state = trained(config(kept), 1)
    start = made.init({'id': np.arange(8), 'seed': np.arange(8, dtype=np.uint32)})
    np.testing.assert_array_equal(kernel(state.task_state['target']), kernel(start.params))
    one = dataclasses.replace(copied, tau=0.25)
    _, _, state = trained(config(one), 1)
    wanted = 0.75 * kernel(start.params) + 0.25 * kernel(state.params)
    np.testing.assert_allclose(kernel(state.task_state['target']), wanted, rtol=1e-6)


RUNS = {
    'dqn': lambda: config(
        dqn(
            Gymnax('CartPole-v1'),
            replay={'priority': 0.6, 'correction': 1.0, 'steps': 3},
            rounds=12,
            horizon=2,
        ),
        QNetwork(actions=2, widths=(16,), duelling=True),
        rate=1e-3,
    ),
    'pqn': lambda: config(
        pqn(Gymnax('Breakout-MinAtar'), decay=0.65, horizon=8),
        QNetwork(actions=3, channels=(4,), widths=(16,), norm=True),
        rate=1e-3,
    ),
    'sac': lambda: config(
        sac(Gymnax('Pendulum-v1'), rounds=12, gradients=2),
        SoftActorCritic(actions=1, widths=(16,)),
        rate=1e-3,
    ),
}


@pytest.mark.parametrize('name', ['dqn', 'pqn', pytest.param('sac', marks=pytest.mark.slow)])
def test_devices(name):
    one, _, first = trained(RUNS[name](), 10, 1)
    many, made, last = trained(RUNS[name](), 10, 8)
    np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)
    split, own = ('data', 'fsdp', 'pipe'), made.shardings.task_state
    assert own['arena'].observation.spec[0] == split
    if name != 'pqn':
        rows = own['replay'].rows
        assert all(place.spec[0] == split for place in (rows.observation, rows.reward))
    if name == 'dqn':
        assert own['replay'].priorities.spec[0] == split
    # A pendulum is chaotic: in 120 steps it makes a difference of rounding a hundred times larger.
    atol = 3e-3 if name == 'sac' else 1e-5
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_buffer(tmp_path):
    run = RUNS['dqn']()
    train(run, str(tmp_path / 'straight'))
    train(dataclasses.replace(run, steps=6), str(tmp_path / 'split'))
    train(run, str(tmp_path / 'split'))
    # The schedule of exploration follows config.steps, and it is constant here.
    made, *_ = small.program(run, 8)
    states = []
    for name in ('straight', 'split'):
        saved = Checkpoints(tmp_path / name / 'checkpoints', run.checkpoint, read_only=True)
        states.append(saved.restore(made.abstract)[1])
    assert int(states[0].task_state['replay'].added) == 12 * 24
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.slow
def test_the_end_of_a_run_says_what_it_earned(tmp_path):
    run = dataclasses.replace(config(dqn(exploration=Exploration(final=0.0))), steps=40)
    result = train(run, str(tmp_path))
    assert result.metrics['eval/episodes/return'] == 1  # the end of the chain
    assert result.metrics['eval/episodes/sampled_length'] == 3
    assert 0 < result.metrics['train/episode_return'] <= 1


@pytest.mark.parametrize(
    ('run', 'message'),
    [
        (lambda: config(dqn(), QNetwork(actions=3)), 'model.actions=3: the environment takes 2'),
        (lambda: config(dqn(Aim()), QNetwork(actions=2)), 'Dqn chooses one of several actions'),
        (lambda: config(sac(Chain()), SoftActorCritic(actions=2)), 'Sac chooses numbers'),
        (lambda: config(dqn(samples=60)), 'task.samples=60: must be a multiple of'),
        (lambda: config(dqn(replay={'capacity': 801})), 'task.replay.capacity=801: must be a mul'),
        (lambda: config(dqn(replay={'steps': 100})), 'more than 100 steps of each'),
    ],
)
def test_what_does_not_fit_is_refused(run, message):
    with pytest.raises(UserError, match=message):
        small.program(run())


@pytest.mark.parametrize(
    ('task', 'message'),
    [
        (lambda: dqn(tau=0.0), 'tau=0.0: must be above 0'),
        (lambda: dqn(discount=1.5), 'discount=1.5: must be at most 1'),
        (lambda: pqn(minibatches=5), 'minibatches=5: must divide horizon=16'),
        (lambda: pqn(decay=-0.5), 'decay=-0.5: must be at least 0'),
    ],
)
def test_wrong_fields(task, message):
    with pytest.raises(ValueError, match=message):
        task().check()
