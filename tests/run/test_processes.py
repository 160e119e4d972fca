"""Several processes of one run: one signal stops all at the same step, one death ends all."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxdl.record.folder import Workdir
from tests import chaos, faulty, small

pytestmark = pytest.mark.slow


def start(folder, steps: int, count: int = 2) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]

    def words(index):
        rest = (index, count, port, folder / 'run', steps)
        return [sys.executable, '-m', 'tests.process', *map(str, rest)]

    return [
        subprocess.Popen(
            words(index),
            cwd=chaos.ROOT,
            stdout=open(folder / f'out{index}', 'wb'),
            stderr=subprocess.STDOUT,
            env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
        )
        for index in range(count)
    ]


def await_until(condition, folder, processes) -> None:
    while not condition():
        assert all(process.poll() is None for process in processes), texts(folder)
        time.sleep(0.05)


def step_of(folder) -> int:
    return chaos.last_sample(folder / 'run')


def codes(processes) -> list[int]:
    return [process.wait(timeout=240) for process in processes]


def texts(folder) -> list[str]:
    return [(folder / f'out{i}').read_text() for i in range(2)]


def saved(folder) -> int:
    return chaos.complete(folder / 'run')


def test_a_signal_to_one_stops_all_at_the_same_step_and_one_process_goes_on(tmp_path):
    processes = start(tmp_path, 10**6)
    await_until(lambda: step_of(tmp_path) >= 20, tmp_path, processes)
    processes[1].send_signal(signal.SIGTERM)  # not the one that writes
    assert codes(processes) == [75, 75], texts(tmp_path)
    step = saved(tmp_path)
    assert step >= 20
    said = texts(tmp_path)
    assert f'preempted: SIGTERM at step {step}; saved' in said[1]
    assert f'preempted: a signal to another process at step {step}; saved' in said[0]
    assert json.loads((tmp_path / 'run' / 'run.json').read_text())['processes'] == 2
    # One process, half the devices: the same order of samples, and it ends.
    (alone,) = start(tmp_path, step + 3, count=1)
    assert codes([alone]) == [0], texts(tmp_path)
    used = small.samples(tmp_path / 'run' / 'samples.jsonl')
    order = faulty.Order(faulty.TRAIN, faulty.BATCH, 0)
    assert sorted(used) == list(range(1, step + 4))
    assert all(used[s] == order.batch(s - 1).tolist() for s in used)
    # And the same losses as one process that nobody stopped.
    (tmp_path / 'whole').mkdir()
    (whole,) = start(tmp_path / 'whole', step + 3, count=1)
    assert codes([whole]) == [0], (tmp_path / 'whole' / 'out0').read_text()
    found, expected = (
        {row['step']: row['train/loss'] for row in chaos.lines(place / 'run')}
        for place in (tmp_path, tmp_path / 'whole')
    )
    assert sorted(found) == list(range(1, step + 4))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('victim', [0, 1])
def test_a_death_ends_the_others_and_a_restart_resumes(victim, tmp_path):
    processes = start(tmp_path, 10**6)
    # A checkpoint is complete, the next one is not, and steps after it were taken.
    await_until(lambda: saved(tmp_path) > 0, tmp_path, processes)
    await_until(lambda: step_of(tmp_path) % 500 > 5, tmp_path, processes)
    began = time.monotonic()
    processes[victim].kill()
    found = codes(processes)
    assert time.monotonic() - began < 60
    assert found[victim] == -9 and found[1 - victim] not in (0, 75)
    said = texts(tmp_path)[1 - victim]
    if victim == 1:
        assert found[0] == 1
        assert 'process 1 of 2 is dead' in said or 'another process of this run is probably' in said
        info = json.loads((tmp_path / 'run' / 'run.json').read_text())
        assert info['status'] == 'failed'
    else:  # the service that all talk to is gone with it
        assert 'another task died' in said or 'another process of this run is probably' in said
    step = saved(tmp_path)
    assert step >= 500
    processes = start(tmp_path, step + 2)
    assert codes(processes) == [0, 0], texts(tmp_path)
    assert f'resuming from step {step}' in texts(tmp_path)[0]


def test_what_one_cannot_do_ends_all(tmp_path):
    """The chief finds the folder in use; the other does not wait for it for ever."""
    place = Workdir(tmp_path / 'run')
    place.create()
    try:
        assert codes(start(tmp_path, 5)) == [2, 1]
    finally:
        place.release()
    said = texts(tmp_path)
    assert 'is in use by process' in said[0] and 'Traceback' not in said[0]
    assert 'process 0 failed: --workdir=' in said[1]
