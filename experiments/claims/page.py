"""The page of all claims: one HTML file with its plots inside."""

import importlib
import time
from pathlib import Path
from typing import Any

from experiments.claims import CLAIMS
from experiments.claims.base import UNAVAILABLE, Results, Settings, Shown, of_cores
from jaxdl.files import write_bytes
from jaxdl.report import page as html

TITLES = {
    'parallelism': '1 Parallelism', 'throughput': '2 Throughput', 'libraries': '3 Libraries',
    'scalability': '4 Scalability', 'energy': '5 Energy', 'flexibility': '6 Flexibility',
    'cpu_gpu': '7 CPU against GPU',
}  # fmt: skip


def write(settings: Settings) -> tuple[Path, dict[str, Shown]]:
    """Writes index.html from the results that are there; returns its path and the answers."""
    import matplotlib

    folder = Path(settings.folder)
    answers, sections, places = {}, [], []
    with matplotlib.rc_context({'text.parse_math': False}):
        for name in CLAIMS:
            path = folder / f'{name}.json'
            if not path.exists():
                continue
            results = Results(folder, name, quick=settings.quick)
            answers[name] = shown = answer(name, results, settings)
            sections.append((TITLES[name], section(name, results, shown, settings)))
            places.append(results.data.get('about', {}))
    cards = [(TITLES[name], shown.label, shown.answer) for name, shown in answers.items()]
    first = html.parts.note(
        'Measured: ran on this machine. Predicted: follows from published figures of a card, a '
        'compiled program or a measured rate, with the arithmetic shown. Unavailable: this machine '
        'cannot say. No figure here is typed in by hand.'
    )
    rows = [
        html.Markup('<dt><b>{}</b> <span class="status {}">{}</span></dt><dd>{}</dd>').format(
            title, LOOKS[label], label, text
        )
        for title, label, text in cards
    ]
    listed = html.Markup('<dl class="answers">{}</dl>').format(html.joined(*rows))
    overview = html.joined(first, listed)
    where = ran_on(places[-1]) if places else ''
    mode = 'quick mode' if settings.quick else 'full mode'
    text = html.page(
        'Six claims, measured',
        f'{mode} · {where} · {time.strftime("%Y-%m-%d %H:%M")}',
        [
            ('Answers', overview),
            *sections,
        ],
        files=[],
    )
    target = folder / 'index.html'
    write_bytes(target, _styled(text).encode(errors='replace'))
    return target, answers


LOOKS = {'measured': 'finished', 'predicted': 'running', 'unavailable': ''}


def _styled(text: str) -> str:
    """Sentences in tables break into lines here, other than in a report of numbers."""
    rule = (
        '.answers{display:block;max-width:900px;font-size:15px}.answers dt{color:inherit;margin-top:8px}'
        '.claim td{white-space:normal;max-width:380px}.claim td.number{white-space:nowrap}'
        '.claim p{max-width:900px}.answer{font-size:17px;font-weight:600;margin:4px 0 10px}'
    )
    return text.replace('</style>', f'{rule}</style>', 1)


def answer(name: str, results: Results, settings: Settings) -> Shown:
    """What a claim's module makes of its results; without the main ones, why they are missing."""
    module = importlib.import_module(f'experiments.claims.{name}')
    values = results.values()
    extra = {'grams_per_kwh': settings.grams_per_kwh} if name == 'energy' else {}
    try:
        return module.present(values, **extra)
    except KeyError as error:
        why = results.without().get(error.args[0], 'not run yet')
        return Shown(f'Not answered: the part {error.args[0]} has no result ({why}).', UNAVAILABLE)


def section(name: str, results: Results, shown: Shown, settings: Settings) -> Any:
    module = importlib.import_module(f'experiments.claims.{name}')
    quick = ' --quick' if settings.quick else ''
    about = results.data.get('about', {})
    bodies: list[Any] = [
        html.Markup('<p class="answer"><span class="status {}">{}</span> {}</p>').format(
            LOOKS[shown.label], shown.label, shown.answer
        ),
        html.parts.facts(
            [
                ('claim', module.CLAIM),
                ('question', module.QUESTION),
                ('ran on', ran_on(about)),
            ]
        ),
        html.parts.command(f'python -m experiments.run {name} --workdir=DIR{quick}'),
    ]
    if shown.figures:
        drawn = html.Markup('').join(
            html.Markup('<figure class="sweep{}"><figcaption>{}</figcaption>{}</figure>').format(
                ' wide' if figure.get_size_inches()[0] > 8 else '',
                title,
                html.svg(figure, f'{name}{index}-'),
            )
            for index, (title, figure) in enumerate(shown.figures)
        )
        bodies.append(html.Markup('<div class="sweeps">{}</div>').format(drawn))
    for title, head, rows in shown.tables:
        if title:
            bodies.append(html.parts.heading(title))
        bodies.append(html.table(head, [[_kept(cell) for cell in row] for row in rows]))
    bodies += [html.Markup('<p>{}</p>').format(note) for note in shown.notes]
    missing = [[part, why] for part, why in results.without().items()]
    missing += [[part, 'left for the next call'] for part in results.data.get('pending', [])]
    bodies.append(html.parts.heading('What failed or is absent'))
    bodies.append(html.table(['part', 'why'], missing) if missing else html.parts.note('nothing'))
    return html.Markup('<div class="claim">') + html.joined(*bodies) + html.Markup('</div>')


def _kept(cell: Any) -> Any:
    """A short text of a table stays on one line."""
    if isinstance(cell, str) and len(cell) <= 20:
        return cell.replace(' ', '\u00a0')
    return cell


def ran_on(about: dict[str, Any]) -> str:
    if not about:
        return 'unknown'
    gpus = ', '.join(about['gpus']) or 'no GPU'
    revision = f', commit {about["git"][:10]}' if about.get('git') else ''
    return f'{of_cores(about["cores"])} of {about["processor"]}, {gpus}{revision}'
