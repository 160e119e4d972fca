"""Draws the curves of a report with matplotlib: once as PNG, once as SVG that follows the theme."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl.report.data import Group, drawn

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
    """One plot.

    Attributes:
        title: the plot's heading.
        name: its file name without '.png'.
        lines: the curves.
        section: the part of the page it belongs to.
        own_legend: the lines are parts of one run, named in the plot itself.
        log: whether the vertical axis is logarithmic; None: where the values ask for it.
        x_label: what the horizontal axis counts.
    """

    title: str
    name: str
    lines: list[Line] = field(default_factory=list)
    section: str = 'Curves'
    own_legend: bool = False
    log: bool | None = None
    x_label: str = 'step'


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
        subject = _subject(key)
        shared = len(groups) == 1 and kind in ('train', 'eval')
        title = subject if shared else key
        panel = found.get(title)
        if panel is None:
            name = re.sub(r'[^\w.-]+', '_', title)
            while name.lower() in taken:
                name += '_'
            taken.add(name.lower())
            panel = found[title] = Panel(_words(title), name, section=_section(key))
            panel.own_legend = shared
        for index, group in enumerate(groups):
            steps, values, deviation = group.curve(key)
            if not len(steps):
                continue
            line = Line(group.name, steps, values, style=index)
            if deviation is not None:
                line.low, line.high = values - deviation, values + deviation
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


def _subject(key: str) -> str:
    return re.sub(r'(^ema_|_ema$)', '', key.rpartition('/')[2]) or key


def _words(name: str) -> str:
    name = re.sub(
        r'^(train|eval|perf|energy)/', lambda m: m[1] + ' ' if m[1] == 'train' else '', name
    )
    return name.replace('/', ' ').replace('_per_s', '/s').replace('_', ' ').strip()


def _section(key: str) -> str:
    kind, _, rest = key.partition('/')
    if kind in ('perf', 'energy'):
        return 'Speed' if kind == 'perf' else 'Energy'
    if rest in ('learning_rate', 'grad_norm') or rest.endswith('_norm'):
        return 'Optimizer'
    return 'Curves'


def _rank(key: str) -> tuple:
    kind, _, rest = key.partition('/')
    subject = _subject(key)
    return (
        ('Curves', 'Optimizer', 'Speed', 'Energy').index(_section(key)),
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
    line.x = np.add.reduceat(line.x.astype(np.float64), edges) / counts
    line.y = np.add.reduceat(line.y, edges) / counts
    return line


# ---- drawing ------------------------------------------------------------------------------------


def is_log(panel: Panel) -> bool:
    """Whether a logarithmic axis shows more: positive values over a wide range."""
    if panel.log is not None:
        return panel.log
    if re.search(r'learning rate|/s$|time', panel.title):
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
        if is_log(panel):
            values = values[values > 0]
        if not len(values):
            continue
        lows.append(np.quantile(values, 0.03) if len(values) > 60 else values.min())
        highs.append(np.quantile(values, 0.97) if len(values) > 60 else values.max())
        # The end of a curve is what it is drawn for.
        tail = values[-max(1, len(values) // 5) :]
        lows.append(tail.min())
        highs.append(tail.max())
    if not lows:
        return None
    low, high = float(min(lows)), float(max(highs))
    if is_log(panel):
        gap = max((math.log(high) - math.log(low)) * 0.06, 0.05)
        return low * math.exp(-gap), high * math.exp(gap)
    gap = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (low - gap if low < 0 or low > gap else 0.0 if low >= 0 else low), high + gap


def draw(panel: Panel, *, legend: bool) -> Any:
    """The matplotlib Figure of a panel; `legend` adds its title and names the curves beside it."""
    named = legend and not panel.own_legend and len(panel.lines) > 1
    top = 0.12 + 0.3 * legend + 0.25 * panel.own_legend
    figure = new_figure(_WIDTH + (_legend_width(panel.lines) if named else 0), _HEIGHT + top)
    axes = _place(figure, 0, 0, _WIDTH, _HEIGHT)
    plot(axes, panel)
    if legend:
        _title(axes, panel)
    if named:
        _legend_beside(figure, axes, _WIDTH)
    return figure


def overview(chosen: Sequence[Panel]) -> Any:
    """Up to four panels in one picture, for a note or a mail."""
    chosen = chosen[:4]
    columns, rows = min(len(chosen), 2), -(-len(chosen) // 2)
    lines = max((p.lines for p in chosen if not p.own_legend), key=len, default=[])
    extra = _legend_width(lines) if len(lines) > 1 else 0
    height = _HEIGHT + 0.7
    figure = new_figure(_WIDTH * columns + extra, height * rows)
    for index, panel in enumerate(chosen):
        left, bottom = _WIDTH * (index % 2), height * (rows - 1 - index // 2)
        axes = _place(figure, left, bottom, _WIDTH, _HEIGHT)
        plot(axes, panel)
        _title(axes, panel)
        if extra and panel.lines is lines:
            _legend_beside(figure, axes, _WIDTH * columns)
    return figure


def new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _place(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes whose labels fit into a box given in inches; matplotlib's own layout takes far longer."""
    whole_width, whole_height = figure.get_size_inches()
    box = (left + 0.62, bottom + 0.55, width - 0.75, height - 0.55)
    return figure.add_axes(
        (box[0] / whole_width, box[1] / whole_height, box[2] / whole_width, box[3] / whole_height)
    )


def _title(axes: Any, panel: Panel) -> None:
    axes.set_title(panel.title, loc='left', color=INK, pad=25 if panel.own_legend else 8, x=0)


def _legend_width(lines: Sequence[Line]) -> float:
    longest = max((len(line.label) for line in lines), default=0)
    return -(-len(lines) // 20) * min(0.55 + 0.075 * longest, 5.0)


def _legend_beside(figure: Any, axes: Any, left: float) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, [shorten(label, 60) for label in labels],
        loc='center left', bbox_to_anchor=(left / figure.get_size_inches()[0], 0.5),
        ncols=-(-len(labels) // 20), frameon=False, fontsize=8 if len(labels) > 12 else 9,
        labelcolor=INK, handlelength=2.6, columnspacing=1.2,
    )  # fmt: skip


def plot(axes: Any, panel: Panel) -> None:
    """Draws a panel's curves into matplotlib axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    dress(axes)
    for line in panel.lines:
        width = 1.8 if len(panel.lines) <= 8 else 1.3
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
    axes.set_xlabel(panel.x_label)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=panel.x_label == 'step'))
    start, end = axes.get_xlim()
    if 0 <= min(line.x[0] for line in panel.lines) and start < end / 5:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x, end)))
    bounds = limits(panel)
    if is_log(panel):
        axes.set_yscale('log')
        decades = math.log10(bounds[1] / bounds[0]) if bounds else 1
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ''))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short(y)))
    if bounds and bounds[0] < bounds[1]:
        axes.set_ylim(*bounds)
    if panel.own_legend:
        axes.legend(
            loc='lower left', bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=9,
            labelcolor=INK, borderaxespad=0.2, handlelength=1.6,
        )  # fmt: skip


def dress(axes) -> None:
    for side in ('top', 'right', 'left'):
        axes.spines[side].set_visible(False)
    axes.spines['bottom'].set_color(MUTED)
    axes.grid(axis='y', color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, length=0, pad=5)
    axes.tick_params(which='minor', length=0)
    axes.xaxis.label.set_color(MUTED)
    axes.patch.set_alpha(0)
    axes.margins(x=0.01)


def short(value: float, largest: float | None = None) -> str:
    """A number for an axis: 0.05, 250, 12k, 3.5M; one unit for all up to `largest`."""
    top = abs(value if largest is None else largest)
    for size, letter in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if top >= size * (10 if letter == 'k' else 1):
            return f'{value / size:.4g}{letter}' if value else '0'
    return f'{value:.4g}'


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f'{text[: length // 2 - 1]}…{text[-length // 2 :]}'


def time_figure(shares: Sequence[tuple[str, dict[str, float]]]) -> Any:
    """Horizontal bars of where each run's wall time went: [(run, {activity: seconds})]."""

    totals: dict[str, float] = {}
    for _, seconds in shares:
        for name, value in seconds.items():
            totals[name] = totals.get(name, 0.0) + value / max(sum(seconds.values()), 1e-9)
    order = sorted(totals, key=lambda name: -totals[name])
    if len(order) > len(COLOURS):  # a colour each; what is left is small
        order = order[: len(COLOURS) - 1]
        shares = [
            (run, {name: seconds.get(name, 0.0) for name in order}
             | {'rest': sum(v for name, v in seconds.items() if name not in order)})
            for run, seconds in shares
        ]  # fmt: skip
        order.append('rest')
    names = [shorten(name, 44) for name, _ in shares]
    left, height = 0.2 + 0.085 * max(map(len, names)), 0.34 * len(shares)
    figure = new_figure(left + 8.2, height + 1.0)
    axes = figure.add_axes(
        (left / (left + 8.2), 0.6 / (height + 1.0), 8.0 / (left + 8.2), height / (height + 1.0))
    )
    dress(axes)
    axes.grid(visible=False)
    for row, (_, seconds) in enumerate(shares):
        start, total = 0.0, max(sum(seconds.values()), 1e-9)
        for index, name in enumerate(order):
            share = 100 * seconds.get(name, 0.0) / total
            look: dict[str, Any] = {'color': colour(index), 'edgecolor': 'none'}
            axes.barh(row, share, left=start, height=0.62, label=name if row == 0 else None, **look)
            if share >= 6:
                axes.text(
                    start + share / 2, row, f'{share:.0f} %', ha='center', va='center',
                    fontsize=8, color=ON_COLOUR if index % len(COLOURS) in (0, 1, 2, 6) else INK_ON,
                )  # fmt: skip
            start += share
    axes.set_yticks(range(len(shares)), names)
    axes.tick_params(axis='y', labelcolor=INK)
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel('% of the wall time')
    axes.spines['bottom'].set_visible(False)
    axes.legend(
        loc='lower left', bbox_to_anchor=(0, 1.0), ncols=8, frameon=False, fontsize=9,
        labelcolor=INK, borderaxespad=0.2, handlelength=1, columnspacing=1.4,
    )  # fmt: skip
    return figure


# ---- saving -------------------------------------------------------------------------------------


def save_png(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=160, facecolor='white')


def to_svg(figure: Any, prefix: str) -> str:
    """The figure as an <svg> element with real text whose colours are the page's variables.

    `prefix` makes the ids unique on a page.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': prefix}):
        figure.savefig(buffer, format='svg', transparent=True, metadata={'Date': None})
    text = buffer.getvalue()
    text = text[text.index('<svg') :]
    text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.S)
    text = re.sub(r'<defs>\s*<style.*?</style>\s*</defs>', '', text, flags=re.S)
    text = re.sub(
        r'\swidth="[^"]*"\sheight="[^"]*"|\sheight="[^"]*"\sviewBox', _sizeless, text, count=1
    )
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"|\sversion="1.1"', '', text)
    text = text.replace('xlink:href="#', 'href="#')
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'url\(#', f'url(#{prefix}-', text)
    text = text.replace('href="#', f'href="#{prefix}-')
    text = re.sub(r'font-family: [^;"]*', 'font-family: var(--font)', text)
    for value, name in ((INK, 'ink'), (MUTED, 'muted'), (GRID, 'grid'), (ON_COLOUR, 'on')):
        text = text.replace(value, f'var(--{name})')
    for index, value in enumerate(COLOURS):
        text = text.replace(value, f'var(--c{index})')
    return text.strip()


def _sizeless(match: re.Match) -> str:
    return ' viewBox' if match[0].endswith('viewBox') else ''


def readings(panel: Panel, figure: Any) -> dict[str, Any]:
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
