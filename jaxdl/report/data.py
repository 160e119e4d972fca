"""What a report is made of: the runs under some folders, read from their files."""

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl.errors import UserError, nearest
from jaxdl.record.metrics_file import read_metrics

_SKIPPED = {'checkpoints', 'tensorboard', 'report', '__pycache__'}
_LOWER_IS_BETTER = re.compile(
    r'(^|_)(loss|losses|error|err|perplexity|ppl|nll|bpc|bpd|bits|mse|rmse|mae|fid|wer|cer|kl|'
    r'ece|brier|time|ms|norm|joules)($|_)'
)
# Numbers of the book-keeping that say nothing when drawn.
_DULL = re.compile(r'^perf/(epoch$|time_)|^eval/[^/]+/(examples|count)$')


@dataclass
class Run:
    """One run's folder, read.

    Attributes:
        folder: where it is.
        name: its folder, relative to what all runs of the report have in common.
        config: config.json.
        info: run.json, or {}.
        rows: metrics.jsonl, steps strictly rising.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    info: dict[str, Any]
    rows: list[dict[str, Any]]
    _series: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def keys(self) -> list[str]:
        """The names of all numeric metrics, in the order in which they first appear."""
        found: dict[str, None] = {}
        for row in self.rows:
            for key, value in row.items():
                if key not in ('step', 'time') and isinstance(value, int | float):
                    found[key] = None
        return list(found)

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps int64 [n], values float64 [n]) of one metric."""
        if key not in self._series:
            pairs = [
                (row['step'], row[key])
                for row in self.rows
                if isinstance(row.get(key), int | float) and not isinstance(row[key], bool)
            ]
            steps = np.array([step for step, _ in pairs], np.int64)
            self._series[key] = steps, np.array([value for _, value in pairs], np.float64)
        return self._series[key]

    def last(self, key: str) -> float | None:
        """The newest value of a metric, or None."""
        values = self.series(key)[1]
        return float(values[-1]) if len(values) else None

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
        checkpoint = self.config.get('checkpoint')
        if isinstance(checkpoint, dict) and checkpoint.get('best') == key:
            return str(checkpoint.get('mode') or 'max')
        return direction(key)

    @property
    def step(self) -> int:
        return int(self.rows[-1]['step']) if self.rows else 0

    @property
    def steps(self) -> int | None:
        """The steps the run was to take."""
        value = self.config.get('steps')
        return value if isinstance(value, int) else None

    @property
    def status(self) -> str:
        """The status of run.json; 'killed' where that says running but its process is gone."""
        status = str(self.info.get('status') or 'unknown')
        pid = self.info.get('process')
        if status == 'running' and isinstance(pid, int) and pid > 0:
            if self.info.get('host') == os.uname().nodename:
                try:
                    os.kill(pid, 0)
                except ProcessLookupError:
                    return 'killed'
                except OSError:
                    pass
        return status

    @property
    def seconds(self) -> float | None:
        """Wall time of all sessions; what the metrics span where run.json does not say."""
        seconds = self.info.get('seconds')
        if isinstance(seconds, int | float) and seconds > 0 and self.status != 'running':
            return float(seconds)
        times = [row['time'] for row in self.rows if isinstance(row.get('time'), int | float)]
        return times[-1] - times[0] if len(times) > 1 else None

    @property
    def seed(self) -> Any:
        return self.config.get('seed')

    def devices(self) -> str:
        """The devices as text, such as '8 × NVIDIA H100'."""
        devices = self.info.get('devices')
        if isinstance(devices, list) and devices:
            kinds = sorted({str(device) for device in devices})
            if len(kinds) == 1:
                return f'{len(devices)} × {kinds[0]}' if len(devices) > 1 else kinds[0]
            return ', '.join(kinds)
        return str(devices or '')

    def evaluations(self) -> list[str]:
        """The evaluation metrics worth a column."""
        return [k for k in self.keys() if k.startswith('eval/') and not _DULL.search(k)]


def direction(key: str) -> str:
    """'min' for losses, errors, times and their like, else 'max'."""
    return 'min' if _LOWER_IS_BETTER.search(key.rsplit('/', 1)[-1].lower()) else 'max'


def drawn(key: str) -> bool:
    """Whether a metric deserves a curve."""
    return not _DULL.search(key)


# ---- finding and reading ------------------------------------------------------------------------


def find_runs(folders: Sequence[str | os.PathLike]) -> list[Run]:
    """All runs (folders with metrics.jsonl and config.json) at or below `folders`, by name.

    Raises UserError where a folder does not exist, holds no run, or holds a broken file.
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
    names = _names(list(found))
    runs = [_read(path, name) for path, name in zip(found, names, strict=True)]
    runs.sort(key=lambda run: _natural(run.name))
    empty = [run for run in runs if not run.rows]
    if len(empty) == len(runs):
        raise UserError(
            f'{empty[0].folder / "metrics.jsonl"}: holds no complete line yet; '
            'wait for the first log_every steps of the run'
        )
    return [run for run in runs if run.rows]


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
    for path, folders, files in os.walk(folder):
        has = ('metrics.jsonl' in files) + ('config.json' in files)
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
    return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)]


def _read(folder: Path, name: str) -> Run:
    path = folder / 'config.json'
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f'{path}: not JSON: {error}') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read: {error.strerror}') from None
    if not isinstance(config, dict):
        raise UserError(f'{path}: not a config: must be a JSON object')
    try:
        info = json.loads((folder / 'run.json').read_bytes())
    except (OSError, ValueError):
        info = {}  # the report says 'unknown' then; the metrics are what matters
    try:
        rows = read_metrics(folder / 'metrics.jsonl')
    except OSError as error:
        raise UserError(f'{folder / "metrics.jsonl"}: cannot be read: {error.strerror}') from None
    return Run(folder, name, config, info if isinstance(info, dict) else {}, rows)


# ---- configs ------------------------------------------------------------------------------------


def flatten(tree: Any, path: str = '') -> dict[str, Any]:
    """A config's JSON as {'optimizer.learning_rate': 0.1, …}; an object itself is its class."""
    if isinstance(tree, dict):
        found: dict[str, Any] = {}
        kind = tree.get('type')
        if kind == 'function':
            return {path: str(tree.get('name', '')).rpartition(':')[2]}
        if kind == 'dict':
            tree = tree.get('items', {})
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
        count = present.sum(0)
        keep = count * 2 >= len(curves)
        steps, table, present, count = steps[keep], table[:, keep], present[:, keep], count[keep]
        with np.errstate(invalid='ignore', divide='ignore'):
            mean = np.where(present, table, 0).sum(0) / count
            squares = np.where(present, (table - mean) ** 2, 0).sum(0)
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
    deviation = float(array.std(ddof=1)) if len(array) > 1 else math.nan
    return float(array.mean()), deviation, len(array)


def _common_start(names: Sequence[str]) -> str:
    length = 0
    while len({name[: length + 1] for name in names}) == 1 and length < len(names[0]):
        length += 1
    return names[0][:length]


def group_by_seed(runs: Sequence[Run]) -> list[Group]:
    """Puts runs together whose configs differ in nothing but `seed`."""
    together: dict[str, list[Run]] = {}
    for run in runs:
        config = {k: v for k, v in run.config.items() if k != 'seed'}
        together.setdefault(json.dumps(config, sort_keys=True), []).append(run)
    groups: list[Group] = []
    for members in together.values():
        if len({run.seed for run in members}) > 1:
            names = [run.name for run in members]
            stem = _common_start(names).rstrip('0123456789')
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
