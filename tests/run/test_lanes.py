"""Lanes: several runs in one program against each run alone, folder with folder.

Whatever a run can do, a lane can: every kind of model, and init_from, tokenizers, the best
checkpoint, sample ids, generated text, skipped updates, roll-backs, several steps in a call,
averaged weights, and a stop in between.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxdl.core import config as config_lib
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Checkpoint, Divergence, InitFrom, program_key
from jaxdl.core.optim import AdamW, Muon
from jaxdl.core.pipeline import Order
from jaxdl.errors import Preempted, UserError
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.record.metrics_file import read_metrics
from jaxdl.run import loop
from tests import faulty, reliability_config, small
from tests.record.test_tensorboard import foreign_events
from tests.test_language_configs import files, shrunk  # noqa: F401

pytestmark = pytest.mark.usefixtures('one_device')


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
    rows = read_metrics(workdir / 'metrics.jsonl')
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
    # Muon brings all singular values of an update to 1, also those that are nothing but rounding.
    tolerance = 1e-3 if isinstance(config.optimizer, Muon) else 1e-5
    for leaf, alone in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(leaf, alone, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('placement', ['device', pytest.param('host', marks=pytest.mark.slow)])
def test_each_run_is_the_run_alone(tmp_path, placement):
    configs = runs(placement=placement)
    places = [tmp_path / f'together{i}' for i in range(3)]
    loop.train_together(configs, [str(p) for p in places])
    for index, config in enumerate(configs):
        alone = tmp_path / f'alone{index}'
        loop.train(config, str(alone))
        assert_same_run(places[index], alone, config)
        info = json.loads((places[index] / 'run.json').read_text())
        assert info['status'] == 'finished' and info['saved'] == config.steps
        assert (places[index] / 'config.json').read_text() == (alone / 'config.json').read_text()


@pytest.mark.slow
def test_another_optimizer_and_no_ema(tmp_path):
    configs = runs(scale=0.02, ema=0.0, optimizer=AdamW(weight_decay=0.1, clip_norm=1.0))
    loop.train_together(configs, [str(tmp_path / f'together{i}') for i in range(3)])
    loop.train(configs[1], str(tmp_path / 'alone'))
    assert_same_run(tmp_path / 'together1', tmp_path / 'alone', configs[1])


class StopAt:
    """Stands for StopRequest: a signal that comes when step `at` is about to start."""

    def __init__(self, at):
        self.left = at

    def __call__(self, leave=None):
        self.leave = leave
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
        patch.setattr(loop, 'StopRequest', StopAt(5))
        with pytest.raises(Preempted, match=r'SIGTERM at step [1-9]'):
            loop.train_together(configs, [str(p) for p in places])
    assert json.loads((places[2] / 'run.json').read_text())['status'] == 'preempted'
    # One goes on alone as an ordinary run, the others together; all end as if nothing happened.
    loop.train(configs[0], str(places[0]))
    loop.train_together(configs, [str(p) for p in places])
    for index, config in enumerate(configs):
        alone = tmp_path / f'alone{index}'
        loop.train(config, str(alone))
        assert_same_run(places[index], alone, config)


@pytest.mark.slow
def test_runs_at_different_steps_go_on(tmp_path, monkeypatch):
    configs = runs()
    places = [tmp_path / f'together{i}' for i in range(3)]
    monkeypatch.setattr(loop, 'StopRequest', StopAt(7))
    with pytest.raises(Preempted):
        loop.train_together(configs[:1], [str(places[0])])
    monkeypatch.setattr(loop, 'StopRequest', StopAt(4))
    with pytest.raises(Preempted):
        loop.train_together(configs[1:2], [str(places[1])])
    monkeypatch.undo()
    make = mesh_lib.make_mesh
    monkeypatch.setattr(
        mesh_lib, 'make_mesh', lambda sizes, devices=None: make(sizes, jax.devices()[:1])
    )
    # Steps saved: 4 and 7; 4; none. The first two meet at 4, the third starts anew.
    loop.train_together(configs, [str(p) for p in places])
    for index, config in enumerate(configs):
        alone = tmp_path / f'alone{index}'
        loop.train(config, str(alone))
        assert_same_run(places[index], alone, config)


def test_a_run_that_diverges_ends_alone(tmp_path):
    configs = runs(divergence=Divergence(policy='stop'), task=small.config().task)
    configs[1] = config_lib.with_values(configs[1], {'config.optimizer.learning_rate': 1e30})
    places = [tmp_path / f'together{i}' for i in range(3)]
    loop.train_together(configs, [str(p) for p in places])
    info = json.loads((places[1] / 'run.json').read_text())
    assert info['status'] == 'failed' and info['exit'] == 3 and 'not finite' in info['reason']
    loop.train(configs[2], str(tmp_path / 'alone'))
    assert_same_run(places[2], tmp_path / 'alone', configs[2])


def test_groups():
    first, second, third = runs()
    assert program_key(first) == program_key(second) == program_key(third)
    zero = config_lib.with_values(first, {'config.model.dropout': 0.0})
    assert program_key(zero) != program_key(first)
    assert program_key(small.config(batch_size=24)) != program_key(small.config())
    assert program_key(small.config(seed=5)) == program_key(small.config())


def test_runs_of_another_program_are_refused(tmp_path):
    with pytest.raises(UserError, match='do not share a compiled program'):
        loop.train_together(
            [small.config(), small.config(batch_size=24)],
            [str(tmp_path / 'a'), str(tmp_path / 'b')],
        )
    for alone, why in (
        (small.config(compile='pmap'), 'pmap'),
        (small.config(accumulate=2), 'memory'),
    ):
        with pytest.raises(UserError, match=why):
            loop.train_together([alone], [str(tmp_path / 'c')])


# ---- what a lane can do ---------------------------------------------------------------------------


def same_folders(together, alone, config):
    """All that a run leaves is there, and is what it leaves alone."""
    assert_same_run(together, alone, config)
    kept = {'config.json', 'tokenizer.json', 'samples.jsonl'}
    names = sorted(p.name for p in alone.iterdir() if p.name in kept)
    assert names == sorted(p.name for p in together.iterdir() if p.name in kept)
    for name in names:
        assert (together / name).read_bytes() == (alone / name).read_bytes(), name
    steps = [sorted(p.name for p in (f / 'checkpoints').iterdir()) for f in (together, alone)]
    assert steps[0] == steps[1]
    assert tags(together) == tags(alone)


def tags(folder):
    """{(step, name, kind)} of what TensorBoard shows besides the numbers of speed."""
    return {
        (event.step, value.tag, value.WhichOneof('value'))
        for event in foreign_events(folder / 'tensorboard')
        for value in event.summary.value
        if not value.tag.startswith(('perf/', 'energy/'))
    }


SMALL = {
    'diffusion': small.diffusion,
    'gan': small.gan,
    'robust': small.robust,
    'vae': small.vae,
}


def both_ways(configs, tmp_path):
    places = [tmp_path / f'together{i}' for i in range(len(configs))]
    loop.train_together(configs, [str(p) for p in places])
    for index, config in enumerate(configs):
        loop.train(config, str(tmp_path / f'alone{index}'))
        same_folders(places[index], tmp_path / f'alone{index}', config)
    return places


@pytest.mark.parametrize(
    'name',
    [
        'char_rnn:gru',
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *('stdlib_lm', 'bert_tiny', 'translate_small', 'imdb_lstm', 'cifar_vit'),
                *SMALL,
            )
        ),
    ],
)
def test_every_family(name, files, tmp_path):  # noqa: F811
    config = dataclasses.replace(
        SMALL[name]() if name in SMALL else shrunk(name, files),
        steps=4,
        eval_every=2,
        checkpoint=Checkpoint(every=2),
        ema=0.0,
    )
    if name == 'translate_small':
        config.task = dataclasses.replace(config.task, bleu_examples=3, beams=2)
    if name == 'stdlib_lm':
        config.task = dataclasses.replace(config.task, sample_tokens=4)
    both_ways([config, dataclasses.replace(config, seed=1)], tmp_path)


@pytest.mark.parametrize(
    'variant',
    [
        'rnn_ppo',
        *(pytest.param(name, marks=pytest.mark.slow) for name in ('ppo', 'dqn', 'pqn', 'sac')),
    ],
)
def test_environments(variant, tmp_path):
    # Pendulum is chaotic: differences in the last digit of an action grow with every step of it.
    steps = 2 if variant in ('ppo', 'sac') else 4
    config = dataclasses.replace(
        reliability_config.get_config(variant),
        steps=steps,
        log_every=2,
        eval_every=2,
        checkpoint=Checkpoint(every=2),
    )
    other = config_lib.with_values(config, {'config.seed': 1, 'config.task.discount': 0.9})
    both_ways([config, other], tmp_path)


def test_init_from_best_sample_ids_and_several_steps_in_a_call(tmp_path):
    loop.train(small.config(seed=7, steps=90, eval_every=0), str(tmp_path / 'other'))
    configs = runs(
        init_from=InitFrom(path=str(tmp_path / 'other')),
        checkpoint=Checkpoint(every=4, keep=1, best='eval/test/accuracy'),
        eval_every=4,
        log_every=4,
        steps_per_call=2,
        record_samples=True,
    )
    places = both_ways(configs[:2], tmp_path)
    losses = [measured(place)[0]['train/loss'] for place in places]
    assert max(losses) < 1.5, 'the weights of the other run'


def test_one_lane_rolls_back_and_one_skips_nothing(tmp_path):
    """The bad example comes to the runs at different steps; each goes back by itself."""
    bad = int(Order(faulty.TRAIN, faulty.BATCH, 0).batch(3)[0])
    base = faulty.config(
        task=faulty.Fragile(bad=bad),
        placement='host',
        divergence=Divergence(policy='rollback', max_rollbacks=9),
        steps=8,
        log_every=1,
        eval_every=4,
        checkpoint=Checkpoint(every=2, keep=9),
    )
    places = both_ways([base, dataclasses.replace(base, seed=1)], tmp_path)
    assert all(read_metrics(p / 'metrics.jsonl')[-1]['train/rollbacks'] >= 1 for p in places)


def test_skipped_updates(tmp_path):
    base = faulty.config(
        task=faulty.Fragile(bad=5), placement='host', divergence=Divergence(policy='skip')
    )
    places = both_ways([base, dataclasses.replace(base, seed=1)], tmp_path)
    assert all(read_metrics(p / 'metrics.jsonl')[-1]['train/skipped'] >= 1 for p in places)
