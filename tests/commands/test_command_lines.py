"""Every command explains itself, and refuses by name what it does not understand."""

import contextlib
import importlib
import io
import json
import random
import shlex
import tomllib
from pathlib import Path

import pytest

from jaxdl import __main__ as program
from jaxdl import errors
from jaxdl.core import config as config_lib
from jaxdl.core import flags
from tests.conftest import ROOT


class Understood(Exception):
    """The command would begin its work now."""


def understood(*args, **kwargs):
    raise Understood


# Where the work of each command begins.
WORK = (
    'jaxdl.run.cluster.join',
    'jaxdl.run.runtime.open_devices',
    'jaxdl.report.data.find_runs',
    'jaxdl.commands.sweep.make_launcher',
    'jaxdl.commands.plan.gpu_compile.prepare_process',
    'jaxdl.data.prepare.prepare',
    'jaxdl.commands.doctor.installed',
    'subprocess.run',
)


@pytest.fixture
def call(monkeypatch):
    """(exit code, standard output, standard error) of a command that stops where its work begins."""
    for name in WORK:
        module, _, attribute = name.rpartition('.')
        try:
            holder = importlib.import_module(module)
        except ModuleNotFoundError:
            outer, _, inner = module.rpartition('.')
            holder = getattr(importlib.import_module(outer), inner)
        monkeypatch.setattr(holder, attribute, understood)

    def main(argv):
        with contextlib.suppress(Understood):
            return program.main(argv)

    def run(*words):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = errors.run(main, ['jaxdl', *words])
        return code, out.getvalue(), err.getvalue()

    return run


def test_the_list_names_every_command(call):
    files = {path.stem for path in (ROOT / 'jaxdl' / 'commands').glob('*.py')} - {'__init__'}
    assert set(program.COMMANDS) == files
    code, out, _ = call()
    assert code == 0 and call('--help')[1] == out
    listed = {
        line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines() if '  ' in line
    }
    assert set(listed) == files and all(purpose.endswith('.') for purpose in listed.values())
    code, _, said = call('trian')
    assert code == 2 and "'trian' is no command; did you mean 'train'?" in said


@pytest.mark.parametrize('name', program.COMMANDS)
def test_help_of_each_command_is_true(name, call, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, _ = call(name, '--help')
    assert code == 0 and f'usage: jaxdl {name}' in out
    flags_part, example = out.split('\nexample:\n  ')
    rows = [line.split()[0] for line in flags_part.partition('\nflags:\n')[2].splitlines()]
    assert name in ('demo', 'doctor') or [word for word in rows if word.startswith('--')], out
    for word in rows:  # each that is listed is known, and only with a value where one is shown
        if word.startswith('--') and '.FIELD' not in word:
            flag = word.partition('=')[0].replace('[no]', '')
            said = call(name, f'{flag}x=1')[2]
            assert 'there is no such flag' in said and flag.removeprefix('--') in said
    words = shlex.split(example.splitlines()[0])
    code, _, said = call(*words[1:])
    assert code == 0, (words, said)


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (['evaluate'], '--workdir is missing, for example: jaxdl evaluate --workdir='),
        (['evaluate', '--workdir='], '--workdir is empty'),
        (['evaluate', '--workdir=r', '--step=x'], '--step=x: must be a non-negative integer'),
        (['evaluate', '--workdir=r', '--batch_size=0'], 'must be a positive integer'),
        (['evaluate', '--workdir=r', 'more'], "'more' is not a flag"),
        (['evaluate', '--workdr=r'], "did you mean 'workdir'"),
        (['evaluate', '--undefok=x', '--workdir=r', '--x=1'], '--undefok: there is no such flag'),
        (['evaluate', '--flagfile=README.md'], '--flagfile: there is no such flag'),
        (['evaluate', '--workdir=r', '--config.seed=1'], '--config.seed: there is no such flag'),
        (['report'], 'give DIR …, not none'),
        (['report', 'a', '--ouput=x'], "did you mean 'output'"),
        (['prepare'], 'give one NAME, not none'),
        (['prepare', 'mnist', 'cifar10'], 'give one NAME, not mnist cifar10'),
        (['sweep', '--workdir=w'], 'give one FILE, not none'),
        (['sweep', 'experiments/sweeps/digits_lr_width.py'], '--workdir is missing'),
        (['sweep', 'x.py', '--hours=nan'], '--hours=nan: must be a finite number'),
        (['sweep', 'x.py', '--launcher=pbs'], 'must be one of local, slurm'),
        (['plan', '--config=digits_cnn'], '--devices is missing'),
        (['plan', '--config=digits_cnn', '--devices=h10'], 'did you mean'),
        (['benchmark', '--config.seed=1'], '--config is missing'),
        (['interchange', '--workdir=r'], 'give one of --from_hf=DIR'),
        (['interchange', '--workdir=r', '--from_hf=d'], '--config is missing'),
        (['interchange', '--workdir=r', '--to_hf=d', '--new_head'], '--new_head is for --from_hf'),
        (['train', '--config=digits_cnn', '--process=1'], '--coordinator is missing'),
        (['train', '--config=digits_cnn', '--config.lr=1'], "'optimizer.learning_rate'"),
        (['train', '--config=' + 'x' * 5000], 'x … x'),
    ],
)
def test_what_is_wrong_is_named(words, said, call, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, _, text = call(*words)
    assert code == 2 and said in text, text
    assert len(text.splitlines()) <= 2 and len(text) < 2000


# ---- random command lines ----

NAMES = [path for path, *_ in config_lib.describe(flags.load_config('digits_cnn'))]
FLAGS = (
    'workdir step batch_size json prompt tokens num temperature top_k top_p seed translate beams '
    'n out class guidance interpolate inpaint mask output dry_run gpus per_gpu slots vectorize fork launcher hours memory_gb devices network '
    'search largest rows estimate from data_dir seconds from_hf to_hf new_head profile plan '
    'coordinator processes process config help undefok flagfile format to follow every metric mistakes '
    'serve find_lr'
).split()
VALUES = (
    '', '0', '1', '-1', '3.5', 'nan', 'inf', '1e400', 'true', 'None', '()', "('a',)", 'h100x8',
    'digits_cnn', 'configs/digits_cnn.py', 'digits_cnn:x', 'digits', 'runs/none', 'node:1', '=',
    '1:2', 'tokens:int32[8]', '0x10', '9' * 400, 'ü', '\n', '\x1b[1m', '\udc80', 'x' * 3000,
)  # fmt: skip


CONFIG, RUN = '--config=digits_cnn', '--workdir=run'
GOOD = {
    'train': ([CONFIG], [CONFIG, RUN, '--config.seed=3'], []),
    'evaluate': ([RUN], [RUN, '--json'], []),
    'sample': ([RUN, '--prompt=x'], [RUN, '--n=4', '--out=x.png'], []),
    'report': (['run'], ['a', 'b', '--output=c'], []),
    'sweep': ([str(ROOT / 'experiments/sweeps/digits_lr_width.py'), RUN], ['x.py'], []),
    'plan': ([CONFIG, '--devices=h100x8'], [CONFIG, '--devices=v100', '--largest'], []),
    'prepare': (['mnist'], ['mnist', '--from=x'], []),
    'benchmark': ([CONFIG], [CONFIG, '--nostep'], []),
    'interchange': ([RUN, CONFIG, '--from_hf=x'], [RUN, '--to_hf=x'], []),
    'predict': ([RUN, 'a.png'], [RUN, 'a', 'b', '--out=p.csv'], []),
    'export': ([RUN, '--format=stablehlo', '--out=x'], [RUN, '--format=onnx', '--out=x'], []),
    'runs': (['run'], ['a', 'b', '--json'], []),
    'track': (['run', '--to=wandb'], ['run', '--to=wandb', '--follow'], []),
    'doctor': ([], []),
    'demo': ([], []),
}  # fmt: skip


def some_word(rng: random.Random) -> str:
    kind = rng.random()
    name = rng.choice(FLAGS if kind < 0.5 else NAMES)
    if rng.random() < 0.15:  # a letter more or less
        place = rng.randrange(len(name))
        name = name[:place] + rng.choice(['', 'x', '.', '[0]']) + name[place + rng.randrange(2) :]
    if kind > 0.9:
        return rng.choice([*VALUES, '--', '-', '-h', '--no' + name, '-1'])
    return (
        rng.choice(['--', '--', '--', '-', '--no'])
        + name
        + rng.choice([f'={rng.choice(VALUES)}', f'={rng.choice(VALUES)}', ''])
    )


def test_five_hundred_random_command_lines(call, tmp_path, monkeypatch):
    """Each is understood, or ends with 2 and a few short lines; nothing is written."""
    monkeypatch.chdir(tmp_path)
    rng, codes = random.Random(0), {0: 0, 2: 0}
    for _ in range(500):
        words = [rng.choice(program.COMMANDS)]
        words += rng.choice(GOOD[words[0]])
        words += [some_word(rng) for _ in range(rng.choice((0, 0, 1, 1, 2, 4)))]
        code, _, said = call(*words)
        assert code in (0, 2), (words, code, said)
        assert 'Traceback' not in said, (words, said)
        if code == 2:
            lines = said.splitlines()
            assert said.startswith('error: ') and len(lines) <= 4, (words, said)
            assert max(map(len, lines)) < 2000, (words, said[:300])
            assert json.dumps(said).count('\\u001b') == 0, (words, said)
        codes[code] += 1
        assert not list(tmp_path.iterdir()), words
    assert min(codes.values()) > 50, codes


# ---- the installed program ----


def test_the_wheel_holds_every_folder():
    table = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    folders = {
        '.'.join(path.parent.relative_to(ROOT).parts) for path in (ROOT / 'jaxdl').rglob('*.py')
    }
    assert set(table['tool']['setuptools']['packages']) == folders | {'jaxdl.configs'}
    kinds = {path.suffix for path in (ROOT / 'jaxdl').rglob('*.*') if path.is_file()}
    known = {Path(pattern).suffix for pattern in table['tool']['setuptools']['package-data']['*']}
    assert kinds - known <= {'.py', '.pyc'}


def test_requirements_are_what_setuptools_can_read():
    """Versions are pinned in these files alone: no options, one requirement a line."""
    table = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']['dynamic']
    files = [table['dependencies']['file']]
    files += [entry['file'] for entry in table['optional-dependencies'].values()]
    for name in files:
        for line in (ROOT / name).read_text().splitlines():
            assert line.startswith('#') or '==' in line, (name, line)


def test_a_bare_name_is_a_config_here_or_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(flags.find_config('digits_cnn')) == ROOT / 'configs' / 'digits_cnn.py'
    (tmp_path / 'configs').mkdir()
    for name in ('digits_cnn', 'mine'):
        (tmp_path / 'configs' / f'{name}.py').write_text('')
        assert flags.find_config(name) == f'configs/{name}.py'
    assert {'mine', 'digits_cnn', 'char_rnn'} <= set(flags.config_names())


FOLDERS = [
    ('train', '--config=digits_cnn', '--workdir=~/runs'),
    ('evaluate', '--workdir=~/runs'),
    ('sample', '--workdir=~/runs'),
    ('sweep', 'experiments/sweeps/digits_lr_width.py', '--workdir=~/runs'),
    ('report', '~/runs'),
    ('report', 'runs', '--output=~/page'),
    ('prepare', 'digits', '--data_dir=~/data'),
    ('interchange', '--workdir=runs', '--to_hf=~/weights'),
]


@pytest.mark.parametrize('words', FOLDERS, ids=' '.join)
def test_no_command_takes_a_tilde_for_a_folders_name(words, call, monkeypatch, tmp_path):
    """A shell does not replace it in --flag=~/…; without a home folder nobody can."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('pwd.getpwuid', {}.__getitem__)  # as for a user id without an entry
    for name in ('HOME', 'JAXDL_CACHE', 'JAXDL_DATA', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    code, _, err = call(*words)
    assert code == 2 and ('the ~' in err or 'set JAXDL_CACHE' in err), err
    assert not list(tmp_path.iterdir())


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    line = flags.CommandLine('about', example='', words='DIR …')
    line.string('workdir', 'DIR', 'a folder')
    line.string('note', 'TEXT', 'no folder')
    given = line.parse(['x', '~/a', 'b~', '--workdir=~/runs', '--note=~/n'])
    assert given.words == [f'{tmp_path}/a', 'b~']
    assert (given.workdir, given.note) == (f'{tmp_path}/runs', '~/n')
