"""Runs that are killed and resumed end like runs that nobody touched: each family, real processes."""

import os
import subprocess
import sys

import pytest

from tests.chaos import ROOT


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
@pytest.mark.parametrize('variant', ['rnn', 'transformer'])
def test_language_models_survive(variant, tmp_path):
    assert chaos(variant, 4, tmp_path).rstrip().endswith('equal')
