"""Early stopping: who is stopped when, against the rules of the papers worked out here."""

import random

import pytest

from jaxdl.sweeps import Halving, Hyperband, Median, Sweep
from jaxdl.sweeps.search import Study
from jaxdl.sweeps.spec import Trial

METRIC = 'eval/test/accuracy'


def trial(name):
    return Trial(f'{name}', 0, {}, None, 'c.py', {})


def stopped_at(study, name, values):
    """The step at which a trial whose metric is values[step - 1] is stopped; None: not at all."""
    unit = trial(name)
    rows = []
    for step, value in enumerate(values, 1):
        rows.append({'step': step, METRIC: value})
        if study.report(unit, rows):
            study.tell(unit, None)
            return step
    study.tell(unit, values[-1])
    return None


def study_of(tmp_path, stopping, **options):
    sweep = Sweep(
        'c.py', METRIC, points=[{'x': i} for i in range(40)], stopping=stopping, **options
    )
    return Study(tmp_path / 'journal', sweep)


@pytest.mark.parametrize('mode', ['max', 'min'])
def test_successive_halving_keeps_one_in_factor_at_each_rung(tmp_path, mode):
    """arXiv:1810.05934, algorithm 2: in the top 1/factor of all that have come to the rung."""
    study = study_of(tmp_path, Halving(first=2, factor=2), mode=mode)
    rungs, draw = {2: [], 4: [], 8: []}, random.Random(0)
    for index in range(16):
        value = draw.random()
        expected = None
        for step, seen in rungs.items():
            seen.append(value)
            kept = sorted(seen, reverse=mode == 'max')[: max(1, len(seen) // 2)]
            if value not in kept:
                expected = step
                break
        assert stopped_at(study, index, [value] * 9) == expected
    assert len(rungs[2]) == 16 and 0 < len(rungs[8]) < len(rungs[4]) < 16


def test_the_median_of_the_trials_before(tmp_path):
    study = study_of(tmp_path, Median(trials=3, warmup=2))
    for index, value in enumerate((0.2, 0.4, 0.6)):
        assert stopped_at(study, index, [value] * 4) is None
    # The median is 0.4; none is stopped before step 2.
    assert stopped_at(study, '3', [0.3] * 4) == 2
    assert stopped_at(study, '4', [0.3, 0.3, 0.5, 0.5]) == 2
    assert stopped_at(study, '5', [0.5] * 4) is None


def test_hyperband_stops_at_the_rungs_of_its_brackets(tmp_path):
    study = study_of(tmp_path, Hyperband(first=1, last=9, factor=3))
    draw = random.Random(1)
    ends = [stopped_at(study, i, [draw.random()] * 9) for i in range(36)]
    # Brackets begin at 1, 3 and 9 steps; their rungs are powers of the factor.
    assert set(ends) <= {1, 3, 9, None} and {1, 3, None} <= set(ends)
    # The best of all survives every rung of every bracket.
    assert stopped_at(study, '36', [1.5] * 9) is None


def test_what_was_reported_is_remembered(tmp_path):
    """A study that is opened again decides as if it had never been closed."""
    values = [0.9, 0.1, 0.8, 0.95, 0.5, 0.93]
    for name in ('whole', 'parts'):
        (tmp_path / name).mkdir()
    whole = study_of(tmp_path / 'whole', Halving(first=2, factor=2))
    expected = [stopped_at(whole, i, [v] * 5) for i, v in enumerate(values)]
    found = []
    for index, value in enumerate(values):
        study = study_of(tmp_path / 'parts', Halving(first=2, factor=2))
        assert not study.report(trial(index), [{'step': 1, METRIC: value}])
        again = study_of(tmp_path / 'parts', Halving(first=2, factor=2))
        assert again.entry_of(trial(index)).number == index
        found.append(stopped_at(again, index, [value] * 5))
    assert found == expected and set(found) > {None}
