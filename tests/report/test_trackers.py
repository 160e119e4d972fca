"""Runs are sent to a tracking service; Weights & Biases offline, read back from its own file."""

import json
import shutil

import pytest

from jaxdl.__main__ import main
from jaxdl.report import trackers
from tests.report.test_report import make_run


class Kept(trackers.Tracker):
    """A service that keeps what it is told."""

    calls: list

    def begin(self, name, key, config):
        self.calls.append(('begin', name, config['optimizer.learning_rate']))

    def scalars(self, step, values):
        self.calls.append((step, values['train/loss']))

    def picture(self, step, name, path):
        self.calls.append((step, name))

    def end(self, status):
        self.calls.append(('end', status))


def test_only_what_is_new_is_sent_and_not_a_line_that_may_grow(tmp_path, monkeypatch):
    Kept.calls = []
    monkeypatch.setitem(trackers.TRACKERS, 'wandb', Kept)
    run = make_run(tmp_path / 'a', slim=True, pictures=True)
    info, metrics = run / 'run.json', run / 'metrics.jsonl'
    whole, finished = metrics.read_text(), info.read_text()
    metrics.write_text(''.join(whole.splitlines(keepends=True)[:10]))
    info.write_text(finished.replace('"finished"', '"running"'))
    assert not main(['', 'track', str(tmp_path)])
    steps = [call[0] for call in Kept.calls if isinstance(call[0], int)]
    assert Kept.calls[0] == ('begin', 'a', 0.1) and steps == list(range(2, 20, 2))
    assert Kept.calls[-1] == ('end', 'running')

    Kept.calls.clear()
    metrics.write_text(whole)
    info.write_text(finished)
    main(['', 'track', str(tmp_path), '--follow'])
    steps = [call[0] for call in Kept.calls if isinstance(call[0], int)]
    assert steps == list(range(20, 61, 2)) and Kept.calls[-1] == ('end', 'finished')
    Kept.calls.clear()
    main(['', 'track', str(tmp_path)])
    assert Kept.calls == []


def records(data):
    """The records of a W&B file: LevelDB's log format after a header of 7 bytes."""
    place, parts = 7, []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # the rest of a block is too short for a header
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], 'little'), data[place + 6]
        parts.append(data[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield b''.join(parts)
            parts = []


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')
    from wandb.proto import wandb_internal_pb2

    for name, value in {'MODE': 'offline', 'DIR': str(tmp_path), 'PROJECT': 'p'}.items():
        monkeypatch.setenv(f'WANDB_{name}', value)
    make_run(tmp_path / 'runs' / 'a', slim=True)
    assert not main(['', 'track', str(tmp_path / 'runs')])
    wandb.teardown()
    (file,) = (tmp_path / 'wandb').glob('offline-run-*/*.wandb')
    found, config = {}, {}
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof('record_type') == 'run':
            config |= {item.key: item.value_json for item in record.run.config.update}
        if record.WhichOneof('record_type') == 'history':
            values = {
                item.key or '.'.join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            found[values['_step']] = values
    rows = map(json.loads, (tmp_path / 'runs' / 'a' / 'metrics.jsonl').read_text().splitlines())
    rows = {row['step']: row for row in rows}
    assert found.keys() == rows.keys() and config['optimizer.learning_rate'] == '0.1'
    for step, row in rows.items():
        assert found[step]['train/loss'] == row['train/loss']
    assert found[60]['eval/test/accuracy'] == rows[60]['eval/test/accuracy']
    shutil.rmtree(tmp_path / 'wandb')
