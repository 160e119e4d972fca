"""Aggregates over seeds: what a run's score is, and intervals against known ones."""

import json

import numpy as np
import pytest
import scipy.stats

from experiments.rl import aggregate
from jaxdl.tasks.reinforcement import interquartile_mean


def test_the_interval_of_a_mean_is_the_one_of_the_normal_distribution():
    rng = np.random.default_rng(0)
    values = rng.normal(10, 3, 200)
    value, low, high = aggregate.stratified_bootstrap({'a': values}, lambda x: float(x.mean()))
    half = 1.96 * values.std() / np.sqrt(200)
    assert value == pytest.approx(values.mean())
    assert low == pytest.approx(value - half, abs=0.08) and high == pytest.approx(
        value + half, abs=0.08
    )


def test_runs_are_drawn_within_their_task():
    """Two tasks without any spread of their own leave none in the mean of both."""
    scores = {'low': np.zeros(4), 'high': np.full(6, 10.0)}
    value, low, high = aggregate.stratified_bootstrap(scores, lambda x: float(x.mean()))
    assert value == low == high == 6.0


def test_interquartile_mean_is_scipys():
    values = np.random.default_rng(0).normal(size=37)
    assert interquartile_mean(values) == pytest.approx(scipy.stats.trim_mean(values, 0.25))


def test_scores_of_run_folders(tmp_path, monkeypatch, capsys):
    environment = {'type': 'a:Visible', 'environment': {'type': 'b:Gymnax', 'name': 'CartPole-v1'}}
    for seed in range(3):
        folder = tmp_path / f'trial{seed}'
        folder.mkdir()
        tree = {
            'seed': seed,
            'model': {'memory': 8},
            'task': {'type': 'c:Ppo', 'environment': environment},
        }
        (folder / 'config.json').write_text(json.dumps(tree))
        rows = [{'step': s, 'eval/episodes/return': 100.0 * seed + s} for s in (1, 2)]
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    monkeypatch.setattr('sys.argv', ['aggregate', str(tmp_path)])
    assert aggregate.main() == 0
    found = capsys.readouterr().out
    assert 'Ppo Visible CartPole-v1 memory=8: 3 runs, mean 102 [2, 202]' in found
    monkeypatch.setattr('sys.argv', ['aggregate', str(tmp_path), '--metric=eval/none'])
    assert aggregate.main() == 2
