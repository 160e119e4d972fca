"""Draws a sweep: curves by hyper-parameter, parallel coordinates, the metric against each one.

What belongs to a trial carries the id 'trial-ID' in the SVG, so that the page can bring it out.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxdl.report.data import Run
from jaxdl.report.plots import (
    COLOURS,
    GRID,
    INK,
    MUTED,
    ON_COLOUR,
    Line,
    Panel,
    dress,
    limits,
    new_figure,
    short,
    shorten,
)
from jaxdl.sweeps.spec import shown

# From low to high, of a lightness that shows on white and on black.
_RAMP = ('#3f6fd1', '#1f9aa8', '#4aa564', '#d9a21b', '#d5502b')
_WIDTH, _HEIGHT = 6.6, 3.7
_LEGEND = 8  # values that are named one by one; more are shown by a scale


UNSET = '(base)'  # what a point without this field has: the config's own value


@dataclass
class Axis:
    """One hyper-parameter.

    Attributes:
        field: its path in the config.
        name: what is written at the axis.
        values: the different values, in order.
        numeric: all of them are numbers.
        log: they are drawn on a logarithmic scale.
        safe: the name as part of a file name.
    """

    field: str
    name: str
    values: list[Any]
    numeric: bool
    log: bool
    safe: str

    def place(self, value: Any) -> float:
        """Where a value lies between 0 and 1."""
        if not self.numeric:
            return self.values.index(value) / max(1, len(self.values) - 1)
        low, high = float(self.values[0]), float(self.values[-1])
        if self.log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)


@dataclass
class Data:
    """A sweep's results.json, arranged for drawing.

    Attributes:
        metric: the metric's name.
        sign: 1 if more is better, else -1.
        axes: the hyper-parameters with more than one value.
        trials: results.json's trials.
        points: results.json's points.
        curves: {trial id: its Run}.
    """

    metric: str
    sign: int
    axes: list[Axis]
    trials: list[dict[str, Any]]
    points: list[dict[str, Any]]
    curves: dict[str, Run]

    def value(self, item: dict[str, Any], axis: Axis) -> Any:
        """The value of a hyper-parameter in a trial or a point."""
        value = axis_value(axis.field, item)
        return value if axis.numeric else str(value)


def axis_value(field: str, item: dict[str, Any]) -> Any:
    """The value of a field in a trial or a point: numbers stay, everything else is text."""
    value = item['varied'].get(field, UNSET)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return shown(field, value)


def axis(path: str, name: str, values: Sequence[Any]) -> Axis:
    """The axis of these values of a hyper-parameter."""
    numeric = all(not isinstance(value, str) for value in values)
    different: list[Any] = sorted(set(values)) if numeric else list(dict.fromkeys(map(str, values)))
    log = numeric and different[0] > 0 and different[-1] / different[0] >= 8
    return Axis(path, name, different, numeric, log, re.sub(r'[^\w.-]+', '_', path))


def ramp(share: float) -> str:
    """A colour of the scale, for 0 … 1."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    return to_hex(LinearSegmentedColormap.from_list('ramp', _RAMP)(min(1.0, max(0.0, share))))


def _colour(axis: Axis, value: Any) -> str:
    if axis.numeric:
        return ramp(axis.place(value))
    return COLOURS[axis.values.index(value) % len(COLOURS)]


def _axes(figure: Any, left: float, bottom: float, right: float, top: float) -> Any:
    width, height = figure.get_size_inches()
    size = ((width - left - right) / width, (height - bottom - top) / height)
    return figure.add_axes((left / width, bottom / height, *size))


def _number_axis(axes: Any, which: str) -> None:
    from matplotlib.ticker import FuncFormatter

    getattr(axes, f'{which}axis').set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    getattr(axes, f'{which}axis').set_minor_formatter(FuncFormatter(lambda *_: ''))


def _scale(figure: Any, axes: Any, low: float, high: float, log: bool, label: str) -> None:
    """A bar beside the plot that says which colour is which value."""
    box = axes.get_position()
    bar = figure.add_axes((box.x1 + 0.02, box.y0, 0.018, box.height))
    steps = 60
    for index in range(steps):
        bar.axhspan(index / steps, (index + 1) / steps, color=ramp(index / (steps - 1)), lw=0)
    bar.set_xticks([])
    marks = [0.0, 0.25, 0.5, 0.75, 1.0]
    values = [low * (high / low) ** m if log else low + m * (high - low) for m in marks]
    bar.set_yticks(marks, [short(float(f'{value:.3g}')) for value in values])
    bar.yaxis.tick_right()
    bar.tick_params(colors=MUTED, labelsize=8, length=0)
    for side in bar.spines.values():
        side.set_visible(False)
    bar.set_title(shorten(label, 22), fontsize=9, color=MUTED, loc='left')


def curves(data: Data, trials: Sequence[dict[str, Any]], axis: Axis) -> Any:
    """The metric over the steps of every trial, coloured by one hyper-parameter."""
    named = not axis.numeric or len(axis.values) <= _LEGEND
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = _axes(figure, 0.62, 0.55, 1.15, 0.35)
    dress(axes)
    lines = []
    for trial in trials:
        steps, values = data.curves[trial['id']].series(data.metric)
        if not len(steps):
            continue
        lines.append(Line(trial['id'], steps, values))
        axes.plot(
            steps, values, color=_colour(axis, data.value(trial, axis)), linewidth=1.2, alpha=0.85,
            marker='o' if len(steps) == 1 else None, markersize=3, gid=f'trial-{trial["id"]}',
        )  # fmt: skip
    bounds = limits(Panel(data.metric, 'curves', lines, log=False)) if lines else None
    if bounds and bounds[0] < bounds[1]:
        axes.set_ylim(*bounds)
    axes.set_xlabel('step')
    _number_axis(axes, 'x')
    _number_axis(axes, 'y')
    axes.set_title(f'{data.metric} by {axis.name}', loc='left', color=INK, fontsize=11)
    if named:
        for value in axis.values:
            label = shorten(value, 16) if isinstance(value, str) else short(value)
            axes.plot([], [], color=_colour(axis, value), label=label, linewidth=2.4)
        legend = axes.legend(
            loc='upper left', bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=8.5,
            labelcolor=INK, title=shorten(axis.name, 20), handlelength=1.2,
        )  # fmt: skip
        legend.get_title().set_color(MUTED)
        legend.get_title().set_fontsize(9)
    else:
        _scale(figure, axes, float(axis.values[0]), float(axis.values[-1]), axis.log, axis.name)
    return figure


def parallel(data: Data, points: Sequence[dict[str, Any]], drawn: Sequence[Axis]) -> Any:
    """Parallel coordinates: an upright axis a hyper-parameter, the last one is the metric."""
    means = [p['mean'] for p in points]
    low, high = min(means), max(means)
    figure = new_figure(max(10.0, 2.0 * len(drawn) + 2.4), 4.0)
    axes = _axes(figure, 0.7, 0.35, 1.0, 0.6)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_yticks([])
    axes.patch.set_alpha(0)
    last = len(drawn)

    def share(mean: float) -> float:
        return (mean - low) / (high - low) if high > low else 0.5

    # The best are drawn last, on top; the better end of the metric's scale is the warm one.
    for point in sorted(points, key=lambda p: data.sign * p['mean']):
        heights = [axis.place(data.value(point, axis)) for axis in drawn]
        good = share(point['mean']) if data.sign > 0 else 1 - share(point['mean'])
        axes.plot(
            range(last + 1), [*heights, share(point['mean'])], color=ramp(good), alpha=0.8,
            linewidth=0.8 + 1.6 * good**3, gid=f'trial-{"-".join(point["trials"])}',
        )  # fmt: skip
    behind: dict[str, Any] = dict(facecolor=ON_COLOUR, edgecolor='none', alpha=0.75, pad=1)
    for index, axis in enumerate(drawn):
        axes.axvline(index, color=MUTED, linewidth=1)
        for value in axis.values if len(axis.values) <= 7 else _marks(axis):
            label = shorten(value, 18) if isinstance(value, str) else short(value)
            axes.text(
                index - 0.03, axis.place(value), label, ha='right', va='center', fontsize=8,
                color=MUTED, zorder=6, bbox=behind,
            )  # fmt: skip
    axes.axvline(last, color=INK, linewidth=1.4)
    for mark in (0.0, 0.25, 0.5, 0.75, 1.0) if high > low else (0.5,):
        value = float(f'{low + mark * (high - low):.4g}')
        axes.text(last + 0.02, mark, short(value), ha='left', va='center', fontsize=8, color=INK)
    axes.set_xticks(range(last + 1), [*(axis.name for axis in drawn), data.metric])
    axes.xaxis.tick_top()
    axes.tick_params(axis='x', length=0, labelsize=9.5, labelcolor=INK, pad=10)
    axes.set_xlim(-0.1, last + 0.1)
    axes.set_ylim(-0.04, 1.04)
    return figure


def _marks(axis: Axis) -> list[float]:
    low, high = float(axis.values[0]), float(axis.values[-1])
    shares = [index / 4 for index in range(5)]
    marks = [low * (high / low) ** s if axis.log else low + s * (high - low) for s in shares]
    return [min(max(float(f'{mark:.3g}'), low), high) for mark in marks]


def against(data: Data, points: Sequence[dict[str, Any]], axis: Axis) -> Any:
    """The metric over one hyper-parameter: a dot a point with the spread over its seeds."""
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = _axes(figure, 0.7, 0.62, 0.2, 0.35)
    dress(axes)
    best: dict[Any, float] = {}
    for point in points:
        value, mean = data.value(point, axis), point['mean']
        place = value if axis.numeric else axis.values.index(value)
        axes.errorbar(
            [place], [mean], yerr=[point['deviation'] or 0.0], color=MUTED, fmt='o', markersize=4,
            elinewidth=1, capsize=2.5 if point['deviation'] else 0, alpha=0.75,
        )[0].set_gid(f'trial-{"-".join(point["trials"])}')  # fmt: skip
        if place not in best or data.sign * mean > data.sign * best[place]:
            best[place] = mean
    if axis.numeric and len(best) <= 16:
        places = sorted(best)
        axes.plot(places, [best[p] for p in places], color=COLOURS[0], linewidth=1.8, zorder=5)
    elif not axis.numeric:
        for place, mean in best.items():
            axes.plot([place - 0.2, place + 0.2], [mean, mean], color=COLOURS[0], linewidth=2.2)
    if axis.log:
        axes.set_xscale('log')
    if not axis.numeric:
        axes.set_xticks(range(len(axis.values)), [shorten(str(v), 18) for v in axis.values])
        axes.set_xlim(-0.5, len(axis.values) - 0.5)
    else:
        axes.margins(x=0.05)
        if len(axis.values) <= 8:
            axes.set_xticks(axis.values, [short(v) for v in axis.values])
            axes.set_xticks([], minor=True)
        else:
            _number_axis(axes, 'x')
    _number_axis(axes, 'y')
    axes.set_xlabel(axis.field)
    axes.set_title(f'{data.metric} against {axis.name}', loc='left', color=INK, fontsize=11)
    return figure


def bars(shares: Sequence[tuple[str, float]]) -> Any:
    """Horizontal bars of [(name, share between 0 and 1)]."""
    left, height = 0.3 + 0.09 * max(len(name) for name, _ in shares), 0.36 * len(shares)
    figure = new_figure(left + 5.0, height + 0.3)
    axes = _axes(figure, left, 0.15, 0.6, 0.15)
    dress(axes)
    axes.grid(visible=False)
    for row, (_, share) in enumerate(shares):
        axes.barh(row, share, height=0.6, color=COLOURS[0], edgecolor='none')
        axes.text(share + 0.01, row, f'{100 * share:.0f} %', va='center', fontsize=9, color=INK)
    axes.set_yticks(range(len(shares)), [name for name, _ in shares])
    axes.tick_params(axis='y', labelcolor=INK)
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.set_xlim(0, 1.05)
    axes.set_xticks([])
    axes.spines['bottom'].set_color(GRID)
    return figure
