"""What several seeds say together: interquartile means with stratified bootstrap intervals.

    python -m experiments.rl.aggregate RUN_OR_SWEEP … [--metric=eval/episodes/return] [--range=TASK:LOW:HIGH …]

Each run is one score: the last value of the metric in its metrics.jsonl. A folder of a sweep stands for
all runs below it. Runs of the same environment and model are one task; the interval comes from drawing
runs with replacement within each task (arXiv:2108.13264). Over several tasks the scores must be
comparable: --range gives the scores that count as 0 and 1.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jaxdl.record.metrics_file import read_metrics
from jaxdl.tasks.reinforcement import interquartile_mean

Scores = Mapping[str, np.ndarray]


def stratified_bootstrap(
    scores: Scores,
    statistic: Callable[[np.ndarray], float],
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(value, low, high) of `statistic` of the scores of all runs of all tasks, with its interval.

    Args:
        scores: {task: scores of its runs}.
        statistic: of all scores together [n].
        draws: resamples; each draws as many runs of each task as it has, with replacement.
        level: of the percentile interval.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    values = [np.asarray(one, np.float64) for one in scores.values()]
    found = [
        statistic(np.concatenate([one[rng.integers(len(one), size=len(one))] for one in values]))
        for _ in range(draws)
    ]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return statistic(np.concatenate(values)), float(low), float(high)


def runs_below(folder: Path) -> list[Path]:
    """The folders of runs in `folder`, itself included."""
    return sorted(path.parent for path in folder.rglob('metrics.jsonl'))


def score(run: Path, metric: str) -> tuple[str, float] | None:
    """(task, last value of the metric) of a run; None: it has none."""
    rows = [row[metric] for row in read_metrics(run / 'metrics.jsonl') if metric in row]
    tree = json.loads((run / 'config.json').read_text())
    tree.pop('seed', None)
    inner, names = tree['task']['environment'], []
    while inner is not None:
        kind = inner['type'].rpartition(':')[2]
        names.append(inner.get('name', kind))
        inner = inner.get('environment')
    memory = tree['model'].get('memory')
    task = ' '.join([tree['task']['type'].rpartition(':')[2], *names])
    task += f' memory={memory}' if memory else ''
    return (task, float(rows[-1])) if rows else None


def main() -> int:
    """Parses the command line and prints a line a task, and one for all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('folders', nargs='+', type=Path)
    parser.add_argument('--metric', default='eval/episodes/return')
    parser.add_argument('--range', action='append', default=[], metavar='TASK:LOW:HIGH')
    given = parser.parse_args()
    found: dict[str, list[float]] = {}
    for folder in given.folders:
        for run in runs_below(folder):
            one = score(run, given.metric)
            if one is not None:
                found.setdefault(one[0], []).append(one[1])
    if not found:
        print(
            f'no run below {", ".join(map(str, given.folders))} has {given.metric}', file=sys.stderr
        )
        return 2
    ranges = {}
    for text in given.range:
        task, low, high = text.rsplit(':', 2)
        if task not in found:
            parser.error(f'--range={text}: there is no such task; there are {", ".join(found)}')
        ranges[task] = float(low), float(high)
    print(f'{given.metric}, last value of each run')
    for task, values in sorted(found.items()):
        scores = {task: np.asarray(values)}
        words = [f'{len(values)} runs']
        for name, statistic in (
            ('mean', lambda x: float(x.mean())),
            ('median', lambda x: float(np.median(x))),
            ('IQM', interquartile_mean),
        ):
            value, low, high = stratified_bootstrap(scores, statistic)
            words.append(f'{name} {value:.4g} [{low:.4g}, {high:.4g}]')
        print(f'  {task}: {", ".join(words)}')
    if len(found) > 1 and set(ranges) == set(found):
        scaled = {
            task: (np.asarray(values) - ranges[task][0]) / (ranges[task][1] - ranges[task][0])
            for task, values in found.items()
        }
        value, low, high = stratified_bootstrap(scaled, interquartile_mean)
        print(f'  all tasks, scaled: IQM {value:.3f} [{low:.3f}, {high:.3f}]')
    return 0


if __name__ == '__main__':
    sys.exit(main())
