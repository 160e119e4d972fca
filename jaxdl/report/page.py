"""The HTML page of a report: one file that needs nothing else, in light and dark.

The HTML is in page.html and parts.html, whose values jinja2 escapes; `parts` holds the macros.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from jaxdl.report import plots

_FOLDER = Path(__file__).parent
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
parts: Any = _ENVIRONMENT.get_template('parts.html').module

Sections = list[tuple[str, Markup]]  # (heading, body) of each part of a page


@dataclass
class Cell:
    """A table cell whose order is not that of its text.

    Attributes:
        text: what is shown.
        order: what it is sorted by; None and what is not finite sort last.
        title: what a hovering pointer shows.
        look: CSS classes of the text.
        style: the curve whose line is drawn before the text.
    """

    text: str
    order: float | str | None = None
    title: str = ''
    look: str = ''
    style: int | None = None

    @property
    def number(self) -> bool:
        return isinstance(self.order, int | float) and not isinstance(self.order, bool)

    @property
    def sortable(self) -> bool:
        return self.order is not None and str(self.order) not in ('nan', 'inf', '-inf')


def table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], *, tie: str = '', ties: Sequence[Any] = ()
) -> Markup:
    """A sortable table of texts, numbers and Cells.

    `ties` connects rows with what the plots show: of a curve (tie='style') or a 'trial'.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    heads = [(name, any(row[column].number for row in cells)) for column, name in enumerate(head)]
    return parts.table(heads, cells, _looks(), tie, ties or [None] * len(rows))


def _cell(value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    return Cell('–' if value is None or value == '' else str(value), value)


def legend(names: Sequence[str]) -> Markup:
    """The names of all curves."""
    return parts.legend(names, _looks())


def _looks() -> list[tuple[int, str]]:
    """(colour, dashes as SVG has them) of each style of a curve."""
    return [
        (colour, '' if kind == 'solid' else ' '.join(f'{1.8 * length:g}' for length in kind[1]))
        for kind in plots.DASHES
        for colour in range(len(plots.COLOURS))
    ]


def svg(figure: Any, prefix: str) -> Markup:
    """A matplotlib figure inside a page; `prefix` makes its ids unique there."""
    return Markup(plots.to_svg(figure, prefix))  # matplotlib has escaped its texts


def curves(panels: Sequence[plots.Panel], prefix: str) -> Markup:
    """Plots side by side, as SVG with the values under the pointer."""
    figures = []
    for index, panel in enumerate(panels):
        figure = plots.draw(panel, legend=False)
        figures.append(
            (panel.title, svg(figure, f'{prefix}{index}'), plots.readings(panel, figure))
        )
    return parts.plots(figures)


def joined(*bodies: str) -> Markup:
    """Parts of a page one after the other."""
    return Markup('').join(bodies)


def page(title: str, subtitle: str, sections: Sections, *, files: Sequence[str]) -> str:
    """The whole page; `files` are the plots written beside it, for `kept_files`."""
    return _ENVIRONMENT.get_template('page.html').render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        anchors={name: ''.join(c if c.isalnum() else '-' for c in name) for name, _ in sections},
        files=files,
        colours=list(zip(plots.COLOURS, plots.DARK_COLOURS, strict=True)),
        style=Markup((_FOLDER / 'page.css').read_text(encoding='utf-8')),
        script=Markup((_FOLDER / 'page.js').read_text(encoding='utf-8')),
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
