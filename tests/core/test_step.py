"""The step: one trace, the same on any number of devices, exact under accumulation and masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.core.config import Divergence, Mesh
from jaxdl.core.optim import AdamW, Constant
from jaxdl.core.pipeline import CallIds
from jaxdl.metrics import Mean, MetricPacking
from jaxdl.models.cnn import Cnn
from jaxdl.tasks.classification import Classification
from tests import small


def test_devices_do_not_change_the_training():
    run = small.config()
    one, _, first = small.losses(run, 20, 1)
    many, _, last = small.losses(run, 20, 8)
    np.testing.assert_allclose(many, one, rtol=1e-5)
    for a, b in zip(first, last, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('placement', ['host', 'stream'])
def test_placement_gives_the_very_same_training(placement):
    one, _, first = small.losses(small.config(placement='device'), 4)
    two, _, last = small.losses(small.config(placement=placement), 4)
    # The batches are the same to the bit (test_feed.py); the programs are two, and may fuse differently.
    np.testing.assert_allclose(one, two, rtol=1e-6)
    for a, b in zip(first, last, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_step_is_traced_once():
    _, made, _ = small.losses(small.config(), 5)
    assert made.traces == ['train_step']


def test_the_random_numbers_of_a_step_move_with_the_data_after_a_roll_back():
    """Step 2 of a run that moved its data on by 3 batches has the masks and crops of step 5."""
    run = small.config(ema=0.0)
    made, feed, order = small.program(run)
    step, packing = made.compile_train(feed.abstract(mask=False), feed.resident)
    rows, batch = feed.source.fetch(order.batch(0)), feed.load(order.batch(7))

    def loss(at: int, offset: int) -> float:
        state = made.init(rows)
        state = state.replace(
            step=jnp.int32(at), health=state.health.replace(data_offset=jnp.int32(offset))
        )
        _, packed = step(state, feed.place(batch), feed.resident, made.place_hyper())
        return packing.means(np.asarray(packed))['loss']

    assert loss(2, 3) == loss(5, 0) != loss(2, 0)


def test_several_steps_in_one_program_equal_single_steps():
    run = small.config()
    one, _, first = small.losses(run, 4)
    made, feed, order = small.program(
        dataclasses.replace(run, steps_per_call=4, log_every=4, eval_every=4)
    )
    step, packing = made.compile_train(feed.abstract(mask=False), feed.resident)
    stream = feed.training(CallIds([(order, 0)], 4), 1, ahead=1)
    state = made.init(feed.source.fetch(order.batch(0)))
    state, packed = step(state, feed.place(stream.next()), feed.resident, made.place_hyper())
    stream.close()
    found = [packing.means(row)['loss'] for row in np.asarray(packed)]
    np.testing.assert_allclose(found, one, rtol=1e-6)
    for a, b in zip(first, jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, np.asarray(b), rtol=1e-5, atol=1e-6)


@dataclasses.dataclass
class Masked(Classification):
    """A loss in which an example counts only when its id is a multiple of 3: unequal masks."""

    def metrics(self, outputs, batch):
        return super().metrics(
            outputs, {**batch, 'mask': (batch['id'] % 3 == 0).astype(jnp.float32)}
        )


class Plain(Cnn):
    """Without BatchNorm's batch statistics accumulation must be exact."""

    def __call__(self, images, *, train):
        return super().__call__(images, train=False)


@pytest.mark.parametrize('devices', [pytest.param(1, marks=pytest.mark.slow), 4])
def test_accumulation_is_exact_under_unequal_masks(devices):
    base = small.config(task=Masked(), model=Plain(channels=(8,), pools=1, dense=16), ema=0.0)
    one, _, first = small.losses(base, 6, devices)
    four, _, last = small.losses(dataclasses.replace(base, accumulate=4), 6, devices)
    np.testing.assert_allclose(four, one, rtol=2e-6)
    for a, b in zip(first, last, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


def test_pmap_equals_jit_without_randomness():
    base = small.config(task=Classification(), model=Plain(channels=(8,), pools=1, dense=16))
    one, _, first = small.losses(base, 5, 8)
    two, _, last = small.losses(dataclasses.replace(base, compile='pmap'), 5, 8)
    np.testing.assert_allclose(two, one, rtol=1e-5)
    for a, b in zip(first, last, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_pmap_shares_the_statistics_of_batchnorm():
    base = small.config(task=Classification(), model=Cnn(channels=(8,), pools=1, dense=16))
    one, _, _ = small.losses(base, 5, 8)
    two, _, _ = small.losses(dataclasses.replace(base, compile='pmap'), 5, 8)
    np.testing.assert_allclose(two, one, rtol=1e-4)


@pytest.mark.slow
def test_fsdp_equals_data_parallel():
    base = small.config(model=Cnn(channels=(16, 32), pools=2, dense=64))
    one, _, _ = small.losses(base, 5, 8)
    two, made, _ = small.losses(dataclasses.replace(base, mesh=Mesh(data=2, fsdp=4)), 5, 8)
    np.testing.assert_allclose(two, one, rtol=1e-5)
    kernel = made.shardings.params['hidden']['kernel'].spec
    momentum = jax.tree.leaves(made.shardings.opt_state, is_leaf=lambda x: hasattr(x, 'spec'))
    assert 'fsdp' in kernel
    assert any('fsdp' in place.spec for place in momentum), 'the optimizer follows its parameters'


def test_overfits_one_batch():
    run = small.config(
        model=Cnn(channels=(8, 16), pools=2, dense=32),
        task=Classification(),
        optimizer=AdamW(learning_rate=3e-3, schedule=Constant()),
        ema=0.0,
    )
    made, feed, order = small.program(run)
    step, packing = made.compile_train(feed.abstract(mask=False), feed.resident)
    state = made.init(feed.source.fetch(order.batch(0)))
    for _ in range(60):
        batch = feed.place(feed.load(order.batch(0)))
        state, packed = step(state, batch, feed.resident, made.place_hyper())
    means = packing.means(np.asarray(packed))
    assert means['loss'] < 0.05 and means['accuracy'] == 1


def test_runs_that_differ_in_scalars_share_one_program():
    run = small.config()
    other = small.config(model=Cnn(channels=(8,), pools=1, dense=16, dropout=0.4))
    other.optimizer.learning_rate = 0.01

    def text(config):
        made, feed, _ = small.program(config)
        abstract, batch = made.abstract, feed.abstract(mask=False)
        packing = made.packing(made._plain.train_metrics, batch, feed.resident)
        step = made._scoped(jax.jit(made.steps.train_step(packing)).lower)
        return step(abstract, batch, feed.resident, made.hyper).as_text()

    assert text(run) == text(other)


def test_averaged_weights_look_back_over_their_share_of_the_run():
    run = small.config(ema=0.4)
    made, feed, order = small.program(run)
    step, _ = made.compile_train(feed.abstract(mask=False), feed.resident)
    state = made.init(feed.source.fetch(order.batch(0)))
    seen = []
    for index in range(8):
        batch = feed.place(feed.load(order.batch(index)))
        state, _ = step(state, batch, feed.resident, made.place_hyper())
        seen.append(np.asarray(state.params['hidden']['kernel'], np.float64))
    # Of the average after step t the newest weights are the part 1 / (0.4 t), at most all.
    newest = [min(1, 1 / (0.4 * t)) for t in range(1, 9)]
    parts = [n * np.prod([1 - later for later in newest[i + 1 :]]) for i, n in enumerate(newest)]
    assert sum(parts) == pytest.approx(1), 'nothing of the random start is left'
    expected = sum(part * weights for part, weights in zip(parts, seen, strict=True))
    np.testing.assert_allclose(
        state.ema['params']['hidden']['kernel'], expected, rtol=1e-5, atol=1e-7
    )
    statistics = state.ema['model_state']['batch_stats']
    raw = state.model_state['batch_stats']
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(statistics), jax.tree.leaves(raw), strict=True)
    ), 'BatchNorm statistics are averaged with the weights'


@pytest.mark.parametrize(('policy', 'stands'), [('stop', True), ('skip', False)])
def test_a_step_that_is_not_finite_changes_nothing(policy, stands):
    run = small.config(divergence=Divergence(policy=policy), placement='host')
    run.task = Poisoned()
    made, feed, order = small.program(run)
    step, packing = made.compile_train(feed.abstract(mask=False), feed.resident)
    state = made.init(feed.source.fetch(order.batch(0)))
    before = jax.tree.map(np.asarray, state)
    rows = feed.load(order.batch(0))
    state, packed = step(
        state, feed.place({**rows, 'id': rows['id'] * 0}), feed.resident, made.place_hyper()
    )
    after = jax.tree.map(np.asarray, state)
    for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        assert a.tobytes() == b.tobytes()
    for a, b in zip(
        jax.tree.leaves(before.opt_state), jax.tree.leaves(after.opt_state), strict=True
    ):
        assert a.tobytes() == b.tobytes()
    found = packing.unpack(np.asarray(packed))
    assert found['_finite'][0] == 0
    assert made.steps.suspects(made.abstract)[int(found['_first'][0])].startswith(
        'gradient of params/'
    )
    assert int(after.step) == (0 if stands else 1) and int(after.health.skipped) == 1
    state, packed = step(state, feed.place(rows), feed.resident, made.place_hyper())
    assert int(state.step) == (0 if stands else 2), 'after a stop the state stands still'


@dataclasses.dataclass
class Poisoned(Classification):
    """Not finite for batches that consist of example 0 alone."""

    def metrics(self, outputs, batch):
        metrics = super().metrics(outputs, batch)
        bad = jnp.where((batch['id'] == 0).all(), jnp.inf, 0.0)
        loss = metrics['loss']
        return {**metrics, 'loss': Mean(loss.total + bad * outputs.sum(), loss.weight)}


def test_packing_round_trip():
    rng = np.random.default_rng(0)
    metrics = {
        'a': Mean(jnp.float32(6.0), jnp.float32(4.0)),
        'matrix': Mean(jnp.asarray(rng.normal(size=(3, 3)), jnp.float32), jnp.float32(2.0)),
    }
    packing = MetricPacking.of(metrics)
    means = packing.means(np.asarray(packing.pack(metrics)))
    assert means['a'] == 1.5
    np.testing.assert_allclose(means['matrix'], np.asarray(metrics['matrix'].total) / 2)
