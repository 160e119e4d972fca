"""The sample command on small runs, as a user calls it."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxdl.run import loop as trainer
from tests import small
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


@pytest.mark.slow
def test_pictures_are_drawn_into_a_file(tmp_path):
    config = small.diffusion(steps=1, eval_every=0, log_every=1)
    trainer.train(config, str(tmp_path / 'run'))
    out = tmp_path / 'grid.png'
    words = ('--class=3', '--guidance=2', '--sampler=dpmpp_2m', '--steps=2', f'--out={out}')
    code, lines, message = call(tmp_path / 'run', '--n=4', '--json', *words)
    assert code == 0, message
    record = json.loads(lines[0])
    assert record['pictures'] == 4 and '4 evaluations' in record['note']
    assert Image.open(out).size == (22, 22)  # two by two, with gaps
    # What is known of a picture stays, and the part under the mask is drawn.
    half = np.zeros((8, 8), np.uint8)
    half[:, 4:] = 255
    Image.fromarray(half).save(tmp_path / 'half.png')
    words = (f'--inpaint={tmp_path}/half.png', f'--mask={tmp_path}/half.png', '--steps=2')
    code, lines, message = call(tmp_path / 'run', '--n=1', f'--out={out}', *words)
    assert code == 0, message
    assert (np.asarray(Image.open(out))[2:10, 2:6] == 0).all()
    assert (np.asarray(Image.open(out))[2:10, 6:10] != 255).any()
    for words, said in (
        (('--prompt=x',), '--prompt: is for a model that continues text'),
        (('--n=4',), '--out is missing'),
        (('--class=10', f'--out={out}'), 'must be a number below 10 or a name'),
        (('--n=5', '--interpolate=2', f'--out={out}'), 'must be a multiple of --interpolate=2'),
        ((f'--inpaint={tmp_path}/half.png', f'--out={out}'), 'are given together'),
        (('--sampler=hein', f'--out={out}'), "did you mean 'heun'"),
    ):
        code, lines, message = call(tmp_path / 'run', *words)
        assert code == 2 and not lines and said in message, message
