"""Plots and one HTML page of the runs or the sweep under some folders.

Reads metrics.jsonl, config.json, run.json and the TensorBoard files of every run at or below the
folders; writes index.html and one PNG a plot into the first folder's report/ unless told otherwise.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.record.tensorboard import read_events
from jaxdl.record.terminal import duration, number
from jaxdl.report.data import Group, Run, differing, find_runs, flatten, group_by_seed

# Seven colours in six kinds of dashes.
_MAX_CURVES = 42
# A page holds the pictures of so many runs, and so much of one picture or text.
_SAMPLE_RUNS, _SAMPLES, _MAX_PNG, _MAX_TEXT = 6, 12, 3_000_000, 4000


def summary(folders: Sequence[str | os.PathLike]) -> list[dict[str, Any]]:
    """What came out of every run under `folders`, as plain values.

    One dict a run: name, folder, status, reason, step, steps, seed, parameters, devices, seconds,
    command, config ({field: value}), metrics ({name: {final, best, best_step}}). Raises UserError
    as `find_runs` does.
    """
    found = []
    for item in find_runs(folders):
        metrics = {}
        for key in item.keys():
            best = item.best(key)
            value, step = best if best else (None, None)
            metrics[key] = {'final': item.last(key), 'best': value, 'best_step': step}
        found.append(
            {
                'name': item.name,
                'folder': str(item.folder),
                'status': item.status,
                'reason': item.info.get('reason', ''),
                'step': item.step,
                'steps': item.steps,
                'seed': item.seed,
                'parameters': item.info.get('parameters'),
                'devices': item.info.get('devices'),
                'seconds': item.seconds,
                'command': item.info.get('command'),
                'config': flatten(item.config),
                'metrics': metrics,
            }
        )
    return found


def terminal_table(runs: Sequence[Run]) -> str:
    """The runs as lines of text: name, status, steps, best value of the main metric."""
    key = main_metric(runs)
    rows = [('run', 'status', 'step', f'{key} (best)' if key else '')]
    for item in runs[:40]:
        best = item.best(key) if key else None
        last = item.last(key) if key else None
        text = f'{number(last)} ({number(best[0])} at {best[1]})' if best else ''
        rows.append((item.name, item.status, f'{item.step}/{item.steps or "?"}', text))
    if len(runs) > 40:
        rows.append((f'… {len(runs) - 40} more', '', '', ''))
    widths = [max(len(row[c]) for row in rows) for c in range(3)]
    return '\n'.join(
        '  '.join([*(t.ljust(w) for t, w in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    )


def main_metric(runs: Sequence[Run]) -> str:
    """The metric that says most: the one checkpoints are kept by, else an accuracy, else a loss."""
    keys = list(dict.fromkeys(key for item in runs for key in item.evaluations()))
    for item in runs:
        checkpoint = item.config.get('checkpoint')
        best = checkpoint.get('best') if isinstance(checkpoint, dict) else None
        if best in keys:
            return best
    for wanted in ('accuracy', 'bleu', 'return', 'f1', 'loss'):
        for key in keys:
            if key.rpartition('/')[2] == wanted:
                return key
    return keys[0] if keys else ''


# ---- the page -----------------------------------------------------------------------------------


def write(runs: Sequence[Run], folders: Sequence[str | os.PathLike], output: Path) -> Path:
    """Writes index.html and the PNG files into `output`; returns the page's path."""
    # matplotlib takes a second to import: not before the folders are known to hold something.
    from jaxdl.report import page as report_page
    from jaxdl.report import plots as report_plots

    page = output / 'index.html'
    groups = group_by_seed(runs)
    shown = _shown(groups)
    panels = report_plots.panels(shown)
    shares = [(item.name, times) for item in runs if (times := _times(item))][:40]
    sweep, figures = _sweep_sections(folders, runs)
    sections = [
        *sweep,
        report_page.Section('Runs' if len(runs) > 1 else 'Run', _runs_body(runs, groups, shown)),
    ]
    differences = differing(runs)
    if differences:
        sections.append(report_page.Section('Differences', _differences(runs, differences)))
    titles = list(dict.fromkeys(panel.section for panel in panels))
    for index, title in enumerate(titles):
        chosen = [panel for panel in panels if panel.section == title]
        body = ''
        if index == 0 and len(shown) > 1:
            if len(shown) < len(groups):
                body = f'<p class="note">The {len(shown)} best of {len(groups)} are drawn.</p>'
            body += report_page.legend([group.name for group in shown])
        body += report_page.curves(chosen, f'p{index}-')
        sections.append(report_page.Section(title, body))
    figures |= {panel.name: report_plots.draw(panel, legend=True) for panel in panels}
    if len(panels) > 1:
        figures['overview'] = report_plots.overview(panels)
    if shares:
        figures['wall_time'] = report_plots.time_figure(shares)
        svg = report_plots.to_svg(figures['wall_time'], 'time')
        sections.append(report_page.Section('Time', f'<div class="bars">{svg}</div>'))
    samples = _samples(runs)
    if samples:
        sections.append(report_page.Section('Samples', samples))
    sections.append(report_page.Section('Reproduce', ''.join(map(_reproduce, runs))))
    names = sorted({f'{name}.png' for name in figures})
    places = ', '.join(str(Path(folder)) for folder in folders)
    subtitle = f'{_count(len(runs), "run")} · {places} · {time.strftime("%Y-%m-%d %H:%M")}'
    title = runs[0].name if len(runs) == 1 else Path(folders[0]).resolve().name
    text = report_page.page(title, subtitle, sections, meta='|'.join(names))
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in set(report_page.kept_files(page)) - set(names):
            if name == os.path.basename(name) and name.endswith('.png'):
                (output / name).unlink(missing_ok=True)  # a plot that is no longer part of it
        for name, figure in figures.items():
            report_plots.save_png(figure, output / f'{name}.png')
        page.write_text(text, encoding='utf-8')
    except OSError as error:
        raise UserError(
            f'{output}: the report cannot be written there: {error.strerror}; '
            'give another folder with --output=DIR'
        ) from None
    return page


def _shown(groups: Sequence[Group]) -> list[Group]:
    """The groups that get curves: all, or as many of the best as can be told apart."""
    key = main_metric([item for group in groups for item in group.runs])
    if len(groups) <= _MAX_CURVES or not key:
        return list(groups[:_MAX_CURVES])
    sign = 1 if groups[0].runs[0].better(key) == 'min' else -1

    def place(group: Group) -> float:
        best = group.best(key)
        return sign * best[0] if best else math.inf

    best = {id(group) for group in sorted(groups, key=place)[:_MAX_CURVES]}
    return [group for group in groups if id(group) in best]


def _sweep_sections(
    folders: Sequence[str | os.PathLike], runs: Sequence[Run]
) -> tuple[list, dict[str, Any]]:
    """The sections and figures of jaxdl.report.sweep for each folder that holds a sweep."""
    sections: list = []
    figures: dict[str, Any] = {}
    for folder in folders:
        path = Path(folder) / 'results.json'
        try:
            results = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise UserError(f'{path}: cannot be read: {error}') from None
        if isinstance(results, dict) and results.get('trials'):
            from jaxdl.report import sweep as report_sweep

            of = f' of {Path(folder).resolve().name}' if sections else ''
            found, drawn = report_sweep.sections(Path(folder), results, runs)
            for section in found:
                section.title += of
            sections += found
            figures |= {f'{name}{"_" * bool(of)}': figure for name, figure in drawn.items()}
    return sections, figures


def _runs_body(runs: Sequence[Run], groups: Sequence[Group], shown: Sequence[Group]) -> str:
    from jaxdl.report import page as html

    if len(runs) == 1:
        return _cards(runs[0]) + _metrics(runs[0])
    body = ''
    metrics = list(dict.fromkeys(key for item in runs for key in item.evaluations()))
    main = main_metric(runs)
    metrics.sort(key=lambda key: key != main)
    metrics = metrics[:8] or ['train/loss']
    style = {id(item): i for i, group in enumerate(shown) for item in group.runs}

    def named(name: str, item: Run) -> html.Cell:
        swatch = html.swatch(style[id(item)]) if id(item) in style else ''
        return html.Cell(swatch + html.escape(name), name, markup=True)

    if any(len(group.runs) > 1 for group in groups):
        rows = []
        for group in groups:
            row: list[Any] = [named(group.name, group.runs[0])]
            row.append(html.Cell(str(len(group.runs)), len(group.runs)))
            for key in metrics:
                row += [_spread(group.final(key)), _spread(group.best(key))]
            rows.append(row)
        head = ['runs that differ in their seed', 'seeds', *_final_best(metrics)]
        styles = [style.get(id(group.runs[0])) for group in groups]
        body += '<h3>Mean ± standard deviation over seeds</h3>'
        body += html.table(head, rows, styles=styles) + '<h3>Every run</h3>'
    tops = {key: _top(runs, key) for key in metrics}
    rows = []
    for item in runs:
        status = item.status
        row = [
            named(item.name, item),
            html.Cell(
                f'<span class="status {html.escape(status)}">{html.escape(status)}</span>',
                status,
                markup=True,
                title=str(item.info.get('reason') or ''),
            ),
            html.Cell(f'{item.step:,} / {_steps(item)}', item.step),
        ]
        for key in metrics:
            last, best = item.last(key), item.best(key)
            row.append(html.Cell(number(last) or '–', last))
            text = number(best[0]) if best else '–'
            if best and best[0] == tops[key]:
                text = f'<span class="good">{text}</span>'
            title = f'at step {best[1]:,}' if best else ''
            row.append(html.Cell(text, best[0] if best else None, markup=True, title=title))
        parameters = item.info.get('parameters')
        known = isinstance(parameters, int)
        row += [
            html.Cell(f'{parameters:,}' if known else '–', parameters if known else None),
            html.Cell(duration(item.seconds) if item.seconds is not None else '–', item.seconds),
            html.Cell(_rate(item) or '–', item.last('perf/examples_per_s')),
            item.devices() or None,
        ]
        rows.append(row)
    head = ['run', 'status', 'steps', *_final_best(metrics)]
    head += ['parameters', 'time', 'examples/s', 'devices']
    return body + html.table(head, rows, styles=[style.get(id(item)) for item in runs])


def _steps(item: Run) -> str:
    return f'{item.steps:,}' if item.steps else '?'


def _final_best(metrics: Sequence[str]) -> list[str]:
    return [text for key in metrics for text in (key.removeprefix('eval/'), 'best')]


def _top(runs: Sequence[Run], key: str) -> float | None:
    values = [best[0] for item in runs if (best := item.best(key))]
    if not values:
        return None
    return min(values) if runs[0].better(key) == 'min' else max(values)


def _spread(value: tuple[float, float, int] | None) -> Any:
    from jaxdl.report.page import Cell

    if value is None:
        return None
    mean, deviation, count = value
    text = number(mean)
    if not math.isnan(deviation):
        # As many decimals as the mean has, or the two cannot be compared at a glance.
        decimals = len(text.partition('.')[2]) if 'e' not in text else None
        text += f' ± {number(deviation) if decimals is None else f"{deviation:,.{decimals}f}"}'
    return Cell(text, mean, title=f'{count} runs')


def _rate(item: Run) -> str:
    """The median of examples per second, which a slow interval does not move."""
    values = sorted(item.series('perf/examples_per_s')[1])
    return number(values[len(values) // 2]) if values else ''


def _cards(item: Run) -> str:
    from jaxdl.report.page import cards

    values = [('status', item.status, str(item.info.get('reason') or ''))]
    values.append(('steps', f'{item.step:,}', f'of {item.steps:,}' if item.steps else ''))
    for key in sorted(item.evaluations(), key=lambda k: k != main_metric([item]))[:4]:
        last, best = item.last(key), item.best(key)
        remark = f'best {number(best[0])} at step {best[1]:,}' if best else ''
        values.append((key.removeprefix('eval/').replace('_', ' '), number(last), remark))
    parameters = item.info.get('parameters')
    if isinstance(parameters, int):
        values.append(('parameters', f'{parameters:,}', ''))
    if item.seconds is not None:
        values.append(('time', duration(item.seconds), item.devices()))
    if _rate(item):
        values.append(('examples/s', _rate(item), 'median'))
    mfu = item.series('perf/mfu')[1]
    if len(mfu):
        remark = 'model FLOPs utilisation, median'
        values.append(('MFU', f'{100 * sorted(mfu)[len(mfu) // 2]:.0f} %', remark))
    joules = {part: item.last(f'energy/{part}_joules') for part in ('gpu', 'cpu')}
    parts = [part.upper() for part, value in joules.items() if value is not None]
    if parts:
        total = sum(value for value in joules.values() if value is not None)
        values.append(('energy', f'{number(total / 1000)} kJ', f'measured: {", ".join(parts)}'))
    elif item.info.get('energy'):
        values.append(('energy', 'unavailable', str(item.info['energy'])))
    return cards(values)


def _metrics(item: Run) -> str:
    """Every metric of one run, unfolded at a click."""
    from jaxdl.report.page import Cell, table

    rows = []
    for key in item.keys():
        if key.startswith('perf/time_'):
            continue
        last, best = item.last(key), item.best(key)
        rows.append(
            [
                key,
                Cell(number(last), last),
                Cell(number(best[0]), best[0]) if best else None,
                Cell(f'{best[1]:,}', best[1]) if best else None,
            ]
        )
    return '<details><summary>all metrics</summary>' + (
        table(['metric', 'last', 'best', 'at step'], rows) + '</details>'
    )


def _differences(runs: Sequence[Run], found: dict[str, list[Any]]) -> str:
    from jaxdl.report.page import Cell, table

    head = ['run', *found]
    rows = []
    for index, item in enumerate(runs):
        row: list[Any] = [item.name]
        for values in found.values():
            value = values[index]
            row.append(None if value is None else Cell(str(value), value))
        rows.append(row)
    return table(head, rows)


def _times(item: Run) -> dict[str, float]:
    """{activity: seconds} of the newest row with an account of the time, or {}."""
    for row in reversed(item.rows):
        found = {
            key.removeprefix('perf/time_').removesuffix('_s').replace('_', ' '): float(value)
            for key, value in row.items()
            if key.startswith('perf/time_') and isinstance(value, int | float) and value > 0
        }
        if found:
            return found
    return {}


def _samples(runs: Sequence[Run]) -> str:
    """The newest picture and text of every tag in the runs' TensorBoard files."""
    from jaxdl.report import page as report_page

    parts = []
    for item in runs[:_SAMPLE_RUNS]:
        pictures: dict[str, tuple[int, bytes]] = {}
        texts: dict[str, tuple[int, str]] = {}
        try:
            for event in read_events(item.folder / 'tensorboard'):
                for value in event.values:
                    if value.png and len(value.png) <= _MAX_PNG:
                        pictures[value.tag] = event.step, value.png
                    elif value.text is not None:
                        texts[value.tag] = event.step, value.text[:_MAX_TEXT]
        except OSError:
            continue  # pictures are an extra; the metrics are there
        if not pictures and not texts:
            continue
        if len(runs) > 1:
            parts.append(f'<h3>{report_page.escape(item.name)}</h3>')
        parts.append('<div class="pictures">')
        for tag, (step, png) in list(pictures.items())[:_SAMPLES]:
            parts.append(report_page.picture(png, f'{tag}, step {step:,}'))
        parts.append('</div>')
        for tag, (step, text) in list(texts.items())[:_SAMPLES]:
            caption = report_page.escape(f'{tag}, step {step:,}')
            parts.append(f'<h3>{caption}</h3><pre>{report_page.escape(text)}</pre>')
    return ''.join(parts)


def _reproduce(item: Run) -> str:
    from jaxdl.report import page as report_page

    info = item.info
    git, packages = _object(info, 'git'), _object(info, 'packages')
    revision = str(git.get('revision', ''))[:12] + (
        ' with local changes' if git.get('dirty') else ''
    )
    facts = [
        ('folder', str(item.folder)),
        ('code', revision.strip()),
        ('packages', ', '.join(f'{name} {version}' for name, version in packages.items())),
        ('Python', info.get('python')),
        ('devices', item.devices()),
        ('started', info.get('started')),
        ('ended', info.get('ended')),
        ('earlier sessions', ', '.join(str(s.get('status')) for s in info.get('history') or [])),
    ]
    listed = ''.join(
        f'<dt>{report_page.escape(name)}</dt><dd>{report_page.escape(value)}</dd>'
        for name, value in facts
        if value
    )
    line = info.get('command')
    command = report_page.command(str(line)) if line else ''
    return (
        f'<details><summary>{report_page.escape(item.name)}</summary>{command}'
        f'<dl>{listed}</dl></details>'
    )


def _object(info: dict[str, Any], name: str) -> dict[str, Any]:
    value = info.get(name)
    return value if isinstance(value, dict) else {}


def _count(number_of: int, word: str) -> str:
    return f'{number_of} {word}{"" if number_of == 1 else "s"}'
