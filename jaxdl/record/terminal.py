"""The output of a run on the terminal: a progress bar or plain lines, warnings, numbers as text."""

import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TextIO


class Output:
    """A text stream that never raises: it discards text once it is broken (`… | head`) or closed.

    Characters that its encoding lacks become '?'.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream
        self.encoding = getattr(stream, 'encoding', None) or 'utf-8'

    def isatty(self) -> bool:
        """Whether this is a terminal that can redraw its lines."""
        try:
            terminal = self._stream is not None and self._stream.isatty()
        except ValueError:  # the stream is closed
            return False
        return terminal and os.environ.get('TERM') != 'dumb'

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text.encode(self.encoding, 'replace').decode(self.encoding))
                self._stream.flush()
            except (OSError, ValueError):
                self._stream = None
        return len(text)

    def flush(self) -> None:
        """Does nothing, since nothing is buffered."""


def say(text: str) -> None:
    """Prints a line on stdout."""
    Output(sys.stdout).write(f'{text}\n')


def warn(text: str) -> None:
    """Prints a warning on stderr, above a progress bar if there is one."""
    Output(sys.stderr).write(f'warning: {text}\n')


class DiskGuard:
    """`with guard:` lets no error of the disk through, and says the first of several in a row.

    Args:
        what: cannot be written then.
        after: what else is said.

    Attributes:
        failed: whether the last attempt failed.
    """

    def __init__(self, what: object, after: str = 'Training goes on'):
        self.what, self.after, self.failed = what, after, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, OSError) and not self.failed:
            warn(f'cannot write {self.what}: {error.strerror or error}. {self.after}')
        self.failed = isinstance(error, OSError)
        return self.failed


def live(output: Output, *, keep: bool) -> Any:
    """A rich Live display on a terminal, started; with `keep` its last content stays at the end.

    It is drawn only by its `update`, because a drawing thread would take time from the training.
    """
    from rich.console import Console
    from rich.live import Live

    class Screen(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False  # never hide the cursor: a killed process could not show it again

    # With soft_wrap the terminal itself breaks long lines, so that paths can be copied as a whole.
    screen = Screen(
        file=output,  # pyright: ignore[reportArgumentType]  # what rich uses of a file is there
        force_terminal=True, force_jupyter=False,
        highlight=False, markup=False, emoji=False, soft_wrap=True,
    )  # fmt: skip
    shown = Live(
        console=screen, auto_refresh=False, transient=not keep,
        redirect_stderr=Output(sys.stderr).isatty(),
    )  # fmt: skip
    shown.start()
    return shown


class Progress:
    """A progress bar on a terminal, and elsewhere one plain line per call of `update`.

    It writes to `stream`, by default stdout; errors of the stream do not end the training.
    """

    def __init__(self, total_steps: int, *, start: int = 0, stream: TextIO | None = None):
        self.total = total_steps
        self._output = Output(sys.stdout if stream is None else stream)
        # (step, time) of the last updates, from which the time left is computed. The first entry is
        # the first update and not the start, so compiling does not count.
        self._marks: deque[tuple[int, float]] = deque(maxlen=20)
        self._values: dict[str, float] = {}
        self._bar = live(self._output, keep=True) if self._output.isatty() else None
        self._draw(start)

    def update(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the progress after `step` steps; evaluation results stay on the screen."""
        if not self._marks or step > self._marks[-1][0]:
            self._marks.append((step, time.monotonic()))
        results = {k: v for k, v in scalars.items() if k.startswith('eval/')}
        training = {k: v for k, v in scalars.items() if not k.startswith('eval/')}
        self._values.update(training)
        if self._bar is None and (texts := _texts(training)):
            self.message('  '.join([self._counter(step), *texts, *self._left(step)]))
        if results:
            self.message('  '.join([self._counter(step), *_texts(results)]))
        self._draw(step)

    def message(self, text: str) -> None:
        """Prints `text` above the bar, where it stays."""
        if self._bar is None:
            self._output.write(f'{text}\n')
        else:
            self._bar.console.print(text)

    def close(self) -> None:
        """Ends the bar; its last state stays on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, step: int) -> None:
        if self._bar is None:
            return
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        total = max(self.total, 1)
        line = '  '.join([self._counter(step), *_texts(self._values), *self._left(step)])
        width = max(8, min(30, self._bar.console.width - len(line) - 10))
        grid = Table.grid('', '', '', padding=(0, 2, 0, 0))
        grid.columns[0].width, grid.columns[1].width = width, 4
        grid.add_row(
            ProgressBar(total, step, width=width),
            f'{min(step / total, 1):4.0%}',
            Text(line, no_wrap=True, overflow='ellipsis'),
        )
        self._bar.update(grid, refresh=True)

    def _counter(self, step: int) -> str:
        total = str(self.total)
        return f'step {step:>{len(total)}}/{total}'

    def _left(self, step: int) -> list[str]:
        if len(self._marks) < 2 or step >= self.total:
            return []
        (step0, time0), (step1, time1) = self._marks[0], self._marks[-1]
        return [f'{duration((self.total - step) * (time1 - time0) / (step1 - step0))} left']


def _texts(scalars: Mapping[str, float]) -> list[str]:
    """The values shown on one line, as text."""
    texts = []
    for key, value in scalars.items():
        kind, _, name = key.partition('/')
        name = name.replace('/', ' ').replace('_', ' ')
        if kind in ('train', 'eval') and not name.endswith(('examples', 'learning rate')):
            texts.append(f'{name} {number(value)}')
    # The loss comes first. At most six values, so that the speed still fits on the line.
    texts.sort(key=lambda text: 'loss' not in text.split()[:2])
    texts = texts[:6]
    for key, value in scalars.items():
        if key.startswith('perf/') and key.endswith('_per_s') and 'step' not in key:
            rate = f'{value:,.0f}' if value >= 100 else f'{value:.3g}'
            texts.append(f'{rate} {key[5:-6].replace("_", " ")}/s')
            break
    return texts


def number(value: Any) -> str:
    """A metric as short text: 4 decimals below 1, 4 significant digits above, '' for None."""
    if value is None or isinstance(value, str):
        return value or ''
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f'{value:.3e}'
    if size >= 1000:
        return f'{value:,.0f}'
    return f'{value:.4g}' if size >= 1 or value == 0 else f'{value:.4f}'


def duration(seconds: float) -> str:
    """Seconds as '0:07', '12:34', '5:06:07' or '2 d 03:04'."""
    total = round(max(seconds, 0))
    if total >= 86400:
        return f'{total // 86400} d {total % 86400 // 3600:02d}:{total % 3600 // 60:02d}'
    if total >= 3600:
        return f'{total // 3600}:{total % 3600 // 60:02d}:{total % 60:02d}'
    return f'{total // 60}:{total % 60:02d}'


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Rows of texts as lines with aligned columns; `right` lists columns to align to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        '  '.join(
            text.rjust(width) if index in right else text.ljust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
