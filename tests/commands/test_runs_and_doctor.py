"""`jaxdl runs` and `jaxdl doctor`."""

import json

import pytest

from jaxdl import errors
from jaxdl.__main__ import main
from tests.report.test_report import make_run


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    make_run(folder / 'a', seed=0)
    make_run(folder / 'deep' / 'b', seed=1, level=0.1, slim=True)
    make_run(folder / 'c', seed=2, learning_rate=0.5, status='failed', level=-0.1)
    return folder


def test_runs_say_what_differs_and_come_best_first(folder, capsys):
    assert not main(['', 'runs', str(folder)])
    head, *rows = capsys.readouterr().out.splitlines()
    names = 'run status step best eval/test/accuracy at joules optimizer.learning_rate seed'
    assert head.split() == names.split()
    assert [row.split()[0] for row in rows] == ['deep/b', 'a', 'c']
    assert rows[1].split() == 'a finished 60/60 70.00 % 40 5,000 0.1 0'.split()
    assert rows[0].split() == 'deep/b finished 60/60 80.00 % 40 0.1 1'.split()
    assert rows[2].split()[1] == 'failed' and rows[2].endswith('2')

    assert not main(['', 'runs', str(folder), '--metric=eval/test/loss', '--json'])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row['run'] for row in found} == {'a', 'c'} | {'deep/b'} and found[-1]['best'] is None
    assert found[0]['best'] == pytest.approx(1 / 60) and found[0]['best_step'] == 60
    assert found[0]['differs'].keys() == {'optimizer.learning_rate', 'seed'}

    assert errors.run(main, ['', 'runs', str(folder), '--metric=eval/test/acuracy']) == 2
    assert "did you mean 'eval/test/accuracy'?" in capsys.readouterr().err


def test_doctor_says_what_is_there(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('JAXDL_CACHE', str(tmp_path / 'cache'))
    assert not main(['', 'doctor'])
    text = capsys.readouterr().out
    for words in ('jaxdl', 'Python 3', 'cpu 0', 'cores', 'compiled programs', 'energy of the GPU'):
        assert words in text
    assert str(tmp_path / 'cache') in text and len(text.splitlines()) <= 30

    from importlib import metadata

    versions = metadata.version
    monkeypatch.setattr(
        metadata, 'version', lambda name: '0.0.1' if name == 'optax' else versions(name)
    )
    main(['', 'doctor'])
    assert '! other versions than the tested ones: optax 0.0.1 (tested: ' in capsys.readouterr().out
