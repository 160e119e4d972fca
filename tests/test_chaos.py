"""Runs that are killed and resumed end like runs that nobody touched: each family, real processes."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests import chaos as chaos_lib
from tests.chaos import ROOT
from tests.reliability_config import VARIANTS
from tests.run.test_cluster import free_port


def chaos(variant: str, kills: int, folder, *words: str) -> str:
    environment = {
        **os.environ,
        'XLA_FLAGS': '',  # one device: fast to compile
        'JAXDL_CACHE': str(folder / 'cache'),
        'TMPDIR': str(folder),
    }
    found = subprocess.run(
        [
            sys.executable,
            '-m',
            'tests.chaos',
            f'--config=tests/reliability_config.py:{variant}',
            f'--kills={kills}',
            '--seed=3',
            *words,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_a_cnn_survives(tmp_path):
    """BatchNorm, dropout, augmentation, averaged weights: killed at each kind of moment."""
    found = chaos('cnn', 4, tmp_path)
    assert found.startswith('4 kills (') and found.rstrip().endswith('equal')


@pytest.mark.slow
@pytest.mark.parametrize('variant', [name for name in VARIANTS if name != 'cnn'])
def test_every_family_survives(variant, tmp_path):
    assert chaos(variant, 4, tmp_path).rstrip().endswith('equal')


def together(folder, steps: int, every: int) -> list[subprocess.Popen]:
    """Two processes of one run in folder/run, on a device each."""
    port, found = free_port(), []
    for index in range(2):
        words = [
            sys.executable,
            '-m',
            'tests.process',
            index,
            2,
            port,
            folder / 'run',
            steps,
            every,
        ]
        environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAXDL_CACHE': str(folder / 'cache')}
        with open(folder / f'out{index}', 'ab') as out:
            found.append(
                subprocess.Popen(
                    list(map(str, words)), cwd=ROOT, stdout=out, stderr=out, env=environment
                )
            )
    return found


@pytest.mark.slow
def test_a_run_of_two_processes_survives(tmp_path):
    """Killed three times: one, the other, both; each time the run goes on from its last checkpoint."""
    steps, every, rng = 250, 20, random.Random(3)
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    victims = [(0,), (1,), (0, 1)]
    rng.shuffle(victims)
    for folder in (whole, broken):
        folder.mkdir()

    def texts(folder):
        return [(folder / f'out{index}').read_text()[-3000:] for index in range(2)]

    def end(processes):
        return [process.wait(timeout=120) for process in processes]

    assert end(together(whole, steps, every)) == [0, 0], texts(whole)
    resumes = 0
    for index, several in enumerate(victims):
        # Beyond all that was done before, but not so far that the run ends before the last kill.
        before = chaos_lib.last_sample(broken / 'run')
        target = rng.randint(before + 1, max(before + 1, steps * (index + 1) // 5))
        processes = together(broken, steps, every)
        while chaos_lib.last_sample(broken / 'run') < target:
            assert [p.poll() for p in processes] == [None, None], texts(broken)
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        for victim in several:
            processes[victim].send_signal(signal.SIGKILL)
        codes = end(processes)
        assert all(codes[victim] == -signal.SIGKILL for victim in several), texts(broken)
        assert 0 not in codes
        resumes += chaos_lib.complete(broken / 'run') > 0
    assert resumes >= 2
    assert end(together(broken, steps, every)) == [0, 0], texts(broken)
    assert (broken / 'out0').read_text().count('resuming from step') == resumes
    assert chaos_lib.compare(whole / 'run', broken / 'run') == []
