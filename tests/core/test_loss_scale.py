"""Float16: the loss scale changes no mathematics, is found by trying, and lets a model train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.core import config as config_lib
from jaxdl.core.config import Checkpoint
from jaxdl.core.step import FINITE, LossScale
from jaxdl.errors import UserError
from jaxdl.models.cnn import Cnn
from jaxdl.record.metrics_file import read_metrics
from jaxdl.run.loop import train
from tests import small


def half(**changes):
    model = Cnn(channels=(8,), pools=1, dense=16, dtype='float16')
    return small.config(model=model, ema=0.0, **changes)


@pytest.mark.slow
def test_a_scale_changes_nothing_where_nothing_overflows():
    # A power of two is exact; parts of a batch have weights of their own.
    plain, _, first = small.losses(small.config(accumulate=2), 4)
    scaled, _, last = small.losses(small.config(accumulate=2, loss_scale=1024.0), 4)
    np.testing.assert_allclose(scaled, plain, rtol=1e-5)
    for one, two in zip(first, last[: len(first)], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_the_factor_halves_and_doubles():
    scale, factor, good = LossScale.start(2.0**22), 2.0**22, 0
    step = jax.jit(lambda scale, finite: scale.after(finite))
    rng = np.random.default_rng(0)
    finite = np.concatenate([np.ones(2500, bool), rng.random(60) < 0.4, np.ones(1500, bool)])
    for ok in finite:
        scale = step(scale, jnp.asarray(ok))
        good = good + 1 if ok else 0
        if good == 1000:
            factor, good = min(2 * factor, 2.0**24), 0
        elif not ok:
            factor = max(factor / 2, 1.0)
        assert (float(scale.factor), int(scale.good)) == (factor, good)
    assert LossScale.start(0) is None


def test_an_overflow_drops_the_update_and_is_no_divergence():
    made, feed, order = small.program(half(loss_scale=2.0**24))
    step, packing = made.compile_train(feed.abstract(mask=False), feed.resident)
    state = made.init(feed.source.fetch(order.batch(0)))
    before = jax.tree.map(np.asarray, state.params)
    batch = feed.place(feed.load(order.batch(0)))
    state, packed = step(state, batch, feed.resident, made.place_hyper())
    assert float(state.loss_scale.factor) == 2.0**23
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state.params))
    assert int(state.health.skipped) == int(state.health.in_a_row) == 0 and int(state.step) == 1
    found = packing.unpack(np.asarray(packed))
    assert found[FINITE][0] == 1 and found['overflow'][0] == 1
    assert found['loss'] == (0, 0) and np.isfinite(np.asarray(packed)).all()


def test_a_real_divergence_is_still_one():
    made, feed, order = small.program(half(loss_scale=1.0))
    step, packing = made.compile_train(feed.abstract(mask=False), feed.resident)
    state = made.init(feed.source.fetch(order.batch(0)))
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params)
    batch = feed.place(feed.load(order.batch(0)))
    hyper = made.place_hyper()
    state, packed = step(state.replace(params=broken), batch, feed.resident, hyper)
    assert packing.unpack(np.asarray(packed))[FINITE][0] == 0
    assert int(state.health.skipped) == 1


@pytest.mark.slow
def test_a_run_in_float16_learns_and_resumes(tmp_path):
    config = dict(steps=40, log_every=10, eval_every=0, checkpoint=Checkpoint(every=20))
    train(half(loss_scale=2.0**24, **config), str(tmp_path / 'half'))
    rows = read_metrics(tmp_path / 'half' / 'metrics.jsonl')
    scale = [row['train/loss_scale'] for row in rows]
    assert scale[0] > scale[-1] >= 1 and rows[0]['train/overflow'] > 0
    assert rows[-1]['train/overflow'] < 0.2 and 'train/skipped' not in rows[-1]
    assert rows[-1]['train/loss'] < rows[1]['train/loss'] < 2.3
    # What a checkpoint holds of the scale is what a run without a pause has.
    longer = half(loss_scale=2.0**24, **{**config, 'steps': 60})
    train(longer, str(tmp_path / 'half'))
    train(longer, str(tmp_path / 'whole'))
    ends = [read_metrics(tmp_path / n / 'metrics.jsonl')[-1] for n in ('half', 'whole')]
    assert ends[0]['train/loss'] == ends[1]['train/loss']
    assert ends[0]['train/loss_scale'] == ends[1]['train/loss_scale']


@pytest.mark.parametrize('scale', [0.0, 0.5, 2.0**25])
def test_what_is_no_scale(scale):
    with pytest.raises(UserError, match='loss_scale'):
        config_lib.check(half(loss_scale=scale))
