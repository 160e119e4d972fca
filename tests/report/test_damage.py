"""Damaged files of a run or a sweep: the report names them and goes on, and never ends in a traceback."""

import copy
import json
import random
import shutil

import pytest

from jaxdl.commands.report import main
from jaxdl.errors import UserError
from jaxdl.report import data
from jaxdl.report import write as report
from tests.report.test_report import check_page, make_run
from tests.report.test_sweep import make_sweep

HUGE = int('9' * 300)
DEEP = json.loads('[' * 300 + ']' * 300)
ODD = [
    None, True, -1, 0, 7.5, HUGE, 10**400, -(10**400), 1e308, 5e-324, float('nan'), float('inf'), '',
    'x' * 3000, '\ud800', '\x00<b>', '$\\frac{', '../../..', [], [[]], {}, {'type': 3}, DEEP,
    {'type': 'dict', 'items': 5}, {'type': 'function', 'name': None}, [None, {'a': [1]}],
]  # fmt: skip
LINES = [
    '{"step": 3, "time": "x", "train/loss": 1e400}',
    f'{{"step": 3, "train/loss": {10**400}, "time": {10**400}}}',
    f'{{"step": {10**30}, "train/loss": 1}}',
    f'{{"step": {10**400}}}',
    '{"step": -5, "train/loss": 1}',
    '{"step": true}',
    '{"step": 3, "train/loss": ' + '9' * 5000 + '}',
    '{"step": 3, "eval/test/accuracy": ' + '[' * 100_000,
    '{"step": 3, "eval/test/accuracy": ' + '[' * 100_000 + ']' * 100_000 + '}',
    '{"step": 3, "": 1, "$a$_{": 2, "eval//": 3, "\\ud800/loss": 4, "' + 'k' * 400 + '": 5}',
    '{"step": 3, "train/loss": NaN, "eval/test/accuracy": -Infinity}',
    '\x00\xff',
]  # fmt: skip


def places(tree, path=()):
    """The paths of all values of a JSON tree."""
    found = [path] if path else []
    items = (
        tree.items() if isinstance(tree, dict) else enumerate(tree if type(tree) is list else [])
    )
    for key, value in items:
        found += places(value, (*path, key))
    return found


def damage(path, rng: random.Random) -> None:
    """One random change of a file: bytes, a cut, or a value of another type."""
    raw = path.read_bytes()
    kind = rng.choice(['cut', 'flip', 'line', 'empty', 'nest'] + ['value'] * 8)
    if kind == 'cut':
        raw = raw[: rng.randrange(len(raw) + 1)]
    elif kind == 'flip' and raw:
        place = rng.randrange(len(raw))
        raw = raw[:place] + bytes([rng.randrange(256)]) + raw[place + 1 :]
    elif kind == 'empty':
        raw = rng.choice([b'', b'null', b'[]', b'{}', b'"x"', b'\xff\xfe{}'])
    elif kind == 'nest':
        raw = b'{"a":' * 100_000
    elif path.suffix == '.jsonl':
        lines = raw.splitlines()
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(LINES).encode())
        raw = b'\n'.join(lines) + b'\n'
    else:
        try:
            tree = json.loads(raw)
        except (ValueError, RecursionError):
            return  # damaged before
        where = places(tree)
        if where:
            *way, last = rng.choice(where)
            parent = tree
            for key in way:
                parent = parent[key]
            if rng.random() < 0.2:
                del parent[last]
            elif rng.random() < 0.1 and isinstance(parent, dict):
                parent[rng.choice(['\ud800', '$x$', '', 'k' * 300])] = parent.pop(last)
            else:
                parent[last] = copy.deepcopy(rng.choice(ODD))
            raw = json.dumps(tree).encode()
    path.write_bytes(raw)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    make_run(folder / 'good', slim=True, pictures=True)
    make_run(folder / 'bad', slim=True, seed=1)
    return folder


@pytest.mark.parametrize('seed', range(120))
def test_reading_survives_any_damage(whole, tmp_path, seed):
    rng = random.Random(seed)
    folder = tmp_path / 'runs'
    shutil.copytree(whole, folder)
    for _ in range(rng.randint(1, 4)):
        damage(folder / 'bad' / rng.choice(['config.json', 'run.json', 'metrics.jsonl']), rng)
    runs = data.find_runs([folder])
    assert 'good' in {run.name for run in runs}
    json.dumps(report.summary([folder]), ensure_ascii=False).encode()
    report.terminal_table(runs).encode()
    data.differing(runs)
    data.group_by_seed(runs)
    try:
        data.find_runs([folder / 'bad'])
    except UserError as error:
        assert str(folder / 'bad') in str(error)


@pytest.mark.parametrize('seed', range(6))
def test_a_page_survives_any_damage(whole, tmp_path, seed):
    rng = random.Random(1000 + seed)
    shutil.copytree(whole, tmp_path / 'runs')
    for name in ('config.json', 'run.json', 'metrics.jsonl'):
        damage(tmp_path / 'runs' / 'bad' / name, rng)
    assert main(['report', str(tmp_path / 'runs')]) == 0
    check_page(tmp_path / 'runs' / 'report' / 'index.html')


@pytest.mark.parametrize('line', range(len(LINES)))
def test_one_strange_line_breaks_no_page(whole, tmp_path, line, capsys):
    shutil.copytree(whole, tmp_path / 'runs')
    with open(tmp_path / 'runs' / 'bad' / 'metrics.jsonl', 'w') as file:
        file.write(
            f'{{"step": 1, "train/loss": 1}}\n{LINES[line]}\n{{"step": 9, "train/loss": 1}}\n'
        )
    data.find_runs([tmp_path / 'runs'])
    with open(tmp_path / 'runs' / 'bad' / 'metrics.jsonl', 'a') as file:
        file.write(f'{LINES[line]}\n')  # as the last one it is not replaced by a later step
    runs = data.find_runs([tmp_path / 'runs'])
    said = capsys.readouterr().err
    assert (len(runs) == 1) == (line in (1, 2, 3, 4, 5, 6, 7, 8, 11))
    if len(runs) == 1:
        assert 'bad/metrics.jsonl' in said and 'left out of the report' in said
    report.write(runs, [tmp_path / 'runs'], tmp_path / 'page')
    check_page(tmp_path / 'page' / 'index.html')


@pytest.mark.parametrize('seed', range(8))
def test_a_damaged_sweep_leaves_the_runs(tmp_path, seed, capsys):
    rng = random.Random(2000 + seed)
    make_sweep(tmp_path, [{'a': 1}, {'a': 2}], seeds=2, value=lambda varied, seed: 0.5)
    for name in ('results.json', 'results.json', 'sweep.json'):
        damage(tmp_path / name, rng)
    assert main(['report', str(tmp_path)]) == 0
    text = check_page(tmp_path / 'report' / 'index.html')
    said = capsys.readouterr().err
    assert 'trials/0000' in text or '0000' in text
    assert ('Learning curves' in text) != ('results.json' in said)


@pytest.mark.parametrize('levels', [100, 450, 900, 100_000])
@pytest.mark.parametrize('name', ['config.json', 'run.json'])
def test_nesting_is_named(whole, tmp_path, levels, name, capsys):
    shutil.copytree(whole, tmp_path / 'runs')
    (tmp_path / 'runs' / 'bad' / name).write_text('{"git": ' + '[' * levels + ']' * levels + '}')
    runs = data.find_runs([tmp_path / 'runs'])
    data.differing(runs)
    data.group_by_seed(runs)
    said = capsys.readouterr().err
    if name == 'config.json':
        assert len(runs) == 1 and 'bad/config.json' in said and 'nested too deeply' in said
    else:
        assert [run.status for run in runs] == ['unknown', 'finished'] and not said
