"""The part of a report that is about a sweep: its trials, its curves, what mattered, the best point."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdl.record.terminal import duration, number
from jaxdl.report import page as html
from jaxdl.report import sweep_plots as plots
from jaxdl.report.data import Run
from jaxdl.report.plots import to_svg
from jaxdl.report.sweep_plots import Data, axis_value
from jaxdl.sweeps.spec import short, shown, text

FEWEST = 6  # points from which importance is estimated
MOST_AXES = 8  # hyper-parameters that are drawn
MOST_CURVES = 300


def arrange(folder: Path, results: dict[str, Any], runs: Sequence[Run]) -> Data:
    """What is drawn of a sweep's results.json and the runs under it."""
    by_folder = {item.folder.resolve(): item for item in runs}
    trials = results['trials']
    curves = {}
    for trial in trials:
        found = by_folder.get((folder / trial['workdir']).resolve())
        if found is not None:
            curves[trial['id']] = found
    fields = list(dict.fromkeys(field for trial in trials for field in trial['varied']))
    names = [short(field) for field in fields]
    axes = []
    for field, name in zip(fields, names, strict=True):
        values = [axis_value(field, trial) for trial in trials]
        if len(set(values)) > 1:
            axes.append(plots.axis(field, field if names.count(name) > 1 else name, values))
    sign = 1 if results['mode'] == 'max' else -1
    return Data(results['metric'], sign, axes, trials, results['points'], curves)


def sections(
    folder: Path, results: dict[str, Any], runs: Sequence[Run]
) -> tuple[list[html.Section], dict[str, Any]]:
    """(the sections of the page, {name of a PNG file: figure}) of the sweep in `folder`.

    Args:
        folder: the sweep's.
        results: its results.json.
        runs: the runs of the report; those of the sweep are found among them.
    """
    data = arrange(folder, results, runs)
    found = [html.Section('Sweep', _cards(results) + _best(results) + _points(data))]
    found.append(html.Section('Trials', _trials(data)))
    figures: dict[str, Any] = {}
    drawn = data.axes[:MOST_AXES]

    def add(title: str, note: str, made: dict[str, Any]) -> None:
        if not made:
            return
        figures.update({f'sweep_{name}': figure for name, figure in made.items()})
        prefix = folder.resolve().name  # ids must differ from those of another sweep's plots
        body = f'<p class="note">{html.escape(note)}</p>' + ''.join(
            f'<figure class="sweep{" wide" * (name == "parallel")}">{to_svg(figure, f"{prefix}-{name}")}</figure>'
            for name, figure in made.items()
        )
        found.append(html.Section(title, f'<div class="sweeps">{body}</div>'))

    curves = [t for t in data.trials if t['id'] in data.curves][:MOST_CURVES]
    add(
        'Learning curves',
        f'{data.metric} of every trial, coloured by each hyper-parameter in turn.',
        {f'curves_{axis.safe}': plots.curves(data, curves, axis) for axis in drawn},
    )
    done = [p for p in data.points if p['mean'] is not None]
    if drawn and len(done) > 1:
        add(
            'Parallel coordinates',
            f'A line is a point of the sweep, coloured by {data.metric} (mean over seeds).',
            {'parallel': plots.parallel(data, done, drawn)},
        )
        add(
            'Each hyper-parameter',
            'Dots: points with one standard deviation over their seeds. Line: the best point at each value.',
            {f'against_{axis.safe}': plots.against(data, done, axis) for axis in drawn},
        )
    shares = importance(data)
    if shares:
        add(
            'Importance',
            f'Share of the variance of {data.metric} that a hyper-parameter explains (fANOVA over '
            f'{len(done)} points). It says nothing about values that were not tried.',
            {'importance': plots.bars(shares)},
        )
    elif drawn:
        note = f'Importance is estimated from {FEWEST} points on; {len(done)} have a value.'
        found.append(html.Section('Importance', f'<p class="note">{note}</p>'))
    return found, figures


def importance(data: Data) -> list[tuple[str, float]]:
    """[(hyper-parameter, share of the variance of the metric)], the largest first; [] of few points.

    By Optuna's functional ANOVA over a random forest (Hutter et al., 2014).
    """
    done = [p for p in data.points if p['mean'] is not None]
    if len(done) < FEWEST or not data.axes:
        return []
    values = {axis.field: [data.value(p, axis) for p in done] for axis in data.axes}
    axes = [axis for axis in data.axes if len(set(values[axis.field])) > 1]
    if len({p['mean'] for p in done}) < 2 or not axes:
        return []
    if len(axes) == 1:
        return [(axes[0].name, 1.0)]
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds: dict[str, Any] = {}
    for axis in axes:
        tried = values[axis.field]
        if axis.numeric:
            kind = optuna.distributions.FloatDistribution
            kinds[axis.field] = kind(float(min(tried)), float(max(tried)), log=axis.log)
        else:
            choices = tuple(dict.fromkeys(map(str, tried)))
            kinds[axis.field] = optuna.distributions.CategoricalDistribution(choices)
    study = optuna.create_study()
    for index, point in enumerate(done):
        params = {
            axis.field: (float if axis.numeric else str)(values[axis.field][index]) for axis in axes
        }
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=kinds, value=point['mean'])
        )
    judge = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=judge)
    names = {axis.field: axis.name for axis in axes}
    return [(names[field], share) for field, share in found.items()]


# ---- tables -------------------------------------------------------------------------------------


def _cards(results: dict[str, Any]) -> str:
    counts, best = results['counts'], results['best']
    total = sum(counts.values())
    others = ', '.join(f'{n} {k.replace("_", " ")}' for k, n in counts.items() if k != 'finished')
    values = [('finished', f'{counts.get("finished", 0)} / {total}', others or 'all trials')]
    if best:
        seeds = len(best['trials'])
        remark = f'± {number(best["deviation"])} over {seeds} seeds' if best['deviation'] else ''
        values.append((f'best {results["metric"]}', number(best['mean']), remark))
    values.append(('time', duration(results['wall']), 'of all processes together'))
    if results['joules'] is not None:
        values.append(('energy', f'{number(results["joules"] / 1000)} kJ', 'where measured'))
    return html.cards(values)


def _best(results: dict[str, Any]) -> str:
    best = results['best']
    if not best:
        return '<p class="note">No trial has finished yet.</p>'
    label = (
        ', '.join(f'{k} = {shown(k, v)}' for k, v in best['varied'].items()) or 'the base config'
    )
    return (
        f'<h3>Best: {html.escape(label)} (trials {html.escape(", ".join(best["trials"]))})</h3>'
        + html.command(best['command'])
    )


def _points(data: Data) -> str:
    """The points, the best first, with the spread over seeds; only where there are several seeds."""
    if all(len(p['trials']) == 1 for p in data.points):
        return ''
    head = ['rank', *(axis.name for axis in data.axes), data.metric, '± over seeds', 'seeds']
    rows = []
    for rank, point in enumerate(data.points, 1):
        mean, deviation = point['mean'], point['deviation']
        row: list[Any] = [html.Cell(str(rank), rank)]
        row += [_parameter(data.value(point, axis)) for axis in data.axes]
        row.append(html.Cell(number(mean) if mean is not None else '–', mean))
        row.append(html.Cell(number(deviation) if deviation is not None else '–', deviation))
        row.append(
            html.Cell(f'{len(point["values"])} / {len(point["trials"])}', len(point['values']))
        )
        rows.append(row)
    return '<h3>Points, the best first</h3>' + html.table(head, rows)


def _trials(data: Data) -> str:
    seeds = any(trial['seed'] is not None for trial in data.trials)
    energy = any(trial['joules'] is not None for trial in data.trials)
    head = ['trial', *(axis.name for axis in data.axes), *(['seed'] if seeds else [])]
    head += ['status', data.metric, 'at step', 'steps', 'seconds', *(['joules'] if energy else [])]
    head.append('attempts')
    values = [t['value'] for t in data.trials if t['value'] is not None]
    top = max(values, key=lambda v: data.sign * v) if values else math.nan
    rows = []
    for trial in data.trials:
        row: list[Any] = [html.Cell(trial['id'], trial['id'])]
        row += [_parameter(data.value(trial, axis)) for axis in data.axes]
        if seeds:
            row.append(trial['seed'])
        status = html.escape(trial['status'])
        row.append(
            html.Cell(
                f'<span class="status {status}">{status.replace("_", " ")}</span>',
                trial['status'],
                markup=True,
                title=trial['reason'],
            )
        )
        value = trial['value']
        shown = number(value) if value is not None else '–'
        if value == top:
            shown = f'<span class="good">{shown}</span>'
        row.append(html.Cell(shown, value, markup=True))
        row.append(trial['value_step'])
        row.append(html.Cell(f'{trial["step"] or 0:,} / {trial["steps"]:,}', trial['step'] or 0))
        for name in ('seconds', *(['joules'] if energy else [])):
            amount = trial[name]
            row.append(html.Cell(f'{amount:,.1f}' if amount is not None else '–', amount))
        row.append(trial['attempts'])
        rows.append(row)
    return html.table(head, rows, trials=[trial['id'] for trial in data.trials])


def _parameter(value: Any) -> Any:
    if isinstance(value, str):
        return html.Cell(value, value)
    return html.Cell(text(value), value)
