"""The HTML page of a report: one file that needs nothing else, in light and dark."""

import base64
import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdl.report.assets import SCRIPT, STYLE
from jaxdl.report.plots import COLOURS, DARK_COLOURS, DASHES, Panel, dashes, draw, readings, to_svg


@dataclass
class Section:
    """A part of the page under its own heading.

    Attributes:
        title: the heading; also the word in the page's menu.
        body: HTML.
    """

    title: str
    body: str


@dataclass
class Cell:
    """A table cell whose order is not that of its text.

    Attributes:
        text: what is shown.
        order: what it is sorted by; None sorts last.
        markup: the text is HTML.
        title: what a hovering pointer shows.
    """

    text: str
    order: float | str | None = None
    markup: bool = False
    title: str = ''


def escape(text: Any) -> str:
    return html.escape(str(text), quote=True)


def page(title: str, subtitle: str, sections: Sequence[Section], *, meta: str = '') -> str:
    """The whole page; `meta` is kept in a <meta name="jaxdl-files"> element."""
    menu = ''.join(
        f'<a href="#{_anchor(s.title)}">{escape(s.title)}</a>' for s in sections if s.title
    )
    body = ''.join(
        f'<section id="{_anchor(s.title)}"><h2>{escape(s.title)}</h2>{s.body}</section>'
        for s in sections
    )
    colours = ''.join(f'--c{i}:{c};' for i, c in enumerate(COLOURS))
    dark = ''.join(f'--c{i}:{c};' for i, c in enumerate(DARK_COLOURS))
    style = STYLE.replace('/*LIGHT*/', colours).replace('/*DARK*/', dark)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f'<meta name="jaxdl-files" content="{escape(meta)}"/>'
        f'<title>{escape(title)}</title><style>{style}</style></head><body>'
        f'<header><div><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></div>'
        f'<nav>{menu}<button id="theme" type="button" title="light or dark">◐</button></nav>'
        f'</header><main>{body}</main><div id="tip"></div><script>{SCRIPT}</script></body></html>\n'
    )


def _anchor(title: str) -> str:
    return ''.join(c if c.isalnum() else '-' for c in title.lower())


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    styles: Sequence[int | None] | None = None,
    trials: Sequence[str] | None = None,
) -> str:
    """A sortable table of texts, numbers and Cells.

    `styles` ties rows to the curves of a style, `trials` to what a sweep's plots show of a trial.
    """
    parts = ['<div class="scroll"><table class="sortable"><thead><tr>']
    for column, name in enumerate(head):
        numeric = ' class="number"' if any(_is_number(row[column]) for row in rows) else ''
        parts.append(f'<th tabindex="0"{numeric}>{escape(name)}</th>')
    parts.append('</tr></thead><tbody>')
    for index, row in enumerate(rows):
        style = styles[index] if styles is not None else None
        tie = f' data-style="{style}"' if style is not None else ''
        tie += f' data-trial="{escape(trials[index])}"' if trials is not None else ''
        parts.append(f'<tr{tie}>' + ''.join(map(_cell, row)) + '</tr>')
    parts.append('</tbody></table></div>')
    return ''.join(parts)


def _cell(cell: Any) -> str:
    if not isinstance(cell, Cell):
        cell = Cell('–' if cell is None or cell == '' else str(cell), cell)
    order = cell.order
    numeric = _is_number(cell)
    if isinstance(order, float) and not math.isfinite(order):
        order = None
    attributes = f' data-order="{escape(order)}"' if order is not None else ''
    attributes += ' class="number"' if numeric else ''
    attributes += f' title="{escape(cell.title)}"' if cell.title else ''
    return f'<td{attributes}>{cell.text if cell.markup else escape(cell.text)}</td>'


def _is_number(cell: Any) -> bool:
    order = cell.order if isinstance(cell, Cell) else cell
    return isinstance(order, int | float) and not isinstance(order, bool)


def swatch(style: int) -> str:
    """A short piece of a curve's line, as it is drawn in the plots."""
    pattern = dashes(style)
    dash = ''
    if pattern != DASHES[0]:
        dash = f' stroke-dasharray="{" ".join(str(1.8 * length) for length in pattern[1])}"'
    return (
        '<svg class="swatch" viewBox="0 0 28 8" width="28" height="8"><path d="M1 4H27" '
        f'style="stroke:var(--c{style % len(COLOURS)})" stroke-width="2.5" fill="none"{dash}/></svg>'
    )


def legend(names: Sequence[str]) -> str:
    """The names of all curves; pointing at one brings it out, a click hides it."""
    chips = ''.join(
        f'<button type="button" class="chip" data-style="{i}" aria-pressed="true">'
        f'{swatch(i)}<span>{escape(name)}</span></button>'
        for i, name in enumerate(names)
    )
    return f'<div class="legend">{chips}</div>'


def curves(panels: Sequence[Panel], prefix: str) -> str:
    """Plots side by side, as SVG with the values under the pointer."""
    parts = ['<div class="plots">']
    for index, panel in enumerate(panels):
        figure = draw(panel, legend=False)
        svg = to_svg(figure, f'{prefix}{index}')
        data = json.dumps(readings(panel, figure), separators=(',', ':'), allow_nan=False)
        data = data.replace('</', '<\\/')  # or a label could end the script
        parts.append(
            f'<figure class="plot"><figcaption>{escape(panel.title)}</figcaption>{svg}'
            f'<script type="application/json">{data}</script></figure>'
        )
    parts.append('</div>')
    return ''.join(parts)


def cards(values: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers: (name, value, remark)."""
    return (
        '<div class="cards">'
        + ''.join(
            f'<div class="card"><span>{escape(name)}</span><b>{escape(value)}</b>'
            f'<small>{escape(remark)}</small></div>'
            for name, value, remark in values
        )
        + '</div>'
    )


def picture(png: bytes, caption: str) -> str:
    """A PNG image inside the page."""
    data = base64.b64encode(png).decode()
    small = ' class="small"' if int.from_bytes(png[16:20], 'big') <= 300 else ''
    return (
        f'<figure class="picture"><img{small} alt="{escape(caption)}" '
        f'src="data:image/png;base64,{data}"/><figcaption>{escape(caption)}</figcaption></figure>'
    )


def command(text: str) -> str:
    """A command line with a button that copies it."""
    return (
        f'<div class="command"><code>{escape(text)}</code>'
        '<button type="button" class="copy">copy</button></div>'
    )


def kept_files(path: Path) -> list[str]:
    """The names of the plots that an earlier page says it was written with."""
    try:
        with open(path, encoding='utf-8') as file:
            start = file.read(20_000)
    except (OSError, UnicodeDecodeError):
        return []
    _, found, rest = start.partition('<meta name="jaxdl-files" content="')
    return html.unescape(rest.partition('"')[0]).split('|') if found else []
