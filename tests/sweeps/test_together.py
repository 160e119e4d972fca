"""Several runs in one program against each run alone, by the trainer itself."""

import json

import jax
import numpy as np
import pytest

from jaxdl.core import config as config_lib
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Divergence
from jaxdl.core.optim import AdamW
from jaxdl.errors import Preempted, UserError
from jaxdl.record import metrics_file as logs
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.run import loop as trainer
from jaxdl.sweeps import together
from jaxdl.sweeps.check import group_of
from tests import small


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    make = mesh_lib.make_mesh
    monkeypatch.setattr(
        mesh_lib, 'make_mesh', lambda sizes, devices=None: make(sizes, jax.devices()[:1])
    )


def runs(scale=1.0, **changes):
    """Three runs that differ in seed, learning rate, weight decay and dropout."""
    found = []
    for seed, rate, decay, dropout in (
        (0, 0.05, 1e-4, 0.2),
        (1, 0.1, 1e-3, 0.1),
        (2, 0.02, 1e-4, 0.4),
    ):
        run = small.config(seed=seed, **changes)
        values = {
            'config.optimizer.learning_rate': rate * scale,
            'config.optimizer.weight_decay': decay,
        }
        found.append(config_lib.with_values(run, {**values, 'config.model.dropout': dropout}))
    return found


def state_of(workdir, config):
    made, _, _ = small.program(config)
    step, state, extra = Checkpoints(
        workdir / 'checkpoints', config.checkpoint, read_only=True
    ).restore(made.abstract)
    return step, jax.device_get(state), extra


def measured(workdir):
    """The rows of metrics.jsonl without those that hold only the account of the time."""
    rows = logs.read_metrics(workdir / 'metrics.jsonl')
    assert any('perf/wall_s' in row and 'perf/time_compile_s' in row for row in rows)
    return [row for row in rows if any(k.startswith(('train/', 'eval/')) for k in row)]


def assert_same_run(a, b, config):
    """The same rows and the same last state, within 1e-5."""
    rows, others = measured(a), measured(b)
    assert [row['step'] for row in rows] == [row['step'] for row in others]
    for row, other in zip(rows, others, strict=True):
        names = [k for k in row if k.startswith(('train/', 'eval/')) or k == 'perf/epoch']
        assert names == [k for k in other if k.startswith(('train/', 'eval/')) or k == 'perf/epoch']
        np.testing.assert_allclose(
            [row[k] for k in names], [other[k] for k in names], rtol=1e-5, atol=1e-5
        )
    (step, state, extra), (other_step, other, other_extra) = (
        state_of(a, config),
        state_of(b, config),
    )
    assert step == other_step and extra['counted'] == other_extra['counted']
    for leaf, alone in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(leaf, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('placement', ['device', pytest.param('host', marks=pytest.mark.slow)])
def test_each_run_is_the_run_alone(tmp_path, placement):
    configs = runs(placement=placement)
    places = [tmp_path / f'together{i}' for i in range(3)]
    together.train_together(configs, [str(p) for p in places])
    for index, config in enumerate(configs):
        alone = tmp_path / f'alone{index}'
        trainer.train(config, str(alone))
        assert_same_run(places[index], alone, config)
        info = json.loads((places[index] / 'run.json').read_text())
        assert info['status'] == 'finished' and info['saved'] == config.steps
        assert (places[index] / 'config.json').read_text() == (alone / 'config.json').read_text()


@pytest.mark.slow
def test_another_optimizer_and_no_ema(tmp_path):
    configs = runs(scale=0.02, ema=0.0, optimizer=AdamW(weight_decay=0.1, clip_norm=1.0))
    together.train_together(configs, [str(tmp_path / f'together{i}') for i in range(3)])
    trainer.train(configs[1], str(tmp_path / 'alone'))
    assert_same_run(tmp_path / 'together1', tmp_path / 'alone', configs[1])


class StopAt:
    """Stands for StopRequest: a signal that comes when step `at` is about to start."""

    def __init__(self, at):
        self.left = at

    def __call__(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def name(self):
        self.left -= 1
        return 'SIGTERM' if self.left < 0 else ''


@pytest.mark.slow
def test_stopped_together_resumed_alone_and_together(tmp_path, monkeypatch):
    configs = runs()
    places = [tmp_path / f'together{i}' for i in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(together, 'StopRequest', StopAt(5))
        with pytest.raises(Preempted, match='SIGTERM at step 5'):
            together.train_together(configs, [str(p) for p in places])
    assert json.loads((places[2] / 'run.json').read_text())['status'] == 'preempted'
    # One goes on alone as an ordinary run, the others together; all end as if nothing happened.
    trainer.train(configs[0], str(places[0]))
    together.train_together(configs, [str(p) for p in places])
    for index, config in enumerate(configs):
        alone = tmp_path / f'alone{index}'
        trainer.train(config, str(alone))
        assert_same_run(places[index], alone, config)


@pytest.mark.slow
def test_runs_at_different_steps_go_on(tmp_path, monkeypatch):
    configs = runs()
    places = [tmp_path / f'together{i}' for i in range(3)]
    monkeypatch.setattr(together, 'StopRequest', StopAt(7))
    with pytest.raises(Preempted):
        together.train_together(configs[:1], [str(places[0])])
    monkeypatch.setattr(together, 'StopRequest', StopAt(4))
    with pytest.raises(Preempted):
        together.train_together(configs[1:2], [str(places[1])])
    monkeypatch.undo()
    make = mesh_lib.make_mesh
    monkeypatch.setattr(
        mesh_lib, 'make_mesh', lambda sizes, devices=None: make(sizes, jax.devices()[:1])
    )
    # Steps saved: 4 and 7; 4; none. The first two meet at 4, the third starts anew.
    together.train_together(configs, [str(p) for p in places])
    for index, config in enumerate(configs):
        alone = tmp_path / f'alone{index}'
        trainer.train(config, str(alone))
        assert_same_run(places[index], alone, config)


def test_a_run_that_diverges_ends_alone(tmp_path):
    configs = runs(divergence=Divergence(policy='stop'), task=small.config().task)
    configs[1] = config_lib.with_values(configs[1], {'config.optimizer.learning_rate': 1e30})
    places = [tmp_path / f'together{i}' for i in range(3)]
    together.train_together(configs, [str(p) for p in places])
    info = json.loads((places[1] / 'run.json').read_text())
    assert info['status'] == 'failed' and info['exit'] == 3 and 'not finite' in info['reason']
    trainer.train(configs[2], str(tmp_path / 'alone'))
    assert_same_run(places[2], tmp_path / 'alone', configs[2])


def test_groups():
    first, second, third = runs()
    assert group_of(first) == group_of(second) == group_of(third)
    zero = config_lib.with_values(first, {'config.model.dropout': 0.0})
    assert group_of(zero) != group_of(first)
    assert group_of(small.config(batch_size=24)) != group_of(small.config())
    assert group_of(small.config(seed=5)) == group_of(small.config())


def test_runs_of_another_program_are_refused(tmp_path):
    with pytest.raises(UserError, match='do not share a compiled program'):
        together.train_together(
            [small.config(), small.config(batch_size=24)],
            [str(tmp_path / 'a'), str(tmp_path / 'b')],
        )
    rollback = small.config(divergence=Divergence(policy='rollback'))
    with pytest.raises(UserError, match='rollback'):
        together.train_together([rollback], [str(tmp_path / 'c')])
