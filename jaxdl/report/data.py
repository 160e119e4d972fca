"""What a report is made of: the runs under some folders, read from their files.

Files may be damaged: what is read is cleaned here, so that nothing later meets a wrong type, a
number that no float holds, or a nesting without end.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl import files
from jaxdl.errors import UserError, nearest
from jaxdl.record.metrics_file import read_metrics
from jaxdl.record.terminal import number, warn

_SKIPPED = {'checkpoints', 'tensorboard', 'samples', 'report', '__pycache__'}
_LOWER_IS_BETTER = re.compile(
    r'(^|_)(loss|losses|error|err|perplexity|ppl|nll|bpc|bpd|bits|mse|rmse|mae|fid|wer|cer|kl|'
    r'ece|brier|time|ms|norm|joules)($|_)'
)
# Numbers of the book-keeping that say nothing when drawn.
_DULL = re.compile(r'^perf/(epoch$|time_)|^eval/[^/]+/(examples|count)$')
_SHARE = re.compile(r'accuracy$|^perf/(mfu|data_wait)$')
# Beyond what float32 holds, which is what devices compute in.
_LARGEST, _SMALLEST = 3.5e38, 1e-45
_DEEPEST = 60
# Halves of characters and control characters, which no page may hold.
_UNPRINTABLE = re.compile('[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f\ufffe\uffff]')
# The kinds of what is used of run.json.
_INFO: dict[str, Any] = {
    'status': str, 'reason': str, 'command': str, 'python': str, 'started': str, 'ended': str,
    'host': str, 'energy': str, 'process': int, 'parameters': int, 'seconds': float,
    'git': {}, 'packages': {}, 'devices': [str], 'history': [{}],
}  # fmt: skip


@dataclass
class Run:
    """One run's folder, read.

    Attributes:
        folder: where it is.
        name: its folder, relative to what all runs of the report have in common.
        config: config.json.
        info: what run.json says, each field of its right kind or missing.
        rows: metrics.jsonl as numbers, steps strictly rising.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    info: dict[str, Any]
    rows: list[dict[str, Any]]
    _series: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def keys(self) -> list[str]:
        """The names of all metrics, in the order in which they first appear."""
        found = dict.fromkeys(key for row in self.rows for key in row)
        return [key for key in found if key not in ('step', 'time')]

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps int64 [n], values float64 [n]) of one metric."""
        if key not in self._series:
            rows = [row for row in self.rows if key in row]
            steps = np.array([row['step'] for row in rows], np.int64)
            self._series[key] = steps, np.array([row[key] for row in rows], np.float64)
        return self._series[key]

    def last(self, key: str) -> float | None:
        """The newest value of a metric, or None."""
        values = self.series(key)[1]
        return float(values[-1]) if len(values) else None

    def median(self, key: str) -> float | None:
        """The median of a metric over the run, which a slow interval does not move, or None."""
        values = np.sort(self.series(key)[1])
        return float(values[len(values) // 2]) if len(values) else None

    def best(self, key: str) -> tuple[float, int] | None:
        """(value, step) where a metric was best, in the direction of `better`; or None."""
        steps, values = self.series(key)
        finite = np.isfinite(values)
        if not finite.any():
            return None
        steps, values = steps[finite], values[finite]
        index = int(values.argmin() if self.better(key) == 'min' else values.argmax())
        return float(values[index]), int(steps[index])

    def better(self, key: str) -> str:
        """'min' or 'max': which values of a metric are good."""
        if self.kept_by == key:
            return 'min' if self.config['checkpoint'].get('mode') == 'min' else 'max'
        return direction(key)

    @property
    def kept_by(self) -> str:
        """The metric by which the best checkpoint is kept, or ''."""
        checkpoint = self.config.get('checkpoint')
        best = checkpoint.get('best') if isinstance(checkpoint, dict) else None
        return best if isinstance(best, str) else ''

    @property
    def step(self) -> int:
        return int(self.rows[-1]['step']) if self.rows else 0

    @property
    def steps(self) -> int | None:
        """The steps the run was to take."""
        value = self.config.get('steps')
        return value if type(value) is int else None

    @property
    def status(self) -> str:
        """The status of run.json; 'killed' where that says running but its process is gone."""
        status, pid = self.info.get('status') or 'unknown', self.info.get('process', 0)
        if status == 'running' and pid > 0 and self.info.get('host') == os.uname().nodename:
            try:
                os.kill(pid, 0)
            except (ProcessLookupError, OverflowError):
                return 'killed'
            except OSError:
                pass
        return status

    @property
    def seconds(self) -> float | None:
        """Wall time of all sessions; what the metrics span where run.json does not say."""
        seconds = self.info.get('seconds', 0.0)
        if seconds > 0 and self.status != 'running':
            return float(seconds)
        times = [row['time'] for row in self.rows if math.isfinite(row.get('time', math.nan))]
        return times[-1] - times[0] if len(times) > 1 else None

    @property
    def seed(self) -> Any:
        return self.config.get('seed')

    def devices(self) -> str:
        """The devices as text, such as '8 × NVIDIA H100'."""
        devices = self.info.get('devices', [])
        kinds = sorted(set(devices))
        if len(kinds) == 1 and len(devices) > 1:
            return f'{len(devices)} × {kinds[0]}'
        return ', '.join(kinds)

    def evaluations(self) -> list[str]:
        """The evaluation metrics worth a column."""
        return [k for k in self.keys() if k.startswith('eval/') and drawn(k)]


def direction(key: str) -> str:
    """'min' for losses, errors, times and their like, else 'max'."""
    return 'min' if _LOWER_IS_BETTER.search(key.rsplit('/', 1)[-1].lower()) else 'max'


def drawn(key: str) -> bool:
    """Whether a metric deserves a curve."""
    return not _DULL.search(key)


def is_share(key: str) -> bool:
    """Whether a metric is a part of a whole between 0 and 1, which is shown in percent."""
    return bool(_SHARE.search(key))


def shown(key: str, value: float | None) -> str:
    """A value of a metric for a reader: '98.21 %' or '0.0712'; '' for None."""
    if value is None or not is_share(key):
        return number(value)
    return f'{100 * value:.2f} %'


def main_metric(runs: Sequence[Run]) -> str:
    """The metric that says most: the one checkpoints are kept by, else an accuracy, else a loss."""
    keys = list(dict.fromkeys(key for run in runs for key in run.evaluations()))
    kept = [run.kept_by for run in runs if run.kept_by in keys]
    wanted = ('accuracy', 'bleu', 'return', 'f1', 'loss')
    named = [key for name in wanted for key in keys if key.rpartition('/')[2] == name]
    return next(iter([*kept, *named, *keys]), '')


# ---- finding and reading ------------------------------------------------------------------------


def find_runs(folders: Sequence[str | os.PathLike]) -> list[Run]:
    """All runs (folders with metrics.jsonl and config.json) at or below `folders`, by name.

    A run with a damaged file is left out with a warning. Raises UserError where a folder does not
    exist or holds no run, or where no run can be read.
    """
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        _check_folder(folder)
        here, half = _walk(folder)
        if not here:
            hint = f'; {half[0]} has only one of the two' if half else ''
            raise UserError(
                f'{folder}: no run at or below it: '
                f'looked for folders that hold metrics.jsonl and config.json{hint}'
            )
        found.update(dict.fromkeys(path.resolve() for path in here))
    runs, errors = [], []
    for path, name in zip(found, _names(list(found)), strict=True):
        try:
            runs.append(_read(path, name))
        except UserError as error:
            errors.append(error)
    runs.sort(key=lambda run: _natural(run.name))
    filled = [run for run in runs if run.rows]
    if not filled and errors:
        raise errors[0]
    if not filled:
        raise UserError(
            f'{runs[0].folder / "metrics.jsonl"}: holds no complete line yet; '
            'wait for the first log_every steps of the run'
        )
    for error in errors:
        warn(f'left out of the report: {error}')
    return filled


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise UserError(f'{folder} is a file; give the folder that holds the run')
    parent = folder.parent
    siblings = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    raise UserError(f'{folder}: no such folder{nearest(folder.name, siblings)}')


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """The run folders, and the folders with one of the two files only."""
    runs, half = [], []
    for path, folders, names in os.walk(folder):
        has = ('metrics.jsonl' in names) + ('config.json' in names)
        if has == 2:
            runs.append(Path(path))
            folders.clear()
        elif has == 1:
            half.append(Path(path))
        folders[:] = [f for f in folders if f not in _SKIPPED and not f.startswith('.')]
    return runs, half


def _names(paths: list[Path]) -> list[str]:
    if len(paths) == 1:
        return [paths[0].name or str(paths[0])]
    common = os.path.commonpath([str(path.parent) for path in paths])
    return [os.path.relpath(path, common) for path in paths]


def _natural(name: str) -> list:
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name)]


def _read(folder: Path, name: str) -> Run:
    config = read_object(folder / 'config.json')
    try:
        info = read_object(folder / 'run.json')
    except UserError:
        info = {}  # the report says 'unknown' then; the metrics are what matters
    path = folder / 'metrics.jsonl'
    try:
        rows = [_numbers(row) for row in read_metrics(path)]
    except OSError as error:
        raise UserError(f'{path}: cannot be read: {error.strerror}') from None
    if any(abs(row['step']) >= 2**53 for row in rows):
        raise UserError(f'{path}: a line has a step that no run reaches; delete it')
    info = {key: info[key] for key, kind in _INFO.items() if not mismatch(info.get(key), kind)}
    return Run(folder, _cleaned(name), config, info, rows)


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file, with texts that can be shown and a depth that can be walked.

    Raises:
        UserError: it cannot be read or is no such object.
    """
    try:
        return _cleaned(files.read_object(path))
    except ValueError as error:
        raise UserError(f'{path}: not the JSON that jaxdl writes: {error}') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read: {error.strerror}') from None


def _cleaned(value: Any, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise ValueError('it is nested too deeply')
    if isinstance(value, str):
        return _UNPRINTABLE.sub('\ufffd', value)
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item, depth + 1) for item in value]
    return value


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a line of metrics.jsonl; what no float32 holds becomes infinite or 0."""
    found = {'step': row['step']}
    for key, value in row.items():
        if key != 'step' and type(value) in (int, float):
            if abs(value) > _LARGEST:
                value = math.inf if value > 0 else -math.inf
            found[_cleaned(key)] = 0.0 if abs(value) < _SMALLEST else float(value)
    return found


def mismatch(value: Any, kind: Any, path: str = '') -> str:
    """'' if a JSON value is of a kind, else the path of the first part that is not.

    A kind is a type (float: any number that can be drawn), None, [kind of each item],
    {key: kind of what must be there}, or a tuple of kinds.
    """
    path = path or 'it'
    if isinstance(kind, tuple):
        return '' if any(not mismatch(value, one) for one in kind) else path
    if isinstance(kind, list | dict):
        if isinstance(kind, list) and isinstance(value, list):
            parts = [(item, kind[0], f'{path}[{index}]') for index, item in enumerate(value)]
        elif isinstance(kind, dict) and isinstance(value, dict):
            parts = [(value.get(key, ...), one, f'{path}.{key}') for key, one in kind.items()]
        else:
            return path
        return next((found for part in parts if (found := mismatch(*part))), '')
    if kind is float:
        fits = type(value) in (int, float) and abs(value) < _LARGEST
    else:
        fits = value is None if kind is None else type(value) is kind
    return '' if fits else path


# ---- configs ------------------------------------------------------------------------------------


def flatten(tree: Any, path: str = '') -> dict[str, Any]:
    """A config's JSON as {'optimizer.learning_rate': 0.1, …}; an object itself is its class."""
    if isinstance(tree, dict):
        found: dict[str, Any] = {}
        kind = tree.get('type')
        if kind == 'function':
            return {path: str(tree.get('name', '')).rpartition(':')[2]}
        if kind == 'dict' and isinstance(tree.get('items'), dict):
            tree = tree['items']
        elif path and isinstance(kind, str):
            found[path] = kind.rpartition(':')[2]
        for key, value in tree.items():
            if key != 'type':
                found |= flatten(value, f'{path}.{key}' if path else key)
        return found
    if isinstance(tree, list):
        if any(isinstance(item, dict) for item in tree):
            found = {}
            for index, item in enumerate(tree):
                found |= flatten(item, f'{path}[{index}]')
            return found
        return {path: ', '.join(map(str, tree)) if tree else '()'}
    return {path: tree}


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """{field: the value in each run} of the config fields that are not the same in all runs."""
    flat = [flatten(run.config) for run in runs]
    paths = dict.fromkeys(path for fields in flat for path in fields)
    found = {}
    for path in paths:
        values = [fields.get(path) for fields in flat]
        if any(value != values[0] for value in values):
            found[path] = values
    return found


@dataclass
class Group:
    """Runs that differ in their seed alone (often just one run), drawn as one curve.

    Attributes:
        name: what the legend says.
        runs: the runs.
    """

    name: str
    runs: list[Run]

    def keys(self) -> list[str]:
        return list(dict.fromkeys(key for run in self.runs for key in run.keys()))

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """(steps, mean, standard deviation or None for one run) over the group's runs.

        A step counts where at least half of the runs have a value; the deviation is the sample's
        (n - 1).
        """
        curves = [run.series(key) for run in self.runs]
        curves = [(steps, values) for steps, values in curves if len(steps)]
        if not curves:
            return np.zeros(0, np.int64), np.zeros(0), None
        if len(curves) == 1:
            return *curves[0], None
        steps = np.unique(np.concatenate([s for s, _ in curves]))
        table = np.full((len(curves), len(steps)), np.nan)
        for row, (s, values) in zip(table, curves, strict=True):
            row[np.searchsorted(steps, s)] = values
        present = ~np.isnan(table)
        keep = present.sum(0) * 2 >= len(curves)
        steps, table, count = steps[keep], table[:, keep], present[:, keep].sum(0)
        with np.errstate(invalid='ignore'):  # of infinite values
            mean = np.nanmean(table, 0)
            squares = np.nansum((table - mean) ** 2, 0)
        return steps, mean, np.sqrt(squares / np.maximum(count - 1, 1))

    def best(self, key: str) -> tuple[float, float, int] | None:
        """(mean, standard deviation, number of runs) of the runs' best values."""
        return spread(best[0] for run in self.runs if (best := run.best(key)))

    def final(self, key: str) -> tuple[float, float, int] | None:
        """(mean, standard deviation, number of runs) of the runs' last values."""
        return spread(value for run in self.runs if (value := run.last(key)) is not None)


def spread(values: Iterable[float]) -> tuple[float, float, int] | None:
    """(mean, sample standard deviation, number) of the values, or None of none."""
    array = np.array(list(values), np.float64)
    if not len(array):
        return None
    finite = len(array) > 1 and np.isfinite(array).all()
    return float(array.mean()), float(array.std(ddof=1)) if finite else math.nan, len(array)


def group_by_seed(runs: Sequence[Run]) -> list[Group]:
    """Puts runs together whose configs differ in nothing but `seed`."""
    together: dict[str, list[Run]] = {}
    for run in runs:
        config = {k: v for k, v in run.config.items() if k != 'seed'}
        together.setdefault(json.dumps(config, sort_keys=True), []).append(run)
    groups: list[Group] = []
    for members in together.values():
        if len({json.dumps(run.seed) for run in members}) > 1:
            names = [run.name for run in members]
            stem = os.path.commonprefix(names).rstrip('0123456789')  # noqa: RUF071
            stem = re.sub(r'[-_./ ]*(seed|s)?[-_./= ]*$', '', stem)
            groups.append(Group(f'{stem or names[0]} ({len(members)} seeds)', members))
        else:
            groups += [Group(run.name, [run]) for run in members]
    taken: dict[str, int] = {}
    for group in groups:  # two groups may share a stem
        taken[group.name] = taken.get(group.name, 0) + 1
        if taken[group.name] > 1:
            group.name = f'{group.name} #{taken[group.name]}'
    return groups
