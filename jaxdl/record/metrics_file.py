"""What a run writes down about itself: metrics.jsonl, run.json, TensorBoard, progress.

metrics.jsonl is the truth; TensorBoard holds the same values. Whatever the disk does, none of the
writers here raises into the training: they say once on stderr what failed, keep what they could
not write, and go on trying. Only process 0 of a run may write.
"""

import contextlib
import datetime
import json
import math
import numbers
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.files import parse_json
from jaxdl.record.parameters import count_parameters, parameter_table
from jaxdl.record.pictures import confusion_image, image_grid
from jaxdl.record.tensorboard import TensorBoard
from jaxdl.record.terminal import Progress, warn

__all__ = [
    'MetricsFile',
    'Progress',
    'RunInfo',
    'TensorBoard',
    'confusion_image',
    'count_parameters',
    'image_grid',
    'parameter_table',
    'read_metrics',
    'warn',
    'write_json_atomic',
]

_MAX_WAITING = 10_000


class MetricsFile:
    """The file metrics.jsonl: one JSON object a line, each step once, steps strictly rising.

    `last_step` is the step the run starts or resumes from. Opening repairs the file: a torn line
    and every line past `last_step` are dropped. A second `write` for the newest step merges into
    its line (a later value of the same name wins), so training and evaluation at one step share a
    line, also when the run was killed between them. Nothing is buffered: each line has been
    handed to the operating system when `write` returns, so `kill -9` loses none.

    Values that are not finite are the strings "nan", "inf" and "-inf", as JSON has no numbers for
    them; `read_metrics` turns them back into floats.

    Attributes:
        failed: True while the disk refuses; up to 10,000 lines wait in memory meanwhile.
    """

    def __init__(self, path: str | os.PathLike, *, last_step: int):
        self.path = Path(path)
        self.failed = False
        self._keep: float = last_step
        self._file: int | None = None
        self._row: dict[str, Any] | None = None  # what the last line of the file holds, …
        self._line = b''  # … its bytes, …
        self._start = 0  # … where it starts, …
        self._size = 0  # … and where the file ends
        self._waiting: dict[int, dict[str, Any]] = {}
        self._lost = 0
        self._work()

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Adds values to the line of `step`; raises ValueError if a later step was written."""
        step = int(step)
        newest = max([*self._waiting, -1 if self._row is None else self._row['step']])
        if step < newest:
            raise ValueError(f'step {step} written after step {newest}; truncate({step}) first')
        if 'step' in scalars or 'time' in scalars:
            raise ValueError("'step' and 'time' are no names for a metric")
        row = self._waiting.setdefault(step, {'step': step, 'time': round(time.time(), 3)})
        row.update({name: _plain(value) for name, value in scalars.items()})
        if len(self._waiting) > _MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
            self._lost += 1
        self._work()

    def truncate(self, last_step: int) -> None:
        """Drops every line past `last_step`, for a run that goes back to a checkpoint."""
        self._waiting = {s: row for s, row in self._waiting.items() if s <= last_step}
        self._close()
        self._keep = min(self._keep, last_step)
        self._work()

    def flush(self) -> None:
        """Puts all lines onto the disk itself; call it before a checkpoint becomes valid."""
        self._work()
        if self._file is not None:
            try:
                os.fsync(self._file)
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        self.flush()
        if self._waiting:
            warn(f'{self.path}: {len(self._waiting)} lines could not be written and are lost')
        self._close()

    def _work(self) -> None:
        """Opens the file if it is not open and writes what is waiting."""
        try:
            if self._file is not None and os.fstat(self._file).st_nlink == 0:
                self._close()
                warn(f'{self.path} was deleted while in use; starting it anew')
            if self._file is None:
                self._open()
            for step in list(self._waiting):
                self._append(self._waiting[step])
                del self._waiting[step]
        except OSError as error:
            self._fail(error)
        else:
            if self.failed:
                self.failed = False
                warn(f'{self.path}: writing works again; {self._lost or "no"} lines were lost')
                self._lost = 0

    def _fail(self, error: OSError) -> None:
        if not self.failed:
            self.failed = True
            warn(
                f'cannot write {self.path}: {error.strerror or error}. Training goes on; '
                'metrics wait in memory until writing works again'
            )

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows, broken = _repair(self.path, self._keep)
        if broken:
            warn(f'{self.path}: dropped what was no JSON object with a step: line {_few(broken)}')
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._size = os.fstat(self._file).st_size
        self._line, self._row = rows[-1] if rows else (b'', None)
        self._start = self._size - len(self._line)

    def _append(self, row: dict[str, Any]) -> None:
        assert self._file is not None
        start = self._size
        if self._row is not None and self._row['step'] == row['step']:
            row = {**self._row, **row, 'time': self._row['time']}
            start = self._start
        data = encode_line(row)
        try:
            # One call for the whole line: a process that is killed has written it or not.
            written = os.pwrite(self._file, data, start)
            while written < len(data):
                written += os.pwrite(self._file, data[written:], start + written)
            os.ftruncate(self._file, start + len(data))
        except OSError:
            self._undo()
            raise
        self._row, self._line = row, data
        self._start, self._size = start, start + len(data)
        self._keep = max(self._keep, row['step'])

    def _undo(self) -> None:
        """After a failed write, brings the file back to its last whole line."""
        assert self._file is not None
        try:
            os.pwrite(self._file, self._line, self._start)
            os.ftruncate(self._file, self._size)
        except OSError:
            # The next attempt opens the file anew, which repairs it; the last line may be torn.
            if self._row is not None:
                step = self._row['step']
                row = {**self._row, **self._waiting.get(step, {})}
                self._waiting = {step: row, **{s: r for s, r in self._waiting.items() if s != step}}
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
        self._file, self._row, self._line = None, None, b''


def encode_line(row: Mapping[str, Any]) -> bytes:
    """One line of metrics.jsonl."""
    return (json.dumps(row, allow_nan=False, ensure_ascii=False) + '\n').encode()


def _plain(value: Any) -> int | float | str:
    if isinstance(value, numbers.Integral):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get('step')) is not int:
        return None
    return row


def _rows(data: bytes) -> tuple[list[tuple[bytes, dict[str, Any]]], list[int]]:
    """(line, row) of each line with steps made strictly rising, and the numbers of broken lines.

    Where a step does not rise, a run went on from there without dropping what it had written, so
    the later lines replace the earlier ones. A torn last line counts as not written.
    """
    rows: list[tuple[bytes, dict[str, Any]]] = []
    broken = []
    lines = data.split(b'\n')
    for index, line in enumerate(lines):
        row = _parse(line)
        if row is None:
            if line.strip() and index < len(lines) - 1:
                broken.append(index + 1)
            continue
        while rows and rows[-1][1]['step'] >= row['step']:
            rows.pop()
        rows.append((line + b'\n', row))
    return rows, broken


def _repair(path: Path, last_step: float) -> tuple[list[tuple[bytes, dict[str, Any]]], list[int]]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], []
    rows, broken = _rows(data)
    rows = [(line, row) for line, row in rows if row['step'] <= last_step]
    kept = b''.join(line for line, _ in rows)
    if kept == data:
        return rows, broken
    if data.startswith(kept):
        # Cutting the end off is atomic, and works on a full disk too.
        os.truncate(path, len(kept))
    else:
        _replace(path, kept)
    return rows, broken


def _few(values: Sequence[int]) -> str:
    texts = [str(value) for value in values[:5]]
    return ', '.join(texts) + (f' and {len(values) - 5} more' if len(values) > 5 else '')


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, steps strictly rising; [] where there is no such file.

    A torn last line is left out (the run may be writing it now). Raises UserError where another
    line is broken.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    rows, broken = _rows(data)
    if broken:
        raise UserError(
            f'{path}: line {_few(broken)}: not a JSON object with an integer "step"; '
            'delete such lines, or resume the run, which drops them'
        )
    special = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}
    return [
        {k: special.get(v, v) if isinstance(v, str) else v for k, v in row.items()}
        for _, row in rows
    ]


# ---- run.json -----------------------------------------------------------------------------------


def write_json_atomic(path: str | os.PathLike, obj: Any) -> None:
    """Writes `obj` as JSON so that `path` always holds the old or the new content, whole.

    Raises OSError where the disk refuses, and leaves the old content then.
    """
    text = json.dumps(_strict(obj), indent=2, allow_nan=False, ensure_ascii=False)
    _replace(Path(path), (text + '\n').encode())


def _strict(obj: Any) -> Any:
    if isinstance(obj, float) and not math.isfinite(obj):
        return str(obj)
    if isinstance(obj, Mapping):
        return {str(key): _strict(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_strict(value) for value in obj]
    return obj


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    # The new name is on the disk only when the folder is.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class RunInfo:
    """The file run.json: what was run, on what, and how it ended.

    Opening starts a session with status 'running'; earlier sessions of the same run stay in
    'history', and one that never said how it ended is marked 'killed' there. `fields` are stored
    as they are (devices, parameters, steps, …).
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        command: Sequence[str] | None = None,
        from_step: int = 0,
        **fields: Any,
    ):
        self.path = Path(path)
        self.failed = False
        earlier = self._earlier()
        words = ['python', *sys.orig_argv[1:]] if command is None else list(command)
        now = _now()
        self._clock = time.monotonic()
        self._seconds_before = float(earlier.get('seconds') or 0)
        self.data: dict[str, Any] = {
            'status': 'running',
            'reason': '',
            'command': shlex.join(words),
            'step': from_step,
            'from_step': from_step,
            'started': now,
            'ended': None,
            'seconds': self._seconds_before,
            'git': git_revision(),
            'python': sys.version.split()[0],
            'packages': package_versions(),
            'host': os.uname().nodename,
            'process': os.getpid(),
            **fields,
            'history': earlier.get('history', []),
        }
        if earlier:
            self.data['history'] = [*self.data['history'], _session(earlier)]
        self._save()

    def update(self, **fields: Any) -> None:
        """Sets fields, such as step=, parameters= or devices=, and saves."""
        self.data.update(fields)
        self.data['seconds'] = round(self._seconds_before + time.monotonic() - self._clock, 3)
        self._save()

    def end(self, status: str, reason: str = '', **fields: Any) -> None:
        """Says how the session ended: 'finished', 'preempted' or 'failed', and why."""
        if status not in ('finished', 'preempted', 'failed'):
            raise ValueError(f"status={status!r}: must be 'finished', 'preempted' or 'failed'")
        self.update(status=status, reason=reason, ended=_now(), **fields)

    def _earlier(self) -> dict[str, Any]:
        try:
            earlier = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            warn(f'{self.path}: cannot be read ({error}); its history is lost')
            return {}
        return earlier if isinstance(earlier, dict) else {}

    def _save(self) -> None:
        try:
            write_json_atomic(self.path, self.data)
            self.failed = False
        except OSError as error:
            if not self.failed:
                self.failed = True
                warn(f'cannot write {self.path}: {error.strerror or error}. Training goes on')


def _session(data: Mapping[str, Any]) -> dict[str, Any]:
    keys = ('status', 'reason', 'command', 'from_step', 'step', 'started', 'ended', 'git', 'host')
    session = {key: data.get(key) for key in (*keys, 'devices')}
    if session['status'] == 'running':
        session.update(status='killed', reason='ended without a word')
    return session


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def git_revision() -> dict[str, Any] | None:
    """{'revision', 'dirty'} of the code that runs, or None outside a git checkout."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ['git', '-C', str(folder), *words],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()

    try:
        revision = git('rev-parse', 'HEAD')
        dirty = bool(git('status', '--porcelain', '--untracked-files=no'))
    except (OSError, subprocess.SubprocessError):
        return None
    return {'revision': revision, 'dirty': dirty}


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that decide a run's numbers."""
    from importlib import metadata

    names = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'grain')
    names += ('tensorflow-datasets', 'ml_collections', 'jax-cuda12-plugin', 'jax-cuda13-plugin')
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
