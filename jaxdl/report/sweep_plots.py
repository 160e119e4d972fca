"""Draws a sweep: curves by hyper-parameter, parallel coordinates, the metric against each one.

What belongs to a trial carries the id 'trial-ID' in the SVG, so that the page can bring it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, to_hex
from matplotlib.figure import Figure

from jaxdl.report import plots
from jaxdl.report.data import Run, mismatch
from jaxdl.report.plots import COLOURS, INK, MUTED, ON_COLOUR, Line, Panel, short, shorten
from jaxdl.sweeps import spec

# From low to high, of a lightness that shows on white and on black.
_RAMP = LinearSegmentedColormap.from_list(
    'ramp', ('#3f6fd1', '#1f9aa8', '#4aa564', '#d9a21b', '#d5502b')
)
_WIDTH, _HEIGHT = 5.6, 3.7
_NAMED = 8  # values that are named one by one; more are shown by a scale
_MARKS = np.linspace(0, 1, 5)

UNSET = '(base)'  # what a point without this field has: the config's own value


class Axis:
    """One hyper-parameter.

    Args:
        field: its path in the config.
        name: what is written at the axis.
        items: the trials or points.

    Attributes:
        values: the different values, in order.
        numeric: all of them are numbers.
        whole: all of them are whole numbers.
        log: they are drawn on a logarithmic scale.
        safe: the path as part of a file name.
    """

    def __init__(self, field: str, name: str, items: Sequence[dict[str, Any]]):
        self.field, self.name, self.safe = field, name, plots.file_name(field)
        given = [item['varied'].get(field, UNSET) for item in items]
        self.numeric = not any(mismatch(value, float) for value in given)
        texts = [spec.shown(field, value) for value in given]
        self.values: list[Any] = sorted(set(given)) if self.numeric else list(dict.fromkeys(texts))
        self.whole = all(type(value) is int for value in given)
        ends = self.values if self.numeric else range(len(self.values))
        low, high = float(ends[0]), float(ends[-1])
        self.log = low > 0 and high / low >= 8
        self._norm = (LogNorm if self.log else Normalize)(low, high)

    def value(self, item: dict[str, Any]) -> Any:
        """The value in a trial or a point: a number if all are, else text."""
        value = item['varied'].get(self.field, UNSET)
        return value if self.numeric else spec.shown(self.field, value)

    def place(self, value: Any) -> float:
        """Where a value lies between 0 and 1."""
        return float(self._norm(float(value if self.numeric else self.values.index(value))))

    def marks(self) -> list[Any]:
        """Values to write at an axis: all of them, or five over the range."""
        if self.named:
            return self.values
        low, high = self.values[0], self.values[-1]
        marks = [float(f'{mark:.3g}') for mark in self._norm.inverse(_MARKS)]
        return [min(max(round(m) if self.whole else m, low), high) for m in marks]

    @property
    def named(self) -> bool:
        """Whether its values are named one by one; else a scale shows them."""
        return not self.numeric or len(self.values) <= _NAMED

    def labels(self) -> list[str]:
        return [shorten(str(value), 24) for value in self.values]

    def colour(self, value: Any) -> str:
        if self.numeric:
            return to_hex(_RAMP(self.place(value)))
        return COLOURS[self.values.index(value) % len(COLOURS)]


@dataclass
class Data:
    """A sweep's results.json, arranged for drawing; a metric in percent is a percentage here.

    Attributes:
        metric: the metric's name.
        label: the same with its unit.
        sign: 1 if more is better, else -1.
        scale: 100 for a metric in percent, else 1.
        axes: the hyper-parameters with more than one value.
        trials: results.json's trials.
        points: results.json's points.
        done: those that have a mean, with the unit of `label`.
        curves: {trial id: its Run}.
    """

    metric: str
    label: str
    sign: int
    scale: int
    axes: list[Axis]
    trials: list[dict[str, Any]]
    points: list[dict[str, Any]]
    done: list[dict[str, Any]]
    curves: dict[str, Run]


def curves(data: Data, trials: Sequence[dict[str, Any]], axis: Axis) -> Figure:
    """The metric over the steps of every trial, coloured by one hyper-parameter."""
    # As much room in each of these plots, so that their axes are of one size.
    legends = [[*other.labels(), other.name] for other in data.axes if other.named]
    extra = max([1.5, *map(plots.legend_width, legends)])  # 1.5: a scale with its name
    figure = Figure((_WIDTH + extra, _HEIGHT))
    axes = plots.place(figure, left=0.62, bottom=0.55, right=0.13 + extra, top=0.35)
    lines = []
    for trial in trials:
        steps, values = data.curves[trial['id']].series(data.metric)
        if len(steps):
            lines.append(Line(trial['id'], steps, data.scale * values))
            axes.plot(
                steps, lines[-1].y, color=axis.colour(axis.value(trial)), linewidth=1.2,
                alpha=0.85, marker='o' if len(steps) == 1 else None, markersize=3,
                gid=f'trial-{trial["id"]}',
            )  # fmt: skip
    if lines:
        plots.set_scales(axes, Panel(data.label, 'curves', lines))
    plots.set_title(axes, f'{data.label} by {axis.name}')
    if axis.named:
        for value, label in zip(axis.values, axis.labels(), strict=True):
            axes.plot([], [], color=axis.colour(value), label=label, linewidth=2.4)
        plots.legend_beside(axes, title=axis.name)
    else:
        _scale_beside(axes, axis)
    return figure


def _scale_beside(axes: Any, axis: Axis) -> None:
    """A bar beside the plot that says which colour is which value."""
    box = axes.get_position()
    bar = axes.figure.add_axes((box.x1 + 0.02, box.y0, 0.018, box.height))
    bar.imshow(np.linspace(0, 1, 60)[:, None], cmap=_RAMP, aspect='auto', origin='lower',
               extent=(0, 1, 0, 1))  # fmt: skip
    bar.set_xticks([])
    bar.set_yticks([axis.place(mark) for mark in axis.marks()], map(short, axis.marks()))
    bar.yaxis.tick_right()
    bar.tick_params(colors=MUTED, labelsize=8, length=0)
    bar.set_frame_on(False)
    bar.set_title(shorten(axis.name, 16), fontsize=9, color=MUTED, loc='left')


def parallel(data: Data, drawn: Sequence[Axis]) -> Figure:
    """Parallel coordinates: an upright axis a hyper-parameter, the last one is the metric."""
    means = [point['mean'] for point in data.done]
    low, high = min(means), max(means)
    figure = Figure((max(10.0, 2.0 * len(drawn) + 2.4), 4.0))
    axes = plots.place(figure, left=0.7, bottom=0.35, right=1.0, top=0.6)
    axes.spines['bottom'].set_visible(False)
    axes.grid(visible=False)
    last = len(drawn)

    def share(mean: float) -> float:
        return (mean - low) / (high - low) if high > low else 0.5

    # The best are drawn last, on top; the better end of the metric's scale is the warm one.
    for point in sorted(data.done, key=lambda p: data.sign * p['mean']):
        heights = [axis.place(axis.value(point)) for axis in drawn]
        good = share(point['mean']) if data.sign > 0 else 1 - share(point['mean'])
        axes.plot(
            range(last + 1), [*heights, share(point['mean'])], color=to_hex(_RAMP(good)),
            alpha=0.8, linewidth=0.8 + 1.6 * good**3, gid=f'trial-{"-".join(point["trials"])}',
        )  # fmt: skip
    behind: dict[str, Any] = dict(facecolor=ON_COLOUR, edgecolor='none', alpha=0.75, pad=1)
    for index, axis in enumerate(drawn):
        axes.axvline(index, color=MUTED, linewidth=1)
        for value in axis.marks():
            axes.text(
                index - 0.03, axis.place(value), _tick(value), ha='right', va='center',
                fontsize=8, color=MUTED, zorder=6, bbox=behind,
            )  # fmt: skip
    axes.axvline(last, color=INK, linewidth=1.4)
    for mark in _MARKS if high > low else (0.5,):
        value = float(f'{low + mark * (high - low):.4g}')
        axes.text(last + 0.02, mark, short(value), ha='left', va='center', fontsize=8, color=INK)
    axes.set_xticks(range(last + 1), [*(shorten(axis.name, 22) for axis in drawn), data.label])
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.tick_params(axis='x', length=0, labelsize=9.5, labelcolor=INK, pad=10)
    axes.set_xlim(-0.1, last + 0.1)
    axes.set_ylim(-0.04, 1.04)
    return figure


def against(data: Data, axis: Axis) -> Figure:
    """The metric over one hyper-parameter: a dot a point with the spread over its seeds."""
    figure = Figure((_WIDTH + 1, _HEIGHT))
    axes = plots.place(figure, left=0.7, bottom=0.62, right=0.2, top=0.35)
    best: dict[Any, float] = {}
    for point in data.done:
        value, mean = axis.value(point), point['mean']
        place = value if axis.numeric else axis.values.index(value)
        axes.errorbar(
            [place], [mean], yerr=[point['deviation']], color=MUTED, fmt='o', markersize=4,
            elinewidth=1, capsize=2.5 if point['deviation'] else 0, alpha=0.75,
        )[0].set_gid(f'trial-{"-".join(point["trials"])}')  # fmt: skip
        if place not in best or data.sign * (mean - best[place]) > 0:
            best[place] = mean
    if not axis.numeric:
        for place, mean in best.items():
            axes.plot([place - 0.2, place + 0.2], [mean, mean], color=COLOURS[0], linewidth=2.2)
        axes.set_xlim(-0.5, len(axis.values) - 0.5)
    elif len(best) <= 16:
        places = sorted(best)
        axes.plot(places, [best[p] for p in places], color=COLOURS[0], linewidth=1.8, zorder=5)
    if axis.log:
        axes.set_xscale('log')
    if not axis.named:
        plots.number_axis(axes.xaxis, integer=axis.whole and not axis.log)
    else:
        axes.margins(x=0.05)
        places = axis.values if axis.numeric else range(len(axis.values))
        axes.set_xticks(places, map(_tick, axis.values))
        axes.set_xticks([], minor=True)
    plots.number_axis(axes.yaxis)
    axes.set_xlabel(shorten(axis.field, 60))
    plots.set_title(axes, f'{data.label} against {axis.name}')
    return figure


def _tick(value: Any) -> str:
    return shorten(value, 18) if isinstance(value, str) else short(value)
