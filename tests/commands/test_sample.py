"""The sample command on small runs, as a user calls it."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from jaxdl.run import loop as trainer
from tests.test_language_configs import files, shrunk

__all__ = ['files']


def call(workdir, *words, text=''):
    """(exit code, lines of standard output, standard error) of the command."""
    done = subprocess.run(
        [sys.executable, '-m', 'jaxdl', 'sample', f'--workdir={workdir}', *words],
        input=text.encode(),
        capture_output=True,
        env=os.environ,
        timeout=280,
    )
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode()


@pytest.mark.slow
def test_a_language_model_continues(files, tmp_path):
    config = dataclasses.replace(shrunk('char_rnn', files), steps=1)
    trainer.train(config, str(tmp_path / 'run'))
    words = ('--prompt=the cat', '--tokens=5', '--num=2', '--json')
    code, lines, _ = call(tmp_path / 'run', *words)
    found = [json.loads(line) for line in lines]
    assert code == 0 and len(found) == 2 and {row['prompt'] for row in found} == {'the cat'}
    assert call(tmp_path / 'run', *words)[1] == lines, 'the same seed, the same text'
    code, lines, message = call(tmp_path / 'run', '--translate')
    assert code == 2 and not lines and 'leave out --translate' in message


@pytest.mark.slow
def test_a_translator_keeps_the_lines(files, tmp_path):
    config = dataclasses.replace(shrunk('translate_small', files), steps=1)
    trainer.train(config, str(tmp_path / 'run'))
    code, lines, _ = call(
        tmp_path / 'run', '--translate', '--beams=2', text='the cat sat\n\na dog ran\n'
    )
    assert code == 0 and len(lines) == 3 and lines[1] == ''
    code, lines, message = call(tmp_path / 'run', '--translate', text='the ' * 99)
    assert code == 2 and not lines and 'sentence 1 has' in message and 'split it' in message
