"""python train.py as a user calls it: good command lines, and what each bad one says."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdl import errors
from jaxdl.commands import train

ROOT = Path(__file__).resolve().parents[2]
DIGITS = '--config=configs/digits_cnn.py'
SHORT = (
    '--config.steps=4',
    '--config.log_every=1',
    '--config.eval_every=2',
    '--config.checkpoint.every=2',
    '--config.model.channels=(4,4)',
)


def call(*words: str, command: str = 'train') -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, '-m', 'jaxdl', command, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ,
    )


def said_by(*words: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of train in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = errors.run(train.main, ['train.py', *words])
    return code, out.getvalue(), err.getvalue()


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_a_run_its_folder_and_what_is_done_with_it(tmp_path):
    folder = tmp_path / 'run'
    first = call(DIGITS, f'--workdir={folder}', *SHORT)
    assert first.returncode == 0, first.stderr
    assert 'total' in first.stdout and 'step 4/4' in first.stdout  # parameters, plain progress
    assert f'run folder {folder}' in first.stdout.splitlines()[-1]
    assert {p.name for p in folder.iterdir()} >= {
        'config.json',
        'run.json',
        'metrics.jsonl',
        'checkpoints',
        'tensorboard',
        'samples',
    }
    about = json.loads((folder / 'run.json').read_text())
    assert about['status'] == 'finished' and about['parameters'] > 0
    assert about['environment']['xla_flags'], 'what was set before jax started'
    rows = rows_of(folder)
    assert [row['step'] for row in rows] == [1, 2, 3, 4]
    assert rows[1]['eval/test/examples'] == 359 and rows[3]['train/loss'] > 0
    assert rows[3]['perf/examples_per_s'] > 0

    again = call(DIGITS, f'--workdir={folder}', *SHORT)
    assert again.returncode == 0 and 'already finished at step 4' in again.stdout
    longer = call(DIGITS, f'--workdir={folder}', *SHORT, '--config.steps=6')
    assert longer.returncode == 0, longer.stderr
    assert 'resuming from step 4' in longer.stdout
    assert [row['step'] for row in rows_of(folder)] == [1, 2, 3, 4, 5, 6]

    found = call(f'--workdir={folder}', '--json', '--batch_size=56', command='evaluate')
    assert found.returncode == 0, found.stderr
    values = json.loads(found.stdout.splitlines()[-1])
    assert values['step'] == 6 and values['eval/test/examples'] == 359
    assert values['eval/test/accuracy'] == rows_of(folder)[-1]['eval/test/accuracy']


ONLY_THE_CONTEXT = """
import json, os, sys, types
from jaxdl.commands import train

def record(config, workdir, *, context, profile):
    from jax._src import xla_bridge
    assert not xla_bridge.backends_are_initialized(), 'XLA has read its flags already'
    print(json.dumps([context['environment']['xla_flags'], os.environ['XLA_FLAGS']]))
    sys.exit()

train.runtime.open_devices = lambda: None
sys.modules['jaxdl.run.loop'] = types.SimpleNamespace(train=record)
train.main(['train.py', *sys.argv[1:]])
"""


def test_deterministic_sets_the_flags_before_a_device_is_used(tmp_path):
    """Whether the command line asks for it or the config file does."""
    file = tmp_path / 'config.py'
    file.write_text(
        'from configs.digits_cnn import get_config as digits\n'
        'def get_config():\n    config = digits()\n    config.deterministic = True\n    return config\n'
    )
    flag = '--xla_gpu_deterministic_ops=true'
    for words in (DIGITS, '--config.deterministic=True'), (f'--config={file}',):
        found = subprocess.run(
            [sys.executable, '-c', ONLY_THE_CONTEXT, *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ,
        )
        assert found.returncode == 0, found.stderr
        recorded, environment = json.loads(found.stdout.splitlines()[-1])
        assert flag in recorded and flag in environment.split()


def test_help_lists_fields_with_types_and_meanings():
    code, said, _ = said_by(DIGITS, '--help')
    assert code == 0
    assert '--config.optimizer.learning_rate' in said
    line = next(x for x in said.splitlines() if '--config.steps ' in x)
    assert 'int = 1200' in line and 'optimizer steps of the whole run' in said


# What stands on the command line after the config, and what the message must hold.
BAD = {
    'unknown field': ('--config.optimiser.learning_rate=1', "did you mean 'optimizer'"),
    'abbreviation of a field further down': (
        '--config.lr=1',
        "did you mean 'optimizer.learning_rate'",
    ),
    'a long value': ('--config.steps=' + 5000 * 'x', 'x … x'),
    'abbreviation': ('--config.optimizer.lr=1', "did you mean 'learning_rate'"),
    'wrong type': ('--config.optimizer.learning_rate=fast', 'must be float'),
    'fraction of a step': ('--config.steps=1.5', 'must be int'),
    'out of range': ('--config.steps=0', 'must be at least 1'),
    'item of a tuple': ("--config.model.channels=(3,'a')", "channels[1]='a': must be int"),
    'not a number': ('--config.ema=nan', 'must be a number'),
    'a whole object': ('--config.optimizer=sgd', 'cannot be set as a whole'),
    'no such metric': ('--config.checkpoint.best=eval/test/acc', "did you mean 'eval/test/accu"),
    'no such data set': ('--config.data.name=digitz', "did you mean 'digits'"),
    'no such split': ('--config.data.train=trian', "did you mean 'train'"),
    'batch and devices': ('--config.batch_size=60', 'for example 56 or 64'),
    'mesh and devices': ('--config.mesh.data=3', 'divisors: 1, 2, 4, 8'),
    'parts of a batch': ('--config.accumulate=7', 'does not divide batch_size=64'),
    'classes of the model': ('--config.model.num_classes=5', 'give both the same number'),
    'classes of the data': ('--config.task.num_classes=12', 'digits has 10 classes'),
    'unused field': ('--config.init_from.skip=("a",)', 'unused without path'),
    'a flag that is a field': ('--steps=5', 'is set by --config.steps='),
    'a misspelt flag': ('--confg.steps=5', "did you mean 'config.steps'"),
    'no flag at all': ('steps=5', 'flags are written --config.FIELD=VALUE'),
}


@pytest.mark.parametrize('name', BAD)
def test_a_mistake_ends_with_2_and_a_hint(name, tmp_path):
    word, hint = BAD[name]
    code, _, said = said_by(DIGITS, f'--workdir={tmp_path / "run"}', word)
    assert code == 2, said
    assert hint in said
    assert 'Traceback' not in said and len(said.strip().splitlines()) <= 2
    assert not (tmp_path / 'run' / 'config.json').exists(), 'nothing was started'


@pytest.mark.parametrize(
    ('words', 'hint'),
    [
        ((), '--config is missing'),
        (('--config=digit_cnn',), "did you mean 'digits_cnn'"),
        (('--config=runs/digits_cnn.py',), 'there is no such file; did you mean'),
        (('--config=digits_cnn:big',), 'has no variants'),
        (('--config=configs/digit_cnn.py',), "did you mean 'configs/digits_cnn.py'"),
        (('--config=configs/cifar_cnn.py:resnet',), "did you mean 'resnet18'"),
        (('--config=configs/digits_cnn.py:big',), 'has no variants'),
        (('--config=train.py',), 'has no function get_config'),
        (('--config=README.md',), 'is no Python file'),
    ],
)
def test_a_wrong_config_file(words, hint):
    code, _, said = said_by(*words)
    assert code == 2 and hint in said, said
    assert 'Traceback' not in said


def test_the_default_folder_is_named_after_the_command():
    def folder(*words):
        return train.default_workdir(['train.py', *words])

    assert folder('--config=configs/cifar_cnn.py:96') == 'runs/cifar_cnn-96'
    long = folder('--config=configs/cifar_cnn.py', '--config.seed=1', '--config.steps=9')
    assert long == 'runs/cifar_cnn,seed=1', 'steps may change in one folder'
    many = [f'--config.optimizer.learning_rate=0.{i:030d}' for i in range(9)]
    assert len(folder('--config=configs/cifar_cnn.py', *many)) < 140
