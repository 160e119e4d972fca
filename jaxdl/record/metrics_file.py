"""metrics.jsonl, the authoritative log; TensorBoard and the reports show the same values.

Errors of the disk do not end the training: they are reported once on stderr, the lines are kept in
memory, and each write tries again. Only process 0 of a run may write.
"""

import contextlib
import json
import math
import numbers
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.files import parse_object, write_bytes
from jaxdl.record.terminal import warn

_MAX_WAITING = 10_000


class MetricsFile:
    """The file metrics.jsonl: one JSON object a line, each step once, steps strictly increasing.

    `last_step` is the step the run starts or resumes from. Opening repairs the file: an incomplete
    line and every line past `last_step` are dropped. A second `write` for the newest step merges
    into its line, where a later value of the same name wins. So training and evaluation at one step
    share a line, even if the run was killed between them. Nothing is buffered: the operating system
    has each line when `write` returns, so `kill -9` loses none.

    Values that are not finite are the strings "nan", "inf" and "-inf", as JSON has no numbers for
    them; `read_metrics` turns them back into floats.

    Attributes:
        failed: True while the disk fails; up to 10,000 lines are kept in memory meanwhile.
    """

    def __init__(self, path: str | os.PathLike, *, last_step: int):
        self.path = Path(path)
        self.failed = False
        self._keep: float = last_step
        self._file: int | None = None
        self._row: dict[str, Any] | None = None  # the last line of the file
        self._line = b''  # the bytes of that line
        self._start = 0  # the offset of that line
        self._size = 0  # the size of the file
        self._waiting: dict[int, dict[str, Any]] = {}
        self._lost = 0
        self._work()
        # The row of a step is written before its checkpoint, so it should be here.
        newest = -1 if self._row is None else self._row['step']
        if self._file is not None and max(newest, 0) < last_step:
            warn(f'{self.path}: the row of step {last_step} is missing, and perhaps earlier ones')

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
        """Drops every line past `last_step`, for a roll-back to a checkpoint."""
        self._waiting = {s: row for s, row in self._waiting.items() if s <= last_step}
        self._close()
        self._keep = min(self._keep, last_step)
        self._work()

    def flush(self) -> None:
        """Forces all lines onto the disk (fsync); call it before a checkpoint becomes valid."""
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
        """Opens the file if needed and writes the waiting lines."""
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
            warn(f'{self.path}: dropped what is no row of metrics: line {_few(broken)}')
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
            # The whole line in one call, so that a killed process leaves no part of it.
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
        """Restores the last complete line of the file after a failed write."""
        assert self._file is not None
        try:
            os.pwrite(self._file, self._line, self._start)
            os.ftruncate(self._file, self._size)
        except OSError:
            # The last line may be incomplete now. The next attempt opens and repairs the file.
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
    """The row of a line; None if `write` cannot have written it."""
    try:
        row = parse_object(line)
    except ValueError:
        return None
    numbers_fit = all(
        type(value) in (float, str) or (type(value) is int and abs(value) < 2**63)
        for value in row.values()
    )
    return row if numbers_fit and type(row.get('step')) is int and row['step'] >= 0 else None


def _rows(data: bytes) -> tuple[list[tuple[bytes, dict[str, Any]]], list[int]]:
    """(line, row) of each valid line with steps strictly increasing, and the broken line numbers.

    If a step does not increase, a run resumed there without dropping its later lines, so the new
    lines replace the old ones. An incomplete last line is ignored.
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
        # Truncating is atomic, and works on a full disk too.
        os.truncate(path, len(kept))
    else:
        write_bytes(path, kept)
    return rows, broken


def _few(values: Sequence[int]) -> str:
    texts = [str(value) for value in values[:5]]
    return ', '.join(texts) + (f' and {len(values) - 5} more' if len(values) > 5 else '')


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, steps strictly increasing; [] if there is no such file.

    An incomplete last line is left out, since the run may be writing it now. Raises UserError if
    another line is broken.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    rows, broken = _rows(data)
    if broken:
        raise UserError(
            f'{path}: line {_few(broken)}: not a JSON object of numbers with an integer "step"; '
            'delete such lines, or resume the run, which drops them'
        )
    special = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}
    return [
        {k: special.get(v, v) if isinstance(v, str) else v for k, v in row.items()}
        for _, row in rows
    ]
