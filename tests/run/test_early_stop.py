"""A run ends when a metric gets no better; killed and resumed it ends at the same step."""

import dataclasses
import json
import math

import numpy as np
import pytest

from jaxdl.core.config import Checkpoint, EarlyStop
from jaxdl.errors import UserError
from jaxdl.run import loop
from tests import small


def first_without(values, patience, mode='min', least=0.0):
    """The evaluation, from 1, at which early stopping ends a run; by the definition."""
    best, since = None, 0
    for number, value in enumerate(values, 1):
        gain = math.inf if best is None else (value - best) * (1 if mode == 'max' else -1)
        best, since = (value, 0) if gain > least else (best, since + 1)
        if since == patience:
            return number
    return None


def rows_of(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def config(**changes):
    values = dict(
        steps=40, log_every=2, eval_every=2, checkpoint=Checkpoint(every=2, keep=2), ema=0.0
    )
    return small.config(**{**values, **changes})


def test_it_ends_where_the_definition_says(tmp_path):
    stop = EarlyStop('eval/test/accuracy', mode='max', patience=1, least=0.06)
    result = loop.train(config(early_stop=stop), str(tmp_path / 'run'))
    rows = rows_of(tmp_path / 'run')
    values = [row['eval/test/accuracy'] for row in rows]
    assert result.steps == 2 * len(rows) == 2 * first_without(values, 1, 'max', 0.06) < 40
    about = json.loads((tmp_path / 'run' / 'run.json').read_text())
    assert about['status'] == 'finished' and 'was not better than' in about['reason']
    best = next(v for v in values if f'{v:.6g}' in about['reason'])
    assert best >= max(values) - 0.06 and f'{best:.6g} in 1 evaluation' in about['reason']
    # Again it is finished; with more patience it goes on, with the numbers of an unbroken run.
    assert loop.train(config(early_stop=stop), str(tmp_path / 'run')).steps == result.steps
    longer = dataclasses.replace(stop, patience=2)
    whole = loop.train(config(early_stop=longer), str(tmp_path / 'whole'))
    later = loop.train(config(early_stop=longer), str(tmp_path / 'run'))
    assert later.steps == whole.steps > result.steps
    found, right = (rows_of(tmp_path / name) for name in ('run', 'whole'))
    for one, other in zip(found, right, strict=True):
        for name in one:
            if name.startswith(('train/', 'eval/')):
                np.testing.assert_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize(
    'values, rule, ends',
    [
        ([3, 2, 2, 2], EarlyStop('m', patience=2), 4),
        ([3, 2.5, 2, 1.5], EarlyStop('m', patience=2, least=0.6), None),
        ([3, 2.5, 2.45, 2.2], EarlyStop('m', patience=2, least=0.6), 3),
        ([0.1, 0.3, 0.2, 0.4, 0.4, 0.4], EarlyStop('m', mode='max', patience=2), 6),
        ([math.nan, math.nan, 1], EarlyStop('m', patience=2), 2),
        ([1, math.nan, 0.5], EarlyStop('m', patience=2), None),
    ],
)
def test_what_counts_as_better(values, rule, ends):
    best, since, found = None, 0, None
    for number, value in enumerate(values, 1):
        if rule.better(value, best):
            best, since = value, 0
        else:
            since += 1
        if since >= rule.patience and found is None:
            found = number
    assert found == ends


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(early_stop=EarlyStop('eval/test/acuracy')), "did you mean 'eval/test/accuracy'"),
        (dict(early_stop=EarlyStop('train/loss')), 'must be an evaluation metric'),
        (dict(early_stop=EarlyStop('eval/test/loss'), eval_every=0), 'unused when eval_every=0'),
        (
            dict(early_stop=EarlyStop(patience=0)),
            '--config.early_stop.patience=0: must be at least',
        ),
    ],
)
def test_wrong_rules(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        loop.train(config(**changes), str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()
