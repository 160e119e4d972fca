"""Points, sweep files, slots."""

import ast
import dataclasses
import fractions
import http
import itertools
import json
import math

import numpy as np
import pytest

from jaxdl.errors import UserError
from jaxdl.sweeps import (
    Halving,
    Search,
    Sweep,
    chain,
    choices,
    grid,
    integers,
    log_uniform,
    product,
    sample,
    slots,
    uniform,
    zipped,
)
from jaxdl.sweeps.spec import load_sweep, text


def test_grid_is_every_combination_in_order():
    points = grid({'a.x': (1, 2), 'b': ('p', 'q', 'r')})
    assert points == [{'a.x': x, 'b': y} for x, y in itertools.product((1, 2), 'pqr')]


def test_zip_chain_product():
    assert zipped({'a': (1, 2), 'b': (3, 4)}) == [{'a': 1, 'b': 3}, {'a': 2, 'b': 4}]
    assert chain([{'a': 1}], [{'b': 2}]) == [{'a': 1}, {'b': 2}]
    assert product([{'a': 1}, {'a': 2}], [{'b': 3, 'a': 9}]) == [{'a': 9, 'b': 3}] * 2
    with pytest.raises(UserError, match='a has 2, b has 1'):
        zipped({'a': (1, 2), 'b': (3,)})
    with pytest.raises(UserError, match=r"write \['adamw'\]"):
        grid({'a': 'adamw'})
    with pytest.raises(UserError, match='no values'):
        grid({'a': ()})


def test_samples_are_in_range_distinct_and_the_same_again():
    fields = {
        'lr': log_uniform(1e-4, 1e-1),
        'drop': uniform(0, 0.5),
        'width': integers(8, 64),
        'depth': integers(1, 64, log=True),
        'act': choices(('a', 'b')),
        'steps': 10,
    }
    points = sample(200, fields, seed=3)
    assert points == sample(200, fields, seed=3) != sample(200, fields, seed=4)
    assert len({tuple(p.items()) for p in points}) == 200
    for p in points:
        assert 1e-4 <= p['lr'] <= 1e-1 and 0 <= p['drop'] <= 0.5 and 8 <= p['width'] <= 64
        assert isinstance(p['width'], int) and isinstance(p['depth'], int) and p['steps'] == 10
    # Half of a logarithmic range lies below its geometric mean.
    below = sum(p['lr'] < math.sqrt(1e-4 * 1e-1) for p in points)
    assert 70 < below < 130
    with pytest.raises(UserError, match='only 2 different'):
        sample(3, {'a': choices((1, 2))})


@pytest.mark.parametrize(
    'make',
    [
        lambda: uniform(1, 1),
        lambda: log_uniform(0, 1),
        lambda: uniform(0, math.inf),
        lambda: integers(0, 1.5),
        lambda: choices('adamw'),
        lambda: choices(()),
    ],
)
def test_bad_ranges(make):
    with pytest.raises(UserError):
        make()


def test_trials_carry_seeds_and_config_variants():
    sweep = Sweep(
        'configs/a.py',
        'eval/test/accuracy',
        points=[{'x': 1}, {'x': 2, 'config': 'configs/a.py:big'}],
        seeds=2,
        overrides={'steps': 5},
    )
    sweep.check()
    trials = sweep.trials()
    assert [t.id for t in trials] == ['0000', '0001', '0002', '0003']
    assert [t.seed for t in trials] == [0, 1, 0, 1]
    assert [t.config for t in trials] == ['configs/a.py'] * 2 + ['configs/a.py:big'] * 2
    assert trials[1].words() == ['--config.steps=5', '--config.x=1', '--config.seed=1']
    assert len({t.key() for t in trials}) == 4


def test_values_are_written_as_the_command_line_takes_them():
    assert [text(v) for v in (True, (1, 2), 0.1, 'relu', [3], 1e-7)] == [
        'true',
        '(1, 2)',
        '0.1',
        'relu',
        '(3,)',
        '1e-07',
    ]


def test_numbers_of_numpy_are_the_numbers_they_are():
    """Each word of the command line reads as exactly the number that numpy holds."""
    values = [np.float64(0.1), np.float32(0.1), np.float16(0.1), np.int64(3), np.uint8(200)]
    sweep = Sweep(
        'c.py',
        'eval/a/b',
        points=chain(
            grid({'x': values}),
            grid({'x': np.linspace(0.0, 1.0, 3)}),
            [{'x': (np.int32(1), [np.float32(0.5)])}, {'x': np.bool_(True)}, {'x': np.str_('a b')}],
            sample(1, {'x': choices(np.arange(5, 6))}),
        ),
        seeds=np.arange(2),
        overrides={'y': np.float32(0.3)},
    )
    sweep.check()
    trials = sweep.trials()
    shown = [trial.words()[1].removeprefix('--config.x=') for trial in trials[::2]]
    assert [ast.literal_eval(word) for word in shown[:8]] == [*values, 0.0, 0.5, 1.0]
    assert shown[8:] == ['(1, (0.5,))', 'true', 'a b', '5']
    assert trials[1].words()[0] == f'--config.y={float(np.float32(0.3))!r}'
    assert [trial.seed for trial in trials[:2]] == [0, 1]
    json.dumps([dataclasses.asdict(trial) for trial in trials])
    Search({'x': choices(np.arange(3))}, points=np.int64(3), seed=np.int64(1)).check()


@pytest.mark.parametrize(
    'value',
    [
        np.ones(2), np.complex64(1), np.datetime64('2020'), np.longdouble(1), {1: 2}, {1}, 1j, b'a',
        fractions.Fraction(1, 3), http.HTTPStatus.OK, object(), print, (1, [object()]), range(3),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_plain_value_is_refused_by_name(value):
    with pytest.raises(UserError, match=r"grid: 'the.field': .* allowed are numbers, text"):
        grid({'the.field': [1, value]})
    with pytest.raises(UserError, match=r'choices: .* allowed are numbers, text'):
        choices([value])
    for changes in ({'points': [{'the.field': value}]}, {'overrides': {'the.field': value}}):
        with pytest.raises(ValueError, match=r"'the.field': .* allowed are"):
            Sweep('c.py', 'eval/a/b', **changes).check()


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'seeds': -1}, 'seeds=-1'),
        ({'seeds': (0, 1.5)}, 'whole numbers'),
        ({'points': {'x': 1}}, 'a point is a dict'),
        ({'points': Search({'x': uniform(0, 1)}, points=2.5)}, 'points=2.5'),
        ({'mode': 'largest'}, 'mode'),
        ({'metric': 'accuracy'}, 'metric'),
        ({'points': []}, 'no trials'),
        ({'seeds': (1, 1)}, 'twice'),
        ({'seeds': 2, 'overrides': {'seed': 1}}, 'not both'),
        ({'points': Search({'x': uniform(0, 1)}, points=3, sampler='grid')}, 'needs choices'),
        ({'points': Search({'x': uniform(0, 1)}, points=3, sampler='tpee')}, "did you mean 'tpe'"),
        ({'points': Search({'x': 3}, points=3)}, 'must be uniform'),
        ({'stopping': Halving(first=0)}, 'first'),
    ],
)
def test_wrong_sweeps(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        Sweep(**{'config': 'c.py', 'metric': 'eval/a/b', **changes}).check()


def test_sweep_files(tmp_path):
    file = tmp_path / 'one.py'
    with pytest.raises(UserError, match='no such sweep file'):
        load_sweep(str(file))
    file.write_text('x = 1')
    with pytest.raises(UserError, match='no function get_sweep'):
        load_sweep(str(file))
    file.write_text('def get_sweep():\n    return 1 / 0')
    with pytest.raises(UserError, match='ZeroDivisionError'):
        load_sweep(str(file))
    file.write_text(
        "from jaxdl.sweeps import Sweep\ndef get_sweep():\n    return Sweep('c.py', 'eval/t/m', mode='x')"
    )
    with pytest.raises(UserError, match=r"one\.py: mode='x'"):
        load_sweep(str(file))


# ---- slots ----


def test_gpu_slots():
    found = slots.gpu_slots('1,3', 2, ['0', '1', '2', '3'])
    assert [s.name for s in found] == ['gpu 1.0', 'gpu 3.0', 'gpu 1.1', 'gpu 3.1']
    env = dict(found[0].env)
    assert env['CUDA_VISIBLE_DEVICES'] == '1' and env['XLA_CLIENT_MEM_FRACTION'] == '0.4500'
    assert env['XLA_PYTHON_CLIENT_MEM_FRACTION'] is None
    assert 'XLA_CLIENT_MEM_FRACTION' not in dict(slots.gpu_slots('', 1, ['0'])[0].env)
    for wanted, says in (('4', 'no GPU 4; this machine shows GPUs 0, 1'), ('0,0', 'named twice')):
        with pytest.raises(UserError, match=says):
            slots.gpu_slots(wanted, 1, ['0', '1'])
    with pytest.raises(UserError, match='no GPU was found'):
        slots.gpu_slots('0', 1, [])


def test_visible_gpus_respect_the_environment(monkeypatch):
    monkeypatch.setattr(slots, '_present_gpus', lambda: ['0', '1', '2'])
    assert slots.visible_gpus({}) == ['0', '1', '2']
    assert slots.visible_gpus({'CUDA_VISIBLE_DEVICES': '2,1'}) == ['2', '1']
    assert slots.visible_gpus({'CUDA_VISIBLE_DEVICES': ''}) == []
    assert slots.visible_gpus({'CUDA_VISIBLE_DEVICES': '1,-1,2'}) == ['1']
    assert slots.visible_gpus({'CUDA_VISIBLE_DEVICES': 'MIG-ab,7'}) == ['MIG-ab']


def test_cpu_slots_share_the_cores_evenly(monkeypatch):
    monkeypatch.setattr(slots.os, 'sched_getaffinity', lambda _: set(range(8)))
    assert [s.cpus for s in slots.cpu_slots(4)] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [s.cpus for s in slots.cpu_slots(3)] == [(0, 1), (2, 3), (4, 5)]
    assert slots.cpu_slots(1)[0].cpus == ()
    assert [s.cpus for s in slots.cpu_slots(10)][7:] == [(7,), (0,), (1,)]
