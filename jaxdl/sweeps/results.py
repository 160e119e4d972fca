"""The results of a sweep: results.json and results.csv, written anew after every trial."""

import collections
import csv
import io
import math
import os
import shlex
import statistics
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.files import write_bytes, write_json
from jaxdl.record.metrics_file import read_metrics
from jaxdl.sweeps.spec import Sweep, Trial, text
from jaxdl.sweeps.store import FINISHED, Store


def number_of(value: Any) -> float | None:
    """A metric's value if it is a finite number, else None."""
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # an integer that is too large for a float
        return None


def value_of(sweep: Sweep, rows: list[dict[str, Any]]) -> tuple[float | None, int | None]:
    """(value, step) of the sweep's metric in rows of metrics.jsonl; (None, None) without one."""
    written = [(number_of(row[sweep.metric]), row['step']) for row in rows if sweep.metric in row]
    found = [(value, step) for value, step in written if value is not None]
    if not found or (sweep.value == 'last' and written[-1][0] is None):
        return None, None
    best = max if sweep.mode == 'max' else min
    return found[-1] if sweep.value == 'last' else best(found, key=lambda item: item[0])


def joules_of(rows: list[dict[str, Any]]) -> float | None:
    """Measured joules of the whole run; None if nothing was measured."""
    last: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith('energy/') and name.endswith('joules'):
                joules = number_of(value)
                last |= {} if joules is None else {name: joules}
    return sum(last.values()) if last else None


def trial_entry(store: Store, sweep: Sweep, trial: Trial) -> dict[str, Any]:
    """The entry of a trial in results.json."""
    state, info = store.state(trial.id), store.run_info(trial.id)
    try:
        rows = read_metrics(store.path / 'trials' / trial.id / 'metrics.jsonl')
    except UserError:
        if state['status'] == FINISHED:
            raise
        rows = []  # a line is broken; the run drops it when it resumes
    value, step = value_of(sweep, rows)
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    return {
        'id': trial.id,
        'point': trial.point,
        'config': trial.config,
        'varied': trial.varied,
        'overrides': trial.overrides,
        'seed': trial.seed,
        'status': state['status'],
        'reason': state['reason'],
        'value': value,
        'value_step': step,
        'step': info.get('step', 0),
        'steps': trial.steps,
        'attempts': state['attempts'],
        'seconds': info.get('seconds'),
        'wall': state.get('wall'),
        'joules': joules_of(rows),
        'place': state.get('place', ''),
        'metrics': {k: v for k, v in last.items() if k not in ('step', 'time')},
        'workdir': os.path.join('trials', trial.id),
    }


def points_of(sweep: Sweep, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points with mean and deviation of their finished trials over the seeds, best first."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for trial in trials:
        groups.setdefault(trial['point'], []).append(trial)
    found = []
    for number, members in groups.items():
        done = [t for t in members if t['status'] == FINISHED and t['value'] is not None]
        values = [t['value'] for t in done]
        found.append(
            {
                'point': number,
                'varied': members[0]['varied'],
                'trials': [t['id'] for t in members],
                'values': values,
                'complete': len(done) == len(members),
                'mean': statistics.fmean(values) if values else None,
                'deviation': statistics.stdev(values) if len(values) > 1 else None,
            }
        )
    sign = -1 if sweep.mode == 'max' else 1
    # Points with missing seeds rank last, since just their bad seeds may be missing.
    return sorted(
        found,
        key=lambda p: (p['mean'] is None, not p['complete'], sign * (p['mean'] or 0), p['point']),
    )


def best_of(points: list[dict[str, Any]], trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The best point, with the command that trains it again; None if no trial finished."""
    if not points or points[0]['mean'] is None:
        return None
    best = points[0]
    trial = next(t for t in trials if t['id'] == best['trials'][0])
    words = [f'--config.{field}={text(value)}' for field, value in trial['overrides'].items()]
    command = shlex.join(['python', '-m', 'jaxdl', 'train', f'--config={trial["config"]}', *words])
    kept = ('point', 'varied', 'mean', 'deviation', 'trials')
    return {**{name: best[name] for name in kept}, 'command': command}


class Results:
    """Writes the results files of a sweep; entries of trials that are over are computed once."""

    def __init__(self, store: Store, sweep: Sweep):
        self.store, self.sweep = store, sweep
        self._over: dict[str, dict[str, Any]] = {}

    def forget(self, name: str) -> None:
        self._over.pop(name, None)

    def collect(self, trials: list[Trial]) -> dict[str, Any]:
        """The content of results.json."""
        entries = []
        for trial in trials:
            entry = self._over.get(trial.id) or trial_entry(self.store, self.sweep, trial)
            if entry['status'] not in ('pending', 'running'):
                self._over[trial.id] = entry
            entries.append(entry)
        points = points_of(self.sweep, entries)
        counts = dict(collections.Counter(entry['status'] for entry in entries))
        joules = [e['joules'] for e in entries if e['joules'] is not None]
        return {
            'metric': self.sweep.metric,
            'mode': self.sweep.mode,
            'value': self.sweep.value,
            'config': self.sweep.config,
            'counts': counts,
            'seconds': sum(e['seconds'] or 0.0 for e in entries),
            'wall': sum(e['wall'] or 0.0 for e in entries),
            'joules': sum(joules) if joules else None,
            'best': best_of(points, entries),
            'points': points,
            'trials': entries,
        }

    def write(self, trials: list[Trial]) -> dict[str, Any]:
        """Writes both files and returns the content of results.json."""
        found = self.collect(trials)
        write_json(self.store.path / 'results.json', found)
        _write_csv(self.store.path / 'results.csv', found['trials'])
        return found


def _write_csv(path: Path, trials: list[dict[str, Any]]) -> None:
    fields = sorted({field for trial in trials for field in trial['varied']})
    metrics = sorted({name for trial in trials for name in trial['metrics']})
    fixed = ['status', 'value', 'value_step', 'step', 'attempts', 'seconds', 'wall', 'joules']
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator='\n')
    writer.writerow(['id', 'point', *fields, 'seed', *fixed, *metrics, 'reason'])
    for trial in trials:
        varied = [text(trial['varied'][f]) if f in trial['varied'] else '' for f in fields]
        values = [trial[name] for name in fixed]
        measured = [trial['metrics'].get(name) for name in metrics]
        writer.writerow(
            [
                trial['id'],
                trial['point'],
                *varied,
                trial['seed'],
                *values,
                *measured,
                trial['reason'],
            ]
        )
    write_bytes(path, rows.getvalue().encode())
