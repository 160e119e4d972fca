"""What a run does when something goes wrong, each time against a run where nothing did."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Checkpoint, Divergence, Mesh
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.sources import TextFiles
from jaxdl.data.text.tokenizers import Bpe, Bytes, WordPiece
from jaxdl.errors import Diverged, Preempted, UserError
from jaxdl.metrics import Mean
from jaxdl.models.rnn import RnnLM
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.run import loop as trainer
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.language_model import LanguageModel
from tests import chaos, faulty, small
from tests.faulty import FAULTS, Fragile, first_id
from tests.record.test_tensorboard import foreign_events

ORDER = faulty.Order(faulty.TRAIN, faulty.BATCH, 0)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """One device: fast to compile. No fault is left behind."""
    on_devices(monkeypatch, 1)
    yield
    FAULTS.clear()


def on_devices(monkeypatch, count: int) -> None:
    make_mesh = mesh_lib.__dict__.get('_make_mesh', mesh_lib.make_mesh)
    monkeypatch.setattr(mesh_lib, '_make_mesh', make_mesh, raising=False)
    monkeypatch.setattr(
        mesh_lib, 'make_mesh', lambda sizes: make_mesh(sizes, jax.devices()[:count])
    )


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    """The folder of a run of 12 steps where nothing happened."""
    patch = pytest.MonkeyPatch()
    on_devices(patch, 1)
    folder = tmp_path_factory.mktemp('unbroken') / 'run'
    trainer.train(faulty.config(), str(folder))
    patch.undo()
    return folder


def resume_and_compare(folder, unbroken, config=None) -> None:
    trainer.train(config or faulty.config(), str(folder))
    assert chaos.compare(unbroken, folder) == []
    assert run_json(folder)['status'] == 'finished'


@dataclasses.dataclass
class Unread(Documents):
    """Texts that nobody may open."""

    def train_source(self):
        raise AssertionError('the data was read')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'data': Unread(tokenizer=Bpe(vocab_size=300))}, '--config.model.vocab=260'),
        ({'data': Unread(tokenizer=WordPiece(vocab='VOCAB'))}, '--config.model.vocab=260'),
        ({'data': Unread(tokenizer=WordPiece(vocab='gone'))}, "vocab='gone'"),
        ({'data': Unread(tokenizer=Bytes()), 'task': Classification()}, "needs 'image'"),
        ({'data': Unread(tokenizer=Bytes()), 'mesh': Mesh(data=3)}, '--config.mesh'),
    ],
)
def test_what_the_config_decides_comes_before_the_data_and_leaves_no_folder(
    changes, words, tmp_path
):
    vocab = tmp_path / 'vocab.txt'
    vocab.write_text(
        '\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *map(str, range(300))])
    )
    changes['data'].source = TextFiles(train=str(vocab))
    if getattr(changes['data'].tokenizer, 'vocab', '') == 'VOCAB':
        changes['data'].tokenizer.vocab = str(vocab)
    changes = {'model': RnnLM(vocab=260, width=8, layers=1), 'task': LanguageModel()} | changes
    with pytest.raises(UserError, match=words):
        trainer.train(small.config(**changes), str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


class Misdescribed(Documents):
    """Says that its rows are longer than they are."""

    def example(self):
        return {name: np.resize(row, 9) for name, row in super().example().items() if row.shape}


def test_a_data_set_whose_rows_are_not_as_declared_is_named(tmp_path):
    (tmp_path / 'text.txt').write_text('rain and wind ' * 50)
    source = TextFiles(train=str(tmp_path / 'text.txt'))
    data = Misdescribed(source=source, tokenizer=Bytes(), length=8)
    model = RnnLM(vocab=260, width=8, layers=1)
    config = small.config(data=data, model=model, task=LanguageModel())
    with pytest.raises(UserError, match=r'Misdescribed.example\(\) gives .*int32\[9\], but a row'):
        trainer.train(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


def run_json(folder) -> dict:
    return json.loads((folder / 'run.json').read_text())


def steps(folder) -> list[int]:
    return sorted(int(p.name) for p in (folder / 'checkpoints').iterdir() if p.name.isdigit())


def arrays(folder):
    return chaos.newest_state(folder)[1]


# ---- determinism ----


def test_two_runs_are_bit_identical(unbroken, tmp_path):
    trainer.train(faulty.config(), str(tmp_path / 'again'))
    assert chaos.compare(unbroken, tmp_path / 'again') == []
    trainer.train(faulty.config(seed=1), str(tmp_path / 'other'))
    assert chaos.compare(unbroken, tmp_path / 'other') != []


# ---- signals ----


@pytest.mark.parametrize(
    'name', ['SIGTERM', *(pytest.param(n, marks=pytest.mark.slow) for n in ('SIGINT', 'SIGUSR1'))]
)
def test_a_signal_saves_and_the_run_resumes_exactly(name, unbroken, tmp_path, capfd):
    FAULTS['train', first_id(2)] = faulty.send(getattr(signal, name))
    folder = tmp_path / 'run'
    with pytest.raises(Preempted, match=f'{name} at step .* saved') as caught:
        trainer.train(faulty.config(), str(folder))
    assert caught.value.exit_code == 75
    assert run_json(folder)['status'] == 'preempted' and name in run_json(folder)['reason']
    assert len(steps(folder)) == 1 and steps(folder)[0] < 4
    assert f'{name}: finishing the step and saving' in capfd.readouterr().err
    resume_and_compare(folder, unbroken)


@pytest.mark.parametrize('final', [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_signal_breaks_an_evaluation_off(final, unbroken, tmp_path):
    """The state is saved without waiting for the evaluation, which comes first after the resume."""
    folder = tmp_path / 'run'
    evaluations = []

    def fault(rows):
        evaluations.append(1)
        if len(evaluations) == (2 if final else 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return rows

    FAULTS['test', 0] = fault
    with pytest.raises(Preempted, match=f'at step {12 if final else 6}; saved'):
        trainer.train(faulty.config(), str(folder))
    rows = {row['step']: row for row in chaos.lines(folder)}
    assert not any(name.startswith('eval/') for name in rows[12 if final else 6])
    resume_and_compare(folder, unbroken)


# ---- divergence ----


def fragile(batch: int, **policy):
    return faulty.config(
        task=dataclasses.replace(
            Fragile(augmentations=faulty.small.config().task.augmentations), bad=first_id(batch)
        ),
        divergence=Divergence(**policy),
        steps=8,  # two epochs: the bad example comes twice
        log_every=1,
        checkpoint=Checkpoint(every=2, keep=9),
        eval_every=0,
    )


def all_finite(folder) -> bool:
    from orbax.checkpoint import v1 as ocp

    return all(
        np.isfinite(np.asarray(leaf, np.float64)).all()
        for step in steps(folder)
        for leaf in jax.tree.leaves(
            ocp.load_checkpointables(folder / 'checkpoints' / str(step), {'state': None})
        )
    )


def test_stop_names_leaf_step_and_samples(tmp_path):
    folder = tmp_path / 'run'
    with pytest.raises(Diverged) as caught:
        trainer.train(fragile(2), str(folder))
    ids = ', '.join(map(str, ORDER.batch(2)[:8]))
    assert str(caught.value).startswith(
        'the run diverged: step 3: not finite, first gradient of params/classifier/bias '
        f'(loss nan); sample ids {ids}, '
    )
    assert caught.value.exit_code == 3
    assert run_json(folder)['status'] == 'failed' and 'step 3' in run_json(folder)['reason']
    assert steps(folder) == [2] and all_finite(folder)
    assert chaos.lines(folder)[-1] == {'step': 3, 'train/skipped': 1.0}


def test_skip_goes_on_and_counts(tmp_path, capfd):
    folder = tmp_path / 'run'
    result = trainer.train(fragile(2, policy='skip', max_skips=1), str(folder))
    bad = [step for step in range(1, 9) if first_id(2) in ORDER.batch(step - 1)]
    assert len(bad) == 2 and result.steps == 8 and all_finite(folder)
    rows = {row['step']: row for row in chaos.lines(folder)}
    for step in range(1, 9):
        assert rows[step].get('train/skipped', 0) == sum(b <= step for b in bad)
        assert ('train/loss' in rows[step]) == (step not in bad)
    said = capfd.readouterr().out
    for step in bad:
        assert f'step {step}: not finite, first gradient of params/' in said
    # As many optimizer updates as good steps, and every sample was still used once an epoch.
    assert small.samples(folder / 'samples.jsonl')[bad[0]] == ORDER.batch(bad[0] - 1).tolist()


def test_skip_stops_after_too_many(tmp_path):
    config = faulty.config(
        optimizer=dataclasses.replace(faulty.config().optimizer, learning_rate=1e30),
        divergence=Divergence(policy='skip', max_skips=2),
    )
    with pytest.raises(Diverged, match='2 updates in a row were skipped'):
        trainer.train(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run' / 'checkpoints').exists() or all_finite(tmp_path / 'run')


def rolled_back(
    bad: int, *, steps: int, every: int
) -> tuple[dict[int, list[int]], list[list[int]]]:
    """The samples of each step, and those of each bad step, by the words of the policy."""
    used, step, offset, found = {}, 0, 0, []
    while step < steps:
        ids = ORDER.batch(step + offset).tolist()
        step += 1
        used[step] = ids
        if bad in ids:
            saved = (step - 1) // every * every
            offset += step - saved
            found.append(ids)
            used = {s: kept for s, kept in used.items() if s <= saved}
            step = saved
    return used, found


def test_rollback_moves_past_the_bad_stretch(tmp_path, capfd):
    folder = tmp_path / 'run'
    result = trainer.train(fragile(3, policy='rollback'), str(folder))
    # Batch 3 (step 4) is bad: back to step 2, whose next batch is number 4.
    said = capfd.readouterr().err
    assert 'back to step 2, data moved on by 2 batches (roll-back 1 of 3)' in said
    used = small.samples(folder / 'samples.jsonl')
    expected, found = rolled_back(first_id(3), steps=8, every=2)
    assert used == expected and all_finite(folder)
    assert result.metrics['train/rollbacks'] == said.count('back to step') == len(found) > 1
    for ids in found:  # of the step itself, also after the data moved on
        assert f'sample ids {", ".join(map(str, ids[:8]))}, ' in said
    # Killed and resumed, the moved order is what it was.
    shutil.rmtree(folder / 'checkpoints' / '8')
    trainer.train(fragile(3, policy='rollback'), str(folder))
    assert small.samples(folder / 'samples.jsonl') == used


def test_rollbacks_are_used_up(tmp_path):
    with pytest.raises(Diverged, match='1 roll-backs were used up'):
        trainer.train(fragile(3, policy='rollback', max_rollbacks=1), str(tmp_path / 'run'))


def test_a_line_of_metrics_is_the_mean_over_its_steps(tmp_path, unbroken):
    trainer.train(faulty.config(log_every=1), str(tmp_path / 'run'))
    each = {row['step']: row['train/loss'] for row in chaos.lines(tmp_path / 'run')}
    assert sorted(each) == list(range(1, 13))
    for row in chaos.lines(unbroken):  # one line for three steps
        if 'train/loss' in row:
            step = row['step']
            mean = np.mean([each[s] for s in range(step - 2, step + 1)])
            assert step % 3 == 0 and row['train/loss'] == pytest.approx(mean, rel=1e-6)


class WithRare(Classification):
    """A metric of which nothing is counted."""

    def metrics(self, outputs, batch):
        zero = outputs.sum() * 0
        return {**super().metrics(outputs, batch), 'rare': Mean(zero, zero)}


def test_a_metric_of_nothing_is_left_out(tmp_path):
    config = faulty.config(steps=3)
    config.task = WithRare(**vars(config.task))
    trainer.train(config, str(tmp_path / 'run'))
    (row,) = [row for row in chaos.lines(tmp_path / 'run') if 'train/loss' in row]
    assert 'train/rare' not in row


def test_a_checkpoint_is_ranked_by_an_evaluation_of_its_own_step(tmp_path, monkeypatch):
    given = {}
    save = Checkpoints.save

    def noted(self, step, state, *, extra, best=None):
        given[step] = best
        return save(self, step, state, extra=extra, best=best)

    monkeypatch.setattr(Checkpoints, 'save', noted)
    checkpoint = Checkpoint(every=2, best='eval/test/accuracy')
    trainer.train(faulty.config(eval_every=4, checkpoint=checkpoint), str(tmp_path / 'run'))
    rows = {row['step']: row.get('eval/test/accuracy') for row in chaos.lines(tmp_path / 'run')}
    assert given == {step: rows.get(step) for step in (2, 4, 6, 8, 10, 12)}
    assert [step for step, best in given.items() if best is not None] == [4, 8, 12]


# ---- data sources ----


def wrong_shape(rows):
    return {**rows, 'image': rows['image'][:, :7]}


def short(rows):
    return {name: values[:-1] for name, values in rows.items()}


def raises(rows):
    raise OSError('shard 7 is gone')


@pytest.mark.parametrize(
    ('fault', 'kind', 'message'),
    [
        (raises, RuntimeError, 'OSError: shard 7 is gone'),
        (wrong_shape, UserError, r"changed 'image' from .*8, 8, 1.* to .*7, 8, 1"),
        (short, UserError, 'ended early'),
    ],
)
def test_a_bad_source_loses_nothing(fault, kind, message, unbroken, tmp_path):
    FAULTS['train', first_id(3)] = fault
    folder = tmp_path / 'run'
    ids = ', '.join(map(str, ORDER.batch(3)[:8]))
    said = f'failed at step 4 \\(sample ids {ids}, ….*{message}.*saved at step 3'
    with pytest.raises(kind, match=said):
        trainer.train(faulty.config(), str(folder))
    assert steps(folder) == [3] and run_json(folder)['status'] == 'failed'
    FAULTS.clear()
    resume_and_compare(folder, unbroken)


def test_a_worker_process_that_dies(unbroken, tmp_path, monkeypatch):
    monkeypatch.setenv(faulty.DIE_AT, str(first_id(3)))
    folder = tmp_path / 'run'
    with pytest.raises(RuntimeError, match=r'the data source failed at step .* exit code -9'):
        trainer.train(faulty.config(workers=1), str(folder))
    assert run_json(folder)['status'] == 'failed'
    resume_and_compare(folder, unbroken)


# ---- disks ----


def test_a_full_disk_is_loud_and_loses_nothing(unbroken, tmp_path, capfd):
    """From step 6 on no file may grow past 4 kB: training goes on, nothing good is spoilt."""
    folder = tmp_path / 'run'
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(rows):
        deadline = time.monotonic() + 60  # the save of step 4 is under way in the background
        while not (folder / 'checkpoints' / '4').exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        return rows

    FAULTS['test', 0] = fill
    try:
        with pytest.raises(OSError, match=r'reached step 12, but .*could not be saved'):
            trainer.train(faulty.config(), str(folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capfd.readouterr().err
    assert (
        'WARNING: the checkpoint of step 8 could not be saved' in said
        or 'WARNING: a checkpoint' in said
    )
    assert steps(folder) == [4]
    FAULTS.clear()
    # What was written of samples.jsonl is cut where the disk was full; the rest is as it was.
    trainer.train(faulty.config(), str(folder))
    assert chaos.fingerprint(arrays(folder)) == chaos.fingerprint(arrays(unbroken))
    assert chaos.lines(folder) == chaos.lines(unbroken)


def test_saves_that_fail_do_not_end_the_training(unbroken, tmp_path, capfd):
    """The checkpoint folder becomes a file at step 6; when it is one again, saving goes on."""
    folder = tmp_path / 'run'
    place, aside = folder / 'checkpoints', folder / 'elsewhere'

    def block(rows):
        if place.is_dir() and not aside.exists():
            place.rename(aside)
            place.write_text('in the way')
        return rows

    FAULTS['test', 0] = block
    with pytest.raises((OSError, UserError), match=r'12, but|cannot be read'):
        trainer.train(faulty.config(), str(folder))
    assert 'could not be saved' in capfd.readouterr().err
    place.unlink()
    aside.rename(place)
    FAULTS.clear()
    resume_and_compare(folder, unbroken)


# ---- damaged folders ----


def flip(folder, step: int) -> None:
    """Flips a byte in the middle of the largest file of a checkpoint."""
    files = (folder / 'checkpoints' / str(step)).rglob('*')
    path = max((p for p in files if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.fixture
def copied(unbroken, tmp_path):
    """A copy of the unbroken run's folder, as if killed after step 12 was saved."""
    shutil.copytree(unbroken, tmp_path / 'run')
    return tmp_path / 'run'


def test_the_older_checkpoint_replaces_a_damaged_one(copied, unbroken, capfd):
    assert steps(copied) == [8, 12]
    flip(copied, 12)
    resume_and_compare(copied, unbroken)
    said = capfd.readouterr()
    assert 'checkpoints/12 is damaged: ' in said.err and 'resuming from step 8' in said.out
    assert (copied / 'damaged' / '12').is_dir()


def test_never_a_silent_fresh_start(copied):
    flip(copied, 8)
    flip(copied, 12)
    for _ in range(2):  # the second call finds the folder as the first one did
        with pytest.raises(UserError, match=r'no good checkpoint .*step 12: .*step 8: ') as caught:
            trainer.train(faulty.config(steps=20), str(copied))
        assert caught.value.exit_code == 2
    shutil.rmtree(copied / 'checkpoints')
    with pytest.raises(UserError, match=r'saved at step 12, but .* holds no good checkpoint'):
        trainer.train(faulty.config(steps=20), str(copied))
    (copied / 'config.json').unlink()
    with pytest.raises(UserError, match=r'config.json is missing'):
        trainer.train(faulty.config(steps=20), str(copied))


# ---- logs ----


def test_logs_hold_each_step_once_after_a_crash(copied, unbroken):
    """Killed after step 12 with torn lines, resumed from step 8."""
    shutil.rmtree(copied / 'checkpoints' / '12')
    with open(copied / 'metrics.jsonl', 'ab') as file:
        file.write(b'{"step": 14, "time": 17')
    with open(copied / 'samples.jsonl', 'ab') as file:
        file.write(b'{"step": 13, "ids": [1, 2')
    events = next((copied / 'tensorboard').iterdir())
    events.write_bytes(events.read_bytes()[:-7])
    resume_and_compare(copied, unbroken)
    values = [
        (event.step, value.tag, value.simple_value)
        for event in foreign_events(copied / 'tensorboard')
        for value in event.summary.value
    ]
    numbers = {(step, tag): number for step, tag, number in values}
    assert len(values) == len(numbers), 'a step is twice in TensorBoard'
    for row in chaos.lines(copied):
        for name, value in row.items():
            if name != 'step':
                assert numbers[row['step'], name] == pytest.approx(value, rel=1e-6)


# ---- the folder ----


def test_another_config_is_refused_harmless_fields_are_not(copied):
    with pytest.raises(UserError) as caught:
        trainer.train(faulty.config(seed=3, batch_size=32), str(copied))
    for words in ('config.seed: 0 there, 3 now', 'config.batch_size: 16 there, 32 now'):
        assert words in str(caught.value)
    changed = faulty.config(steps=13, log_every=2, eval_every=0, prefetch=1, hang_timeout=60.0)
    assert trainer.train(changed, str(copied)).steps == 13
    with pytest.raises(UserError, match=r'--config.steps=12: .* already at step 13'):
        trainer.train(faulty.config(), str(copied))


def test_a_finished_run_stays_as_it_is(copied, unbroken, capsys):
    trainer.train(faulty.config(), str(copied))
    assert 'already finished at step 12' in capsys.readouterr().out
    assert (copied / 'metrics.jsonl').read_bytes() == (unbroken / 'metrics.jsonl').read_bytes()
    # Killed between the last save and the last word of run.json.
    info = run_json(copied)
    (copied / 'run.json').write_text(json.dumps({**info, 'status': 'running'}))
    trainer.train(faulty.config(), str(copied))
    assert run_json(copied)['status'] == 'finished'


# ---- other devices ----


def test_a_run_moves_to_other_devices(unbroken, tmp_path, monkeypatch):
    """8 devices, then 4 split over the whole state, then 1: the same samples, losses within 1e-5."""
    folder = tmp_path / 'run'
    for devices, stop, mesh in ((8, 4, Mesh()), (4, 8, Mesh(data=1, fsdp=4)), (1, 12, Mesh())):
        on_devices(monkeypatch, devices)
        trainer.train(faulty.config(steps=stop, mesh=mesh, log_every=1, eval_every=0), str(folder))
    single = tmp_path / 'single'
    trainer.train(faulty.config(log_every=1, eval_every=0), str(single))
    assert small.samples(folder / 'samples.jsonl') == small.samples(single / 'samples.jsonl')
    losses = [
        {row['step']: row['train/loss'] for row in chaos.lines(place)} for place in (folder, single)
    ]
    assert sorted(losses[0]) == list(range(1, 13))
    for step, loss in losses[1].items():
        assert losses[0][step] == pytest.approx(loss, rel=1e-5)
