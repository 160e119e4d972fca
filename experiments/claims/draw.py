"""Figures of the claims with matplotlib, in the style of the report."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from jaxdl.report import plots


@dataclasses.dataclass
class Curve:
    """Points that belong together.

    Attributes:
        label: its name.
        x: positions.
        y: values.
        predicted: drawn as dashes, without points: not measured here.
        style: the colour's number; None takes the next.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    predicted: bool = False
    style: int | None = None
    points: bool = False


def curves(
    lines: Sequence[Curve],
    *,
    x: str,
    y: str,
    log: str = 'xy',
    mark: tuple[float, str] | None = None,
) -> Figure:
    """Curves over a common axis; `log` names the logarithmic axes, `mark` is a place on x."""
    rows = -(-len(lines) // 2)
    figure = Figure((6.2, 3.6 + 0.2 * rows))
    axes = plots.place(figure, left=0.7, bottom=0.55, right=0.15, top=0.15 + 0.22 * rows)
    if 'x' in log:
        axes.set_xscale('log', base=2 if max(max(c.x) for c in lines) < 1e5 else 10)
    if 'y' in log:
        axes.set_yscale('log')
    for index, line in enumerate(lines):
        style = index if line.style is None else line.style
        axes.plot(
            line.x, line.y, color=plots.colour(style), label=line.label, linewidth=1.8,
            linestyle='none' if line.points else (0, (5, 2)) if line.predicted else 'solid',
            marker=None if line.predicted else 'o', markersize=4,
        )  # fmt: skip
    low, high = axes.get_ylim()
    if 'y' in log and high / low < 1000:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if mark is not None:
        axes.axvline(mark[0], color=plots.MUTED, linewidth=1, linestyle=(0, (1, 1.4)))
        axes.text(
            mark[0], 0.99, f' {mark[1]}', transform=axes.get_xaxis_transform(), fontsize=8.5,
            color=plots.MUTED, va='top',
        )  # fmt: skip
    axes.set_xlabel(x)
    axes.set_ylabel(y, color=plots.MUTED)
    plots.number_axis(axes.xaxis)
    plots.number_axis(axes.yaxis)
    plots.legend_above(axes, 2, handlelength=2.2, columnspacing=1.4)
    return figure


def bars(rows: Sequence[tuple[str, float, str]], *, label: str, log: bool = False) -> Figure:
    """Horizontal bars of (name, value, text beside it)."""
    left = 0.3 + 0.085 * max(len(plots.shorten(name, 40)) for name, *_ in rows)
    figure = Figure((max(6.4, left + 3), 0.34 * len(rows) + 0.65))  # one width: texts of one size
    axes: Any = plots.place(figure, left=left, bottom=0.5, right=0.1, top=0.12)
    axes.grid(visible=False)
    if log:
        axes.set_xscale('log')
    drawn = axes.barh(range(len(rows)), [v for _, v, _ in rows], 0.6, color=plots.COLOURS[0])
    axes.bar_label(drawn, [text for *_, text in rows], fontsize=9, color=plots.INK, padding=4)
    axes.set_yticks(range(len(rows)), [plots.shorten(name, 40) for name, *_ in rows])
    axes.tick_params(axis='y', labelcolor=plots.INK)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    values = [value for _, value, _ in rows]
    start = 10 ** math.floor(math.log10(min(values)) - 0.3) if log else 0.0
    end = max(values)
    axes.set_xlim(start, end * (end / start) ** 0.3 if log else end * 1.3)  # room for the texts
    plots.number_axis(axes.xaxis)
    axes.set_xlabel(label)
    return figure
