"""What a person sees of a run while it trains: the progress bar, warnings, tables and pictures."""

import math
import os
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import numpy as np

_NUMBERS = re.compile(r'(\d+)')
_active: 'Progress | None' = None


def warn(text: str) -> None:
    """Prints `text` on stderr, on lines of its own even while a progress bar is drawn."""
    if _active is not None:
        _active.hide()
    try:
        print(f'warning: {text}', file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody is left to read it; training must not end because of that
    if _active is not None:
        _active.show()


class Progress:
    """A progress bar on a terminal, and elsewhere one plain line per call of `update`.

    All of it goes to `stream` (stdout unless given). A stream that breaks (`… | head`) silences
    the bar and never ends the training.
    """

    def __init__(self, total_steps: int, *, start: int = 0, stream: TextIO | None = None):
        global _active
        self.total = total_steps
        self._stream = sys.stdout if stream is None else stream
        self._terminal = self._stream.isatty() and os.environ.get('TERM') != 'dumb'
        self._broken = False
        self._line = ''
        # (step, time) of the last updates: the time left follows the present speed. The first
        # entry is the first update, not the start, so the compilation is not counted.
        self._marks: deque[tuple[int, float]] = deque(maxlen=20)
        self._step = start
        self._values: dict[str, float] = {}
        if self._terminal:
            _active = self
            self._redraw()

    def update(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the state after `step` steps; evaluation results stay on the screen."""
        self._step = step
        if not self._marks or step > self._marks[-1][0]:
            self._marks.append((step, time.monotonic()))
        results = {k: v for k, v in scalars.items() if k.startswith('eval/')}
        training = {k: v for k, v in scalars.items() if not k.startswith('eval/')}
        self._values.update(training)
        if not self._terminal:
            if texts := _texts(training):
                self._print('  '.join([self._counter(), *texts, *self._left()]))
            if results:
                self._print('  '.join([self._counter(), *_texts(results)]))
            return
        if results:
            self.message('  '.join([self._counter(), *_texts(results)]))
        self._redraw()

    def message(self, text: str) -> None:
        """Prints `text` above the bar, for good."""
        self.hide()
        self._print(text)
        self.show()

    def close(self) -> None:
        """Ends the bar; it stays on the screen as it was last."""
        global _active
        if self._line:
            self._write('\n')
            self._line = ''
        self._terminal = False
        if _active is self:
            _active = None

    def hide(self) -> None:
        """Removes the bar from the screen for the moment."""
        if self._line:
            self._write('\r\x1b[K')

    def show(self) -> None:
        """Draws the bar as it was last."""
        if self._line:
            self._write(self._line)

    def _redraw(self) -> None:
        if not self._terminal:
            return
        width = shutil.get_terminal_size().columns
        share = min(self._step / self.total, 1.0) if self.total else 1.0
        full, empty = ('━', '─') if _can_encode(self._stream, '━─') else ('#', '-')
        texts = [self._counter(), *_texts(self._values), *self._left()]
        length = max(8, min(30, width - 8 - len('  '.join(texts))))
        done = round(share * length)
        line = '  '.join([f'{full * done}{empty * (length - done)} {share:4.0%}', *texts])
        # Never the last column: there many terminals wrap, and the bar would scroll.
        self.hide()
        self._line = line[: width - 1]
        self.show()

    def _counter(self) -> str:
        total = str(self.total)
        return f'step {self._step:>{len(total)}}/{total}'

    def _left(self) -> list[str]:
        if len(self._marks) < 2 or self._step >= self.total:
            return []
        (step0, time0), (step1, time1) = self._marks[0], self._marks[-1]
        seconds = (self.total - self._step) * (time1 - time0) / (step1 - step0)
        return [f'{duration(seconds)} left']

    def _print(self, text: str) -> None:
        self._write(text + '\n')

    def _write(self, text: str) -> None:
        if self._broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except UnicodeEncodeError:
            self._stream.write(text.encode('ascii', 'replace').decode())
        except (OSError, ValueError):  # a closed pipe or a closed stream
            self._broken = True


def _can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, 'encoding', None) or 'ascii')
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _texts(scalars: Mapping[str, float]) -> list[str]:
    """The few values worth a place on one line, as text."""
    texts = []
    for key, value in scalars.items():
        kind, _, name = key.partition('/')
        name = name.replace('/', ' ').replace('_', ' ')
        if name.endswith('examples') or name == 'learning rate':
            continue
        if kind in ('train', 'eval'):
            texts.append(f'{name} {number(value)}')
    # The loss leads, and a task with many metrics must not push the speed off the line.
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


# ---- pictures -----------------------------------------------------------------------------------


def image_grid(images: np.ndarray, columns: int = 0) -> np.ndarray:
    """Lays images uint8 [n, height, width, channels] out in rows, with thin gaps between them.

    Returns uint8 [height, width, 3]; channels may be 1 or 3. columns=0: about a square.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f'images must be uint8 [n, height, width, 1 or 3], not {images.dtype} {images.shape}'
        )
    count, height, width, _ = images.shape
    columns = columns or max(1, int(np.ceil(np.sqrt(count))))
    rows = -(-count // columns)
    gap = 2
    grid = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 127, np.uint8)
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid


def confusion_image(matrix: np.ndarray, class_names: Sequence[str] = ()) -> np.ndarray:
    """Paints counts [true class, predicted class] as uint8 [height, width, 3].

    A cell's colour is its share of its row, so rare classes are as visible as frequent ones. The
    counts, or the percentages of the row where the matrix holds shares instead of counts, are
    written into the cells of up to 20 classes, the names beside up to 40.
    """
    from PIL import Image, ImageDraw, ImageFont

    matrix = np.asarray(matrix, np.float64)
    classes = len(matrix)
    if matrix.shape != (classes, classes) or not classes:
        raise ValueError(f'matrix must be [classes, classes], not {matrix.shape}')
    counted = bool((matrix == matrix.round()).all())
    names = [str(name) for name in class_names] or [str(i) for i in range(classes)]
    if len(names) != classes:
        raise ValueError(f'{len(names)} class names for a matrix of {classes} classes')
    cell = int(np.clip(720 // classes, 4, 48))
    font = ImageFont.load_default(12)
    named = classes <= 40
    margin = 24 + (int(max(font.getlength(name) for name in names)) + 8 if named else 0)
    side = cell * classes
    image = Image.new('RGB', (margin + side + 8, margin + side + 8), 'white')
    draw = ImageDraw.Draw(image)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1e-12)
    # A square root, since the interesting cells are the few percent that went wrong.
    depth = np.sqrt(shares)[..., None]
    colours = (255 + depth * (np.array([0, 68, 136]) - 255)).astype(np.uint8)
    cells = np.kron(colours, np.ones((cell, cell, 1), np.uint8))
    image.paste(Image.fromarray(cells), (margin, margin))
    unit = '' if counted else ' (% of the true class)'
    draw.text((margin + side / 2, 12), f'predicted{unit}', fill='black', font=font, anchor='mm')
    _vertical(image, 'true', (12, margin + side // 2), font)
    for index, name in enumerate(names if named else ()):
        middle = margin + index * cell + cell // 2
        draw.text((margin - 5, middle), name, fill='black', font=font, anchor='rm')
        length = int(font.getlength(name))
        _vertical(image, name, (middle, margin - 5 - length // 2), font)
    if classes <= 20:
        small = ImageFont.load_default(11)
        for row in range(classes):
            for column in range(classes):
                count = matrix[row, column]
                if count:
                    colour = 'white' if depth[row, column, 0] > 0.55 else 'black'
                    place = (margin + column * cell + cell / 2, margin + row * cell + cell / 2)
                    text = f'{count:.0f}' if counted else f'{100 * shares[row, column]:.1f}'
                    draw.text(place, text, fill=colour, font=small, anchor='mm')
    return np.asarray(image)


def _vertical(image, text: str, centre: tuple[int, int], font) -> None:
    from PIL import Image, ImageDraw

    label = Image.new('RGB', (int(font.getlength(text)) + 2, 18), 'white')
    ImageDraw.Draw(label).text((1, 9), text, fill='black', font=font, anchor='lm')
    label = label.rotate(90, expand=True)
    image.paste(label, (centre[0] - label.width // 2, centre[1] - label.height // 2))


# ---- parameters ---------------------------------------------------------------------------------


def count_parameters(params: Any) -> int:
    """The number of values in a tree of arrays (or of their shapes)."""
    import jax

    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def parameter_table(params: Any, *, max_rows: int = 35) -> str:
    """A text table of a tree's arrays: path, shape, dtype, count, mean, standard deviation.

    A tree with more than `max_rows` arrays is summed up per layer or group of layers. Leaves may be
    jax.ShapeDtypeStruct; mean and standard deviation are left out then. In a run of several
    processes all of them must call this, as the statistics are computed where the arrays are.
    """
    import jax

    leaves = [
        (
            tuple(str(getattr(k, 'key', getattr(k, 'idx', getattr(k, 'name', k)))) for k in path),
            leaf,
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    total = sum(int(np.prod(leaf.shape)) for _, leaf in leaves)
    groups: dict[tuple[str, ...], list[int]] = {}
    for depth in range(max((len(path) for path, _ in leaves), default=0), 0, -1):
        groups = {}
        for index, (path, _) in enumerate(leaves):
            groups.setdefault(path[:depth], []).append(index)
        if len(groups) <= max_rows:
            break
    # block2 before block10.
    shown = sorted(
        groups.items(),
        key=lambda item: [
            [int(t) if t.isdigit() else 0, t] for t in _NUMBERS.split('/'.join(item[0]))
        ],
    )
    rest = shown[max_rows - 1 :] if len(shown) > max_rows else []
    if rest:
        shown = shown[: max_rows - 1]
        merged = [index for _, indices in rest for index in indices]
        shown.append(((f'({len(rest)} more)',), merged))
    moments = _moments([leaf for _, leaf in leaves])
    rows = [('parameter', 'shape', 'dtype', 'count', 'mean', 'std')]
    for path, indices in shown:
        members = [leaves[i][1] for i in indices]
        count = sum(int(np.prod(leaf.shape)) for leaf in members)
        shape = ' × '.join(map(str, members[0].shape)) or 'scalar'
        dtypes = {str(leaf.dtype) for leaf in members}
        mean = std = ''
        if moments is not None and count:
            sums = np.sum([moments[i] for i in indices], axis=0)
            average = sums[0] / count
            mean = f'{average:.3g}'
            std = f'{np.sqrt(max(sums[1] / count - average**2, 0)):.3g}'
        rows.append(
            (
                '/'.join(path),
                shape if len(members) == 1 else f'{len(members)} arrays',
                dtypes.pop() if len(dtypes) == 1 else 'mixed',
                f'{count:,}',
                mean,
                std,
            )
        )
    rows.append(('total', f'{len(leaves)} arrays', '', f'{total:,}', '', ''))
    columns = [*range(4), *([4, 5] if moments is not None else [])]
    widths = [max(len(row[c]) for row in rows) for c in columns]
    lines = [
        '  '.join(
            row[c].rjust(widths[c]) if c >= 3 else row[c].ljust(widths[c]) for c in columns
        ).rstrip()
        for row in rows
    ]
    rule = '-' * max(map(len, lines))
    return '\n'.join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _moments(leaves: list) -> list[tuple[float, float]] | None:
    """(sum, sum of squares) of every array, or None where they are only shapes."""
    import jax
    import jax.numpy as jnp

    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return None
    size = sum(leaf.size for leaf in leaves)
    if size < 20_000_000 and all(getattr(leaf, 'is_fully_addressable', True) for leaf in leaves):
        # On the host: nothing to compile, and a small model is copied in milliseconds.
        arrays = [np.asarray(leaf, np.float32).ravel() for leaf in leaves]
        return [(float(a.sum(dtype=np.float64)), float(np.dot(a, a))) for a in arrays]

    @jax.jit
    def sums(arrays):
        arrays = [a.astype(jnp.float32) for a in arrays]
        return [(a.sum(), (a * a).sum()) for a in arrays]

    return [(float(a), float(b)) for a, b in jax.device_get(sums(leaves))]
