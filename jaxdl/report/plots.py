"""Draws the curves of a report with matplotlib: once as PNG, once as SVG that follows the theme."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from jaxdl.files import replacing
from jaxdl.report.data import Group, drawn, is_share

# Okabe and Ito's colours, which people with any kind of colour blindness tell apart, without the
# yellow that vanishes on white. https://jfly.uni-koeln.de/color/
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#767676')
# The same for a dark page, where the darker ones need light.
DARK_COLOURS = ('#3da5e8', '#f07b32', '#21c197', '#e29cc4', '#f2b73d', '#8fd0f7', '#a5a5a5')
# Past the seventh run the dashes differ: 7 colours × 6 patterns are 42 curves.
DASHES: tuple[Any, ...] = (
    'solid',
    (0, (5, 2)),
    (0, (1, 1.4)),
    (0, (6, 2, 1, 2)),
    (0, (9, 3)),
    (0, (3, 1.5, 1, 1.5, 1, 1.5)),
)
INK, MUTED, GRID = '#24292e', '#5f6873', '#dfe3e8'
# Text on a bar: light or dark on the darker colours by the page's theme, dark on the lighter ones.
ON_COLOUR, INK_ON = '#fefefe', '#101112'
_POINTS = 240
_WIDTH, _HEIGHT = 6.2, 3.3  # inches of a plot with its labels, without title and legend
_SECTIONS = ('Curves', 'Optimizer', 'Speed', 'Energy')


@dataclass
class Line:
    """One curve: points, and a band [low, high] around them or None.

    Attributes:
        label: what the legend says.
        x: steps.
        y: values.
        low: lower edge of the band.
        high: upper edge of the band.
        style: decides colour and dashes.
        marker: whether the points themselves are drawn.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    style: int = 0
    marker: bool = False


@dataclass
class Panel:
    """One plot of values over steps.

    Attributes:
        title: the plot's heading.
        name: its file name without '.png'.
        lines: the curves.
        section: the part of the page it belongs to.
        own_legend: the lines are parts of one run, named in the plot itself.
    """

    title: str
    name: str
    lines: list[Line] = field(default_factory=list)
    section: str = 'Curves'
    own_legend: bool = False


def colour(style: int) -> str:
    return COLOURS[style % len(COLOURS)]


def dashes(style: int) -> Any:
    return DASHES[style // len(COLOURS) % len(DASHES)]


# ---- which panels -------------------------------------------------------------------------------


def panels(groups: Sequence[Group]) -> list[Panel]:
    """The plots of these runs: a metric a plot; training and evaluation share one for a single run."""
    keys = list(dict.fromkeys(key for group in groups for key in group.keys() if drawn(key)))
    found: dict[str, Panel] = {}
    taken = {'overview', 'wall_time', 'index'}
    for key in sorted(keys, key=_rank):
        kind, _, rest = key.partition('/')
        shared = len(groups) == 1 and kind in ('train', 'eval')
        subject = _subject(key) if shared else key
        panel = found.get(subject)
        if panel is None:
            name = file_name(subject)
            while name.lower() in taken:
                name += '_'
            taken.add(name.lower())
            title = _words(subject) + (' (%)' if is_share(key) else '')
            panel = found[subject] = Panel(title, name, section=_section(key), own_legend=shared)
        for index, group in enumerate(groups):
            steps, values, deviation = group.curve(key)
            if not len(steps):
                continue
            scale = 100 if is_share(key) else 1
            line = Line(group.name, steps, scale * values, style=index)
            if deviation is not None:
                line.low, line.high = line.y - scale * deviation, line.y + scale * deviation
            line.marker = len(steps) <= 40 and len(groups) <= 8
            if shared:
                line.label = 'train' if kind == 'train' else _words(rest.rpartition('/')[0])
                if 'ema' in re.split(r'[/_]', key):
                    line.label += ' (average of weights)'
                line.style = len(panel.lines)
            panel.lines.append(_thinned(line))
    # A single point is no curve; the tables hold it.
    result = [p for p in found.values() if any(len(line.x) > 1 for line in p.lines)]
    for panel in result:
        if len(panel.lines) == 1 and panel.own_legend:
            panel.own_legend = False
            if panel.lines[0].label not in ('train', ''):
                panel.title = f'{panel.lines[0].label} {panel.title}'
    return result


def file_name(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r'[^\w.-]+', '_', text)[:100]


def _subject(key: str) -> str:
    return re.sub(r'(^ema_|_ema$)', '', key.rpartition('/')[2]) or key


def _words(name: str) -> str:
    name = re.sub(r'^(eval|perf|energy)/', '', name)
    return name.replace('/', ' ').replace('_per_s', '/s').replace('_', ' ').strip()


def _section(key: str) -> str:
    kind, _, rest = key.partition('/')
    if kind in ('perf', 'energy'):
        return 'Speed' if kind == 'perf' else 'Energy'
    return 'Optimizer' if rest == 'learning_rate' or rest.endswith('_norm') else 'Curves'


def _rank(key: str) -> tuple:
    kind, _, rest = key.partition('/')
    subject = _subject(key)
    return (
        _SECTIONS.index(_section(key)),
        {'loss': 0, 'accuracy': 1}.get(subject, 2),
        subject,
        {'train': 0, 'eval': 1}.get(kind, 2),
        rest,
    )


def _thinned(line: Line) -> Line:
    """At most _POINTS points: the mean of each bin, and its range as the band."""
    if len(line.x) <= _POINTS:
        return line
    edges = np.linspace(0, len(line.x), _POINTS + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(line.x)])
    low = line.y if line.low is None else line.low
    high = line.y if line.high is None else line.high
    line.low, line.high = np.minimum.reduceat(low, edges), np.maximum.reduceat(high, edges)
    line.x = np.rint(np.add.reduceat(line.x.astype(np.float64), edges) / counts)  # a step is whole
    line.y = np.add.reduceat(line.y, edges) / counts
    return line


# ---- drawing ------------------------------------------------------------------------------------


def is_log(panel: Panel) -> bool:
    """Whether a logarithmic axis shows more: positive values over a wide range."""
    if re.search(r'learning rate|/s$|time|%', panel.title):
        return False
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in panel.lines])
    if not len(values) or values.min() <= 0:
        return False
    wide = 8 if re.search(r'loss|perplexity|norm', panel.title) else 200
    return bool(values.max() / values.min() > wide)


def limits(panel: Panel) -> tuple[float, float] | None:
    """The vertical range: a few values far off (a first step, one spike) do not flatten the rest."""
    lows, highs = [], []
    for line in panel.lines:
        values = line.y[np.isfinite(line.y)]
        if not len(values):
            continue
        # The end of a curve is what it is drawn for.
        tail = values[-max(1, len(values) // 5) :]
        inner = np.quantile(values, [0.03, 0.97]) if len(values) > 60 else values
        lows.append(min(inner.min(), tail.min()))
        highs.append(max(inner.max(), tail.max()))
    if not lows:
        return None
    low, high = float(min(lows)), float(max(highs))
    if is_log(panel):
        gap = max((math.log(high) - math.log(low)) * 0.06, 0.05)
        return low * math.exp(-gap), high * math.exp(gap)
    gap = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low - gap if low < 0 or low > gap else 0.0), high + gap


def draw(panel: Panel, *, legend: bool) -> Figure:
    """The figure of a panel; `legend` adds its title and names the curves beside it."""
    named = legend and not panel.own_legend and len(panel.lines) > 1
    extra = legend_width([line.label for line in panel.lines]) if named else 0
    top = 0.12 + 0.3 * legend + 0.25 * panel.own_legend
    figure = Figure((_WIDTH + extra, _HEIGHT + top))
    axes = place(figure, left=0.62, bottom=0.55, right=0.13 + extra, top=top)
    plot(axes, panel)
    if legend:
        set_title(axes, panel.title, pad=25 if panel.own_legend else 8)
    if named:
        legend_beside(axes)
    return figure


def overview(chosen: Sequence[Panel]) -> Figure:
    """Up to four panels in one picture, for a note or a mail."""
    chosen = chosen[:4]
    columns, rows = min(len(chosen), 2), -(-len(chosen) // 2)
    lines = max((p.lines for p in chosen if not p.own_legend), key=len, default=[])
    extra = legend_width([line.label for line in lines]) if len(lines) > 1 else 0
    height = _HEIGHT + 0.7
    figure = Figure((_WIDTH * columns + extra, height * rows))
    for index, panel in enumerate(chosen):
        column, row = index % 2, index // 2
        axes = place(
            figure, left=0.62 + _WIDTH * column, bottom=0.55 + height * (rows - 1 - row),
            right=0.13 + extra + _WIDTH * (columns - 1 - column), top=0.7 + height * row,
        )  # fmt: skip
        plot(axes, panel)
        set_title(axes, panel.title, pad=25 if panel.own_legend else 8)
        if extra and panel.lines is lines:
            legend_beside(axes, left=_WIDTH * columns)
    return figure


def place(figure: Figure, *, left: float, bottom: float, right: float, top: float) -> Any:
    """Axes with margins in inches; matplotlib's own layout takes far longer."""
    width, height = figure.get_size_inches()
    size = ((width - left - right) / width, (height - bottom - top) / height)
    axes = figure.add_axes((left / width, bottom / height, *size))
    for side in ('top', 'right', 'left'):
        axes.spines[side].set_visible(False)
    axes.spines['bottom'].set_color(MUTED)
    axes.grid(axis='y', color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which='both', colors=MUTED, labelsize=9, length=0, pad=5)
    axes.xaxis.label.set_color(MUTED)
    axes.patch.set_alpha(0)
    axes.margins(x=0.01)
    return axes


def set_title(axes: Any, text: str, *, pad: float = 8) -> None:
    width = axes.get_position().width * axes.figure.get_size_inches()[0]
    axes.set_title(shorten(text, int(width * 11)), loc='left', color=INK, fontsize=11, pad=pad)


def legend_width(labels: Sequence[str]) -> float:
    """Inches that `legend_beside` needs."""
    longest = max(len(shorten(label, 60)) for label in labels)
    return -(-len(labels) // 20) * min(0.7 + 0.085 * longest, 5.4)


def legend_beside(axes: Any, *, left: float | None = None, title: str = '') -> None:
    """Names the curves to the right of the axes, or `left` inches from the figure's edge."""
    handles, labels = axes.get_legend_handles_labels()
    edge = axes.get_position().x1 + 0.01
    if left is not None:
        edge = left / axes.figure.get_size_inches()[0]
    legend = axes.figure.legend(
        handles, [shorten(label, 60) for label in labels], title=title,
        loc='center left', bbox_to_anchor=(edge, 0.5), ncols=-(-len(labels) // 20),
        frameon=False, fontsize=8 if len(labels) > 12 else 9, labelcolor=INK,
        handlelength=2.6, columnspacing=1.2, alignment='left', title_fontsize=9,
    )  # fmt: skip
    legend.get_title().set_color(MUTED)


def legend_above(axes: Any, columns: int, **options: Any) -> None:
    """Names what is drawn in a row over the axes."""
    axes.legend(
        loc='lower left', bbox_to_anchor=(0, 1.0), ncols=columns, frameon=False, fontsize=9,
        labelcolor=INK, borderaxespad=0.2, **options,
    )  # fmt: skip


def plot(axes: Any, panel: Panel) -> None:
    """Draws a panel's curves into matplotlib axes."""
    # The first is the widest, so that it can be seen under a later one of the same values.
    widths = np.linspace(2.6, 1.4, len(panel.lines)) if len(panel.lines) > 1 else [1.8]
    if len(panel.lines) > 8:
        widths = np.full(len(panel.lines), 1.3)
    for line, width in zip(panel.lines, widths, strict=True):
        if line.low is not None and line.high is not None:
            axes.fill_between(
                line.x, line.low, line.high, color=colour(line.style), alpha=0.16, linewidth=0,
                gid=f'line-{line.style}-band',
            )  # fmt: skip
        axes.plot(
            line.x, line.y, color=colour(line.style), linestyle=dashes(line.style),
            linewidth=width, label=line.label, gid=f'line-{line.style}',
            marker='o' if line.marker else None, markersize=3,
        )  # fmt: skip
    set_scales(axes, panel)
    if panel.own_legend:
        legend_above(axes, 3, handlelength=1.6)


def set_scales(axes: Any, panel: Panel) -> None:
    """Ranges, scales and ticks of axes that hold the lines of a panel."""
    axes.set_xlabel('step')
    start, end = axes.get_xlim()
    if 0 <= min(line.x[0] for line in panel.lines) and start < end / 2:
        axes.set_xlim(left=0)
    number_axis(axes.xaxis, integer=True, largest=end)
    bounds = limits(panel)
    if is_log(panel):
        axes.set_yscale('log')
        decades = math.log10(bounds[1] / bounds[0]) if bounds else 1
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    number_axis(axes.yaxis)
    if bounds and bounds[0] < bounds[1]:
        axes.set_ylim(*bounds)


def number_axis(axis: Any, *, integer: bool = False, largest: float | None = None) -> None:
    """Numbers at the ticks as `short` writes them; `integer`: ticks at whole numbers only."""
    if integer:
        axis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value, largest)))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ''))


def short(value: float, largest: float | None = None) -> str:
    """A number for an axis: 0.05, 250, 12k, 3.5M; one unit for all up to `largest`."""
    top = abs(value if largest is None else largest)
    for size, letter in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if top >= size * (10 if letter == 'k' else 1):
            return f'{value / size:.4g}{letter}' if value else '0'
    return f'{value:.4g}'


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f'{text[: length // 2 - 1]}…{text[-length // 2 :]}'


def bars(rows: Sequence[tuple[str, float]]) -> Figure:
    """Horizontal bars of [(name, share between 0 and 1)]."""
    figure, axes = _bar_figure([name for name, _ in rows], 5.6, 'share of the variance')
    drawn = axes.barh(range(len(rows)), [share for _, share in rows], 0.6, color=COLOURS[0])
    texts = [f'{100 * share:.0f} %' for _, share in rows]
    axes.bar_label(drawn, texts, fontsize=9, color=INK, padding=4)
    axes.set_xlim(0, 1.15)
    return figure


def time_figure(shares: Sequence[tuple[str, dict[str, float]]]) -> Figure:
    """Horizontal bars of where each run's wall time went: [(run, {activity: seconds})]."""
    activities = list(dict.fromkeys(name for _, seconds in shares for name in seconds))
    table = np.array([[seconds.get(name, 0.0) for name in activities] for _, seconds in shares])
    table /= table.sum(1, keepdims=True)
    order = np.argsort(-table.sum(0), kind='stable')
    names, table = [activities[index] for index in order], table[:, order]
    if len(names) > len(COLOURS):  # a colour each; what is left is small
        most = len(COLOURS) - 1
        names[most:] = ['rest']
        table = np.column_stack([table[:, :most], table[:, most:].sum(1)])
    figure, axes = _bar_figure([run for run, _ in shares], 8.2, 'share of the wall time')
    starts = table.cumsum(1) - table
    for index, name in enumerate(names):
        part = table[:, index]
        drawn = axes.barh(
            range(len(part)), part, 0.62, left=starts[:, index], color=colour(index), label=name
        )
        axes.bar_label(
            drawn, [f'{100 * share:.0f} %' if share >= 0.06 else '' for share in part],
            label_type='center', fontsize=8,
            color=ON_COLOUR if index in (0, 1, 2, 6) else INK_ON,
        )  # fmt: skip
    axes.set_xlim(0, 1)
    legend_above(axes, 8, handlelength=1, columnspacing=1.4)
    return figure


def calibration(bins: Sequence[tuple[float, float, int]]) -> Figure:
    """What is right against what the model says: [(mean probability, share right, examples)]."""
    figure = Figure((4.6, 3.3))
    axes = place(figure, left=0.8, bottom=0.55, right=1.3, top=0.2)
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    sizes = np.array([count for *_, count in bins], float)
    sure, right = ([100 * one[i] for one in bins] for i in range(2))
    axes.plot(sure, right, color=COLOURS[0], linewidth=1.4, alpha=0.6)
    axes.scatter(sure, right, 12 + 90 * sizes / sizes.sum(), color=COLOURS[0], zorder=4)
    axes.set_xlabel('probability that the model gives')
    axes.set_ylabel('share that is right', color=MUTED)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:.0f} %'))
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 104)
    return figure


def _bar_figure(names: Sequence[str], width: float, label: str) -> tuple[Figure, Any]:
    names = [shorten(name, 44) for name in names]
    left = 0.2 + 0.085 * max(map(len, names))
    figure = Figure((left + width, 0.34 * len(names) + 0.7))
    axes = place(figure, left=left, bottom=0.35, right=0.1, top=0.35)
    axes.grid(visible=False)
    axes.spines['bottom'].set_visible(False)
    axes.set_xticks([])
    axes.set_xlabel(label)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis='y', labelcolor=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figure, axes


# ---- saving -------------------------------------------------------------------------------------


def save_png(figure: Figure, path: Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format='png', dpi=160, facecolor='white')


def to_svg(figure: Figure, prefix: str) -> str:
    """The figure as an <svg> element with real text whose colours are the page's variables.

    `prefix` makes the ids unique on a page.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': prefix}):
        figure.savefig(buffer, format='svg', transparent=True, metadata={'Date': None})
    text = buffer.getvalue()
    text = text[text.index('<svg') :]
    text = re.sub(
        r'<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>', '', text, flags=re.S
    )
    box = re.search(r'viewBox="[^"]*"', text)
    text = re.sub(r'^<svg[^>]*>', f'<svg {box[0] if box else ""}>', text)
    text = text.replace('xlink:href="#', 'href="#')
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(|href=")#', rf'\1#{prefix}-', text)
    text = re.sub(r'font-family: [^;"]*', 'font-family: var(--font)', text)
    names = {INK: 'ink', MUTED: 'muted', GRID: 'grid', ON_COLOUR: 'on'}
    names |= {value: f'c{index}' for index, value in enumerate(COLOURS)}
    for value, name in names.items():
        text = text.replace(value, f'var(--{name})')
    return text.strip()


def readings(panel: Panel, figure: Figure) -> dict[str, Any]:
    """What a page needs to show values under the pointer: the plot's place, its axes, the points."""
    axes = figure.axes[0]
    box = axes.get_position()
    return {
        'box': [round(v, 5) for v in (box.x0, 1 - box.y1, box.x1, 1 - box.y0)],
        'x': [float(v) for v in axes.get_xlim()],
        'y': [float(v) for v in axes.get_ylim()],
        'log': is_log(panel),
        'lines': [
            {
                'label': line.label,
                'style': line.style,
                'x': [float(f'{v:.8g}') for v in line.x],
                'y': [float(f'{v:.5g}') if math.isfinite(v) else None for v in line.y],
            }
            for line in panel.lines
        ],
    }
