"""A task that learns in its own way: two players with optimizers of their own, and a kept state."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl.api import DataSet, Task
from jaxdl.core import config as config_lib
from jaxdl.core.config import Checkpoint, Config, Divergence, Mesh
from jaxdl.core.optim import AdamW, Constant, Groups, Linear, Sgd
from jaxdl.data.arrays import ArraySource
from jaxdl.errors import UserError
from jaxdl.metrics import Mean
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.run.loop import train, train_together
from tests import small


class Two(nn.Module):
    """A teacher, and a pupil that imitates it: each a matrix."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3, name='pupil')(x), nn.Dense(3, name='teacher')(x)


@dataclasses.dataclass
class Pairs(DataSet):
    def train_source(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(64, 5)).astype(np.float32)
        return ArraySource({'x': x, 'y': (x @ rng.normal(size=(5, 3))).astype(np.float32)})

    def eval_sources(self):
        return {'valid': self.train_source()}


@dataclasses.dataclass
class TwoOptimizers(Groups):
    teacher: Sgd
    pupil: AdamW


def optimizers(schedule) -> TwoOptimizers:
    return TwoOptimizers(
        Sgd(0.1, momentum=0, nesterov=False, schedule=schedule), AdamW(1e-2, schedule=schedule)
    )


@dataclasses.dataclass
class Imitation(Task):
    """The teacher learns y, the pupil what the teacher's running mean says, twice a step."""

    sharding: ClassVar[tuple] = ((r'^task_state/rows', 'batch'),)
    inner: int = 2

    def inputs(self, batch):
        return {'x': batch['x']}

    def metrics(self, outputs, batch):
        _, teacher = outputs
        return {'loss': Mean.of(((teacher - batch['y']) ** 2).sum(-1), batch.get('mask'))}

    def start(self, learner, params, model_state, rng):
        return {
            'slow': params['teacher'],
            'rows': jnp.zeros((learner.config.batch_size, 5)),
            'noise': jax.random.key_data(rng),
        }

    def updates(self, group=''):
        return self.inner if group == 'pupil' else 1

    def learn(self, learner, state, batch, rng):
        x, y = batch['x'], batch['y']
        own = state.task_state

        def teach(weights):
            loss = Mean.of(((linear(weights, x) - y) ** 2).sum(-1))
            return loss, loss

        grads, loss = learner.gradient(teach, state.params['teacher'])
        state = learner.update(state, grads, 'teacher')
        slow = jax.tree.map(
            lambda old, new: 0.9 * old + 0.1 * new, own['slow'], state.params['teacher']
        )
        for _ in range(self.inner):

            def imitate(weights):
                apart = linear(weights, x) - linear(slow, x)
                return Mean.of((apart**2).sum(-1)), ()

            grads, _ = learner.gradient(imitate, state.params['pupil'])
            state = learner.update(state, grads, 'pupil')
        own = {**own, 'slow': slow, 'rows': own['rows'] + x}
        return state.replace(task_state=own), {'loss': loss}


class Plain(Imitation):
    """The same losses, learned in the ordinary way."""

    start, learn, updates = Task.start, Task.learn, Task.updates


class Whole(Imitation):
    """Keeps nothing that is split over the devices."""

    sharding = ()

    def start(self, learner, params, model_state, rng):
        return {'slow': params['teacher']}

    def learn(self, learner, state, batch, rng):
        own = {**state.task_state, 'rows': jnp.zeros_like(batch['x'])}
        state, metrics = super().learn(learner, state.replace(task_state=own), batch, rng)
        return state.replace(task_state={'slow': state.task_state['slow']}), metrics


class Bad(Imitation):
    """Not finite in the second step."""

    def learn(self, learner, state, batch, rng):
        before = state.step
        state, metrics = super().learn(learner, state, batch, rng)
        bad = jnp.where(before == 1, jnp.nan, 0.0)
        return state.replace(params=jax.tree.map(lambda w: w + bad, state.params)), metrics


def linear(weights, x):
    return x @ weights['kernel'] + weights['bias']


def config(**changes) -> Config:
    values = dict(
        model=Two(),
        task=Imitation(),
        data=Pairs(),
        optimizer=optimizers(Linear()),
        steps=12,
        batch_size=16,
        log_every=3,
        checkpoint=Checkpoint(every=4),
        mesh=Mesh(data=-1),
    )
    return Config(**{**values, **changes})


def test_two_optimizers_follow_a_plain_loop():
    """20 steps against optax by hand: two groups, a schedule that counts both updates of a step."""
    run = config(steps=20)
    _, made, leaves = small.losses(run, 20)
    _, feed, order = small.program(run)
    final = jax.tree.unflatten(jax.tree.structure(made.abstract), leaves)
    start = made.init(feed.source.fetch(order.batch(0)))
    teacher, pupil = start.params['teacher'], start.params['pupil']
    slow = teacher
    rate = lambda peak, steps: lambda n: peak * (1 - (n + 0.5) / steps)  # noqa: E731
    sgd, adam = optax.sgd(rate(0.1, 20)), optax.adam(rate(1e-2, 40))
    states = sgd.init(teacher), adam.init(pupil)
    for index in range(20):
        rows = feed.source.fetch(order.batch(index))
        loss = lambda w, x, y: ((linear(w, x) - y) ** 2).sum(-1).mean()  # noqa: E731
        updates, sgd_state = sgd.update(
            jax.grad(loss)(teacher, rows['x'], rows['y']), states[0], teacher
        )
        teacher = optax.apply_updates(teacher, updates)
        slow = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, slow, teacher)
        adam_state = states[1]
        for _ in range(2):
            grads = jax.grad(loss)(pupil, rows['x'], linear(slow, rows['x']))
            updates, adam_state = adam.update(grads, adam_state, pupil)
            pupil = optax.apply_updates(pupil, updates)
        states = sgd_state, adam_state
    for ours, theirs in (
        (final.params['teacher'], teacher),
        (final.params['pupil'], pupil),
        (final.task_state['slow'], slow),
    ):
        for name in ('kernel', 'bias'):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_devices_and_pmap():
    one, _, first = small.losses(config(), 8, 1)
    many, made, last = small.losses(config(), 8, 8)
    assert made.shardings.task_state['rows'].spec[0] == ('data', 'fsdp', 'pipe')
    assert made.shardings.task_state['slow']['kernel'].is_fully_replicated
    np.testing.assert_allclose(many, one, rtol=1e-5)
    for a, b in zip(first, last, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="compile='pmap': the state of Imitation is split"):
        small.program(config(compile='pmap'))

    mapped, *_ = small.losses(config(task=Whole(), compile='pmap'), 8, 8)
    np.testing.assert_allclose(mapped, one, rtol=1e-5)


def test_a_resumed_run_continues_the_tasks_own_state(tmp_path):
    run = config(optimizer=optimizers(Constant()))
    train(run, str(tmp_path / 'straight'))
    train(dataclasses.replace(run, steps=6), str(tmp_path / 'split'))
    train(run, str(tmp_path / 'split'))
    made, *_ = small.program(run, 8)
    states = []
    for name in ('straight', 'split'):
        saved = Checkpoints(tmp_path / name / 'checkpoints', run.checkpoint, read_only=True)
        states.append(saved.restore(made.abstract)[1])
    assert int(states[0].step) == 12 and np.abs(states[0].task_state['rows']).sum() > 0
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_lanes_equal_single_runs(tmp_path):
    configs = [config(seed=1), config(seed=2)]
    together = train_together(configs, [str(tmp_path / f't{i}') for i in range(2)])
    for index, one in enumerate(configs):
        alone = train(one, str(tmp_path / f'a{index}'))
        assert together[index].metrics['train/loss'] == pytest.approx(
            alone.metrics['train/loss'], rel=1e-5
        )


def test_a_step_that_is_not_finite_keeps_the_tasks_own_state():
    run = config(task=Bad(), divergence=Divergence(policy='skip'))
    made, feed, order = small.program(run)
    step, packing = made.compile_train(feed.abstract(mask=False), feed.resident)
    state, kept = made.init(feed.source.fetch(order.batch(0))), []
    for index in range(3):
        batch = feed.place(feed.load(order.batch(index)))
        state, packed = step(state, batch, feed.resident, made.place_hyper())
        kept.append(np.asarray(state.task_state['rows']))
        found = packing.unpack(np.asarray(packed))
        assert found['_finite'][0] == (index != 1)
        if index == 1:
            assert (
                made.steps.suspects(made.abstract)[int(found['_first'][0])] == 'params/pupil/bias'
            )
    assert np.array_equal(kept[0], kept[1]) and not np.array_equal(kept[1], kept[2])
    assert int(state.step) == 3 and int(state.health.skipped) == 1


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'optimizer': Sgd(0.1, schedule=Constant())}, "updates the group 'teacher'"),
        ({'accumulate': 2}, 'accumulate must be 1'),
    ],
)
def test_what_a_step_of_its_own_cannot_do_is_refused(change, message):
    made, feed, _ = small.program(config(**change))
    with pytest.raises(UserError, match=message):
        made.compile_train(feed.abstract(mask=False), feed.resident)


def test_groups_must_be_those_of_the_parameters():
    @dataclasses.dataclass
    class Other(Groups):
        teacher: Sgd = dataclasses.field(default_factory=Sgd)

    @dataclasses.dataclass
    class Wrong(Groups):
        teacher: float = 0.1

    with pytest.raises(UserError, match='its groups are teacher, but the parameters of Two are in'):
        small.program(config(optimizer=Other()))
    with pytest.raises(UserError, match='must be an optimizer'):
        config_lib.check(config(optimizer=Wrong()))


def test_an_ordinary_task_trains_with_groups(tmp_path):
    run = config(task=Plain(), optimizer=optimizers(Linear()), ema=0.1)
    result = train(run, str(tmp_path))
    assert result.metrics['train/learning_rate_pupil'] == pytest.approx(
        result.metrics['train/learning_rate'] / 10
    )
