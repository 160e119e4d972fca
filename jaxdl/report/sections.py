"""The parts of a report's page: the runs in tables, plots, samples, and how to repeat them."""

import base64
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jaxdl.errors import UserError
from jaxdl.record.gallery import newest
from jaxdl.record.pictures import encode_png
from jaxdl.record.terminal import duration, number, warn
from jaxdl.report import page, plots, sweep
from jaxdl.report.data import Group, Run, differing, group_by_seed, main_metric, shown
from jaxdl.report.page import Cell, parts

# Seven colours in six kinds of dashes.
_MAX_CURVES = 42
# A page holds the samples of so many runs, so many of each kind, and so much of one.
_SAMPLE_RUNS, _SAMPLES, _MAX_PNG, _MAX_TEXT = 6, 12, 3_000_000, 4000


def contents(
    runs: Sequence[Run],
    folders: Sequence[str | os.PathLike],
    judged: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[page.Sections, dict[str, Any]]:
    """(the sections of the page, {name of a PNG file: figure}).

    `judged` is {name of a run: the result of jaxdl.predict.mistakes.judge}.
    """
    groups = group_by_seed(runs)
    chosen = _chosen(groups)
    sections, figures = _sweeps(folders, runs)
    if len(runs) == 1:
        sections.append(('Run', _one_run(runs[0])))
    else:
        sections.append(('Runs', _all_runs(runs, groups, chosen)))
    if differences := differing(runs):
        values = zip(*differences.values(), strict=True)
        rows = [[item.name, *row] for item, row in zip(runs, values, strict=True)]
        sections.append(('Differences', page.table(['run', *differences], rows)))
    panels = plots.panels(chosen)
    for index, title in enumerate(dict.fromkeys(panel.section for panel in panels)):
        body = [page.curves([p for p in panels if p.section == title], f'p{index}-')]
        if index == 0 and len(chosen) > 1:
            body.insert(0, page.legend([group.name for group in chosen]))
            if len(chosen) < len(groups):
                note = f'The {len(chosen)} best of {len(groups)} are drawn.'
                body.insert(0, parts.note(note))
        sections.append((title, page.joined(*body)))
    figures |= {panel.name: plots.draw(panel, legend=True) for panel in panels}
    if len(panels) > 1:
        figures['overview'] = plots.overview(panels)
    if shares := [(item.name, times) for item in runs if (times := _times(item))][:40]:
        figures['wall_time'] = plots.time_figure(shares)
        sections.append(('Time', parts.bars(page.svg(figures['wall_time'], 'time'))))
    for index, (run, sets) in enumerate((judged or {}).items()):
        for name, found in sets.items():
            body, figure = _mistakes(found, f'm{index}{name}')
            figures[f'calibration_{plots.file_name(run)}_{plots.file_name(name)}'] = figure
            of = f' of {run}' * (len(runs) > 1)
            sections.append((f'Mistakes{of}, {name}', body))
    if samples := _samples(runs):
        sections.append(('Samples', samples))
    sections.append(('Reproduce', page.joined(*map(_reproduce, runs))))
    return sections, figures


def _chosen(groups: Sequence[Group]) -> list[Group]:
    """The groups that get curves: all, or as many of the best as can be told apart."""
    key = main_metric([item for group in groups for item in group.runs])
    if len(groups) <= _MAX_CURVES or not key:
        return list(groups[:_MAX_CURVES])
    sign = 1 if groups[0].runs[0].better(key) == 'min' else -1

    def order(group: Group) -> float:
        best = group.best(key)
        return sign * best[0] if best else math.inf

    best = {id(group) for group in sorted(groups, key=order)[:_MAX_CURVES]}
    return [group for group in groups if id(group) in best]


def _sweeps(
    folders: Sequence[str | os.PathLike], runs: Sequence[Run]
) -> tuple[page.Sections, dict[str, Any]]:
    """The sections and figures of jaxdl.report.sweep for each folder that holds a sweep."""
    sections: page.Sections = []
    figures: dict[str, Any] = {}
    for index, folder in enumerate(map(Path, folders)):
        try:
            results = sweep.read_results(folder)
        except UserError as error:
            warn(f'left out of the report: {error}')
            continue
        if results:
            more, drawn = sweep.sections(folder, results, runs, f's{index}')
            of, ending = (f' of {folder.resolve().name}', f'_{index}') if sections else ('', '')
            sections += [(title + of, body) for title, body in more]
            figures |= {name + ending: figure for name, figure in drawn.items()}
    return sections, figures


def _all_runs(runs: Sequence[Run], groups: Sequence[Group], chosen: Sequence[Group]) -> Markup:
    main = main_metric(runs)
    metrics = list(dict.fromkeys(key for item in runs for key in item.evaluations()))
    metrics = sorted(metrics, key=lambda key: key != main)[:8] or ['train/loss']
    pairs = [text for key in metrics for text in (key.removeprefix('eval/'), 'best')]
    style = {id(item): index for index, group in enumerate(chosen) for item in group.runs}
    body = []
    if any(len(group.runs) > 1 for group in groups):
        rows = []
        for group in groups:
            row: list[Any] = [Cell(group.name, group.name, style=style.get(id(group.runs[0])))]
            row.append(len(group.runs))
            for key in metrics:
                row += [_spread(key, group.final(key)), _spread(key, group.best(key))]
            rows.append(row)
        head = ['runs that differ in their seed', 'seeds', *pairs]
        ties = [style.get(id(group.runs[0])) for group in groups]
        body += [
            parts.heading('Mean ± standard deviation over seeds'),
            page.table(head, rows, tie='style', ties=ties),
            parts.heading('Every run'),
        ]
    tops = {key: _top(runs, key) for key in metrics}
    rows = []
    for item in runs:
        status, reason = item.status, item.info.get('reason', '')
        row = [
            Cell(item.name, item.name, style=style.get(id(item))),
            Cell(status, status, title=reason, look=f'status {status}'),
            Cell(f'{item.step:,} / {f"{item.steps:,}" if item.steps else "?"}', item.step),
        ]
        for key in metrics:
            last, best = item.last(key), item.best(key)
            row.append(Cell(shown(key, last) or '–', last))
            look = 'good' if best and best[0] == tops[key] else ''
            row.append(_best(key, best, look))
        parameters, seconds = item.info.get('parameters'), item.seconds
        row += [
            None if parameters is None else Cell(f'{parameters:,}', parameters),
            None if seconds is None else Cell(duration(seconds), seconds),
            Cell(_rate(item) or '–', item.median('perf/examples_per_s')),
            item.devices(),
        ]
        rows.append(row)
    head = ['run', 'status', 'steps', *pairs, 'parameters', 'time', 'examples/s', 'devices']
    ties = [style.get(id(item)) for item in runs]
    return page.joined(*body, page.table(head, rows, tie='style', ties=ties))


def _top(runs: Sequence[Run], key: str) -> float | None:
    values = [best[0] for item in runs if (best := item.best(key))]
    return (min if runs[0].better(key) == 'min' else max)(values, default=None)


def _best(key: str, best: tuple[float, int] | None, look: str = '') -> Cell | None:
    if best is None:
        return None
    return Cell(shown(key, best[0]), best[0], title=f'at step {best[1]:,}', look=look)


def _spread(key: str, value: tuple[float, float, int] | None) -> Cell | None:
    if value is None:
        return None
    mean, deviation, count = value
    text = shown(key, mean)
    if not math.isnan(deviation):
        spread = shown(key, deviation)
        if '%' not in text and 'e' not in text:
            # As many decimals as the mean has, or the two cannot be compared at a glance.
            spread = f'{deviation:,.{len(text.partition(".")[2])}f}'
        text = f'{text.removesuffix(" %")} ± {spread}'
    return Cell(text, mean, title=f'{count} runs')


def _rate(item: Run) -> str:
    return number(item.median('perf/examples_per_s'))


def _one_run(item: Run) -> Markup:
    """The main values of one run, and every metric of it, unfolded at a click."""
    info = item.info
    values = [('status', item.status, info.get('reason', ''))]
    values.append(('steps', f'{item.step:,}', f'of {item.steps:,}' if item.steps else ''))
    main = main_metric([item])
    for key in sorted(item.evaluations(), key=lambda k: k != main)[:4]:
        best = item.best(key)
        remark = f'best {shown(key, best[0])} at step {best[1]:,}' if best else ''
        name = key.removeprefix('eval/').replace('_', ' ')
        values.append((name, shown(key, item.last(key)), remark))
    if 'parameters' in info:
        values.append(('parameters', f'{info["parameters"]:,}', ''))
    if item.seconds is not None:
        values.append(('time', duration(item.seconds), item.devices()))
    if _rate(item):
        values.append(('examples/s', _rate(item), 'median'))
    mfu = item.median('perf/mfu')
    if mfu is not None:
        values.append(('MFU', f'{100 * mfu:.0f} %', 'model FLOPs utilisation, median'))
    joules = {part: item.last(f'energy/{part}_joules') for part in ('gpu', 'cpu')}
    measured = {part.upper(): value for part, value in joules.items() if value is not None}
    if measured:
        kilo = number(sum(measured.values()) / 1000)
        values.append(('energy', f'{kilo} kJ', f'measured: {", ".join(measured)}'))
    body = [parts.cards(values)]
    if not measured and info.get('energy'):
        body.append(parts.note(f'Energy was not measured: {info["energy"]}.'))
    rows = []
    for key in item.keys():
        if not key.startswith('perf/time_'):
            last, best = item.last(key), item.best(key)
            rows.append([key, Cell(shown(key, last), last), _best(key, best), best and best[1]])
    table = page.table(['metric', 'last', 'best', 'at step'], rows)
    return page.joined(*body, parts.details('all metrics', table))


def _times(item: Run) -> dict[str, float]:
    """{activity: seconds} of the newest row with an account of the time, or {}."""
    for row in reversed(item.rows):
        found = {
            key.removeprefix('perf/time_').removesuffix('_s').replace('_', ' '): value
            for key, value in row.items()
            if key.startswith('perf/time_') and 0 < value < math.inf
        }
        if found:
            return found
    return {}


def _samples(runs: Sequence[Run]) -> Markup:
    """The newest picture and text of every name that the runs left in samples/."""
    body = []
    for item in runs[:_SAMPLE_RUNS]:
        pictures, texts = [], []
        try:
            for name, (step, path) in newest(item.folder / 'samples').items():
                caption = f'{Path(name).with_suffix("").as_posix()}, step {step:,}'
                if path.suffix == '.md':
                    text = path.read_text(encoding='utf-8', errors='replace')
                    texts.append((caption, text[:_MAX_TEXT]))
                elif path.stat().st_size <= _MAX_PNG:
                    png = path.read_bytes()
                    small = int.from_bytes(png[16:20], 'big') <= 300
                    pictures.append((caption, base64.b64encode(png).decode(), small))
        except OSError as error:
            warn(f'{item.folder / "samples"}: cannot be read: {error.strerror}')
        if pictures or texts:
            if len(runs) > 1:
                body.append(parts.heading(item.name))
            body.append(parts.samples(pictures[:_SAMPLES], texts[:_SAMPLES]))
    return page.joined(*body)


def _mistakes(found: Any, prefix: str) -> tuple[Markup, Any]:
    """The worst examples of an evaluation set, and how far the probabilities can be believed."""
    figure = plots.calibration(found.bins)
    pictures, texts = [], []
    for one in found.worst:
        caption = (
            f'{one.label}, predicted {one.predicted} ({100 * one.sure:.0f} %; '
            f'{one.label}: {100 * one.of_label:.1f} %)'
        )
        if isinstance(one.shown, str):
            texts.append((one.shown[:_MAX_TEXT], caption))
        else:
            png = base64.b64encode(encode_png(one.shown)).decode()
            pictures.append((png, one.shown.shape[1] <= 300, caption))
    text = (
        f'{found.wrong:,} of {found.examples:,} are wrong at step {found.step:,}'
        f'{f"; the worst {len(found.worst)} follow" if found.worst else ""}. '
        f'Expected calibration error: {100 * found.error:.1f} %.'
    )
    return parts.mistakes(text, pictures, texts, page.svg(figure, prefix)), figure


def _reproduce(item: Run) -> Markup:
    info = item.info
    git, packages = info.get('git', {}), info.get('packages', {})
    changes = ' with local changes' if git.get('dirty') else ''
    facts = [
        ('folder', item.folder),
        ('code', f'{git.get("revision", "")}'[:12] + changes),
        ('packages', ', '.join(f'{name} {version}' for name, version in packages.items())),
        ('Python', info.get('python')),
        ('devices', item.devices()),
        ('started', info.get('started')),
        ('ended', info.get('ended')),
        ('earlier sessions', ', '.join(str(s.get('status')) for s in info.get('history', []))),
    ]
    listed = parts.facts([(name, value) for name, value in facts if value])
    line = info.get('command')
    command = parts.command(line) if line else ''
    return parts.details(item.name, page.joined(command, listed))
