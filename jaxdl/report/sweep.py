"""The part of a report that is about a sweep: its trials, its curves, what mattered, the best point."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jaxdl.errors import UserError
from jaxdl.record.terminal import duration, number
from jaxdl.report import page, plots
from jaxdl.report import sweep_plots as draw
from jaxdl.report.data import Run, is_share, mismatch, read_object, shown
from jaxdl.report.page import Cell, parts
from jaxdl.report.sweep_plots import Axis, Data
from jaxdl.sweeps import spec

FEWEST = 6  # points from which importance is estimated
MOST_AXES = 8  # hyper-parameters that are drawn
MOST_CURVES = 300

_NUMBER, _COUNT = (float, None), (int, None)
# The kinds of what is used of results.json.
_POINT = {
    'varied': {}, 'trials': [str], 'values': [float], 'mean': _NUMBER, 'deviation': _NUMBER,
}  # fmt: skip
_RESULTS = {
    'metric': str, 'mode': str, 'wall': float, 'joules': _NUMBER,
    'best': ({'varied': {}, 'trials': [str], 'mean': float, 'deviation': _NUMBER, 'command': str}, None),
    'points': [_POINT],
    'trials': [{
        'id': str, 'workdir': str, 'varied': {}, 'seed': _COUNT, 'status': str, 'reason': str,
        'value': _NUMBER, 'value_step': _COUNT, 'step': _COUNT, 'steps': int, 'attempts': int,
        'seconds': _NUMBER, 'joules': _NUMBER,
    }],
}  # fmt: skip


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results.json of the sweep in `folder`; None of another folder or before the first trial.

    Raises:
        UserError: it cannot be read or is damaged.
    """
    path = folder / 'results.json'
    if not path.exists():
        return None
    results = read_object(path)
    if wrong := mismatch(results, _RESULTS):
        raise UserError(f'{path}: {wrong.removeprefix("it.")} is not what a sweep writes')
    return results if results['trials'] else None


def arrange(folder: Path, results: dict[str, Any], runs: Sequence[Run]) -> Data:
    """What is drawn of a sweep's results.json and the runs under it."""
    by_folder = {item.folder.resolve(): item for item in runs}
    trials, metric = results['trials'], results['metric']
    curves = {}
    for trial in trials:
        found = by_folder.get((folder / trial['workdir']).resolve())
        if found is not None:
            curves[trial['id']] = found
    fields = list(dict.fromkeys(field for trial in trials for field in trial['varied']))
    names = [spec.short(field) for field in fields]
    axes = [
        Axis(field, field if names.count(name) > 1 else name, [*trials, *results['points']])
        for field, name in zip(fields, names, strict=True)
    ]
    scale = 100 if is_share(metric) else 1
    done = [
        {**p, 'mean': scale * p['mean'], 'deviation': scale * (p['deviation'] or 0.0)}
        for p in results['points']
        if p['mean'] is not None
    ]
    return Data(
        metric, metric + (' (%)' if scale > 1 else ''), 1 if results['mode'] == 'max' else -1,
        scale, [axis for axis in axes if len(axis.values) > 1], trials, results['points'], done,
        curves,
    )  # fmt: skip


def sections(
    folder: Path, results: dict[str, Any], runs: Sequence[Run], prefix: str
) -> tuple[page.Sections, dict[str, Any]]:
    """(the sections of the page, {name of a PNG file: figure}) of the sweep in `folder`.

    Args:
        folder: the sweep's.
        results: its results.json.
        runs: the runs of the report; those of the sweep are found among them.
        prefix: begins the ids on the page.
    """
    data = arrange(folder, results, runs)
    found: page.Sections = [
        ('Sweep', page.joined(_cards(results), _best(results), _points(data))),
        ('Trials', _trials(data)),
    ]
    figures: dict[str, Any] = {}
    axes = data.axes[:MOST_AXES]

    def add(title: str, note: str, made: dict[str, Any]) -> None:
        if made:
            figures.update({f'sweep_{name}': figure for name, figure in made.items()})
            drawn = [(name, page.svg(figure, f'{prefix}-{name}')) for name, figure in made.items()]
            found.append((title, parts.sweep_plots(note, drawn)))

    def each(make: Callable[[Axis], Any], name: str) -> dict[str, Any]:
        return {f'{name}_{axis.safe}': make(axis) for axis in axes}

    curves = [trial for trial in data.trials if trial['id'] in data.curves][:MOST_CURVES]
    add(
        'Learning curves',
        f'{data.label} of every trial, coloured by each hyper-parameter in turn.',
        each(lambda axis: draw.curves(data, curves, axis), 'curves'),
    )
    if axes and len(data.done) > 1:
        add(
            'Parallel coordinates',
            f'A line is a point of the sweep, coloured by {data.label} (mean over seeds).',
            {'parallel': draw.parallel(data, axes)},
        )
        add(
            'Each hyper-parameter',
            'Dots: points with one standard deviation over their seeds. '
            'Line: the best point at each value.',
            each(lambda axis: draw.against(data, axis), 'against'),
        )
    shares = importance(data)
    if shares:
        add(
            'Importance',
            f'Share of the variance of {data.metric} that a hyper-parameter explains (fANOVA over '
            f'{len(data.done)} points). It says nothing about values that were not tried.',
            {'importance': plots.bars(shares)},
        )
    elif axes:
        note = f'Importance is estimated from {FEWEST} points on; {len(data.done)} have a value.'
        found.append(('Importance', parts.note(note)))
    return found, figures


def importance(data: Data) -> list[tuple[str, float]]:
    """[(hyper-parameter, share of the variance of the metric)], the largest first; [] of few points.

    By Optuna's functional ANOVA over a random forest (Hutter et al., 2014).
    """
    values = {axis.field: [axis.value(point) for point in data.done] for axis in data.axes}
    axes = [axis for axis in data.axes if len(set(values[axis.field])) > 1]
    if len(data.done) < FEWEST or len({p['mean'] for p in data.done}) < 2 or not axes:
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
            kind = optuna.distributions.CategoricalDistribution
            kinds[axis.field] = kind(tuple(dict.fromkeys(tried)))
    study = optuna.create_study()
    for index, point in enumerate(data.done):
        params = {axis.field: values[axis.field][index] for axis in axes}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=kinds, value=point['mean'])
        )
    judge = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=judge)
    names = {axis.field: axis.name for axis in axes}
    return [(names[field], share) for field, share in found.items()]


# ---- tables -------------------------------------------------------------------------------------


def _cards(results: dict[str, Any]) -> Markup:
    statuses = [trial['status'] for trial in results['trials']]
    finished = statuses.count('finished')
    others = ', '.join(
        f'{statuses.count(name)} {name.replace("_", " ")}'
        for name in dict.fromkeys(statuses)
        if name != 'finished'
    )
    values = [('finished', f'{finished} / {len(statuses)}', others or 'all trials')]
    best, metric = results['best'], results['metric']
    if best:
        spread = f'± {shown(metric, best["deviation"])} over {len(best["trials"])} seeds'
        remark = spread if best['deviation'] else ''
        values.append((f'best {metric}', shown(metric, best['mean']), remark))
    values.append(('time', duration(results['wall']), 'of all processes together'))
    if results['joules'] is not None:
        values.append(('energy', f'{number(results["joules"] / 1000)} kJ', 'where measured'))
    return parts.cards(values)


def _best(results: dict[str, Any]) -> Markup:
    best = results['best']
    if not best:
        return parts.note('No trial has finished yet.')
    values = ', '.join(f'{k} = {spec.shown(k, v)}' for k, v in best['varied'].items())
    label = f'Best: {values or "the base config"} (trials {", ".join(best["trials"])})'
    return page.joined(parts.heading(label), parts.command(best['command']))


def _points(data: Data) -> Markup:
    """The points, the best first, with the spread over seeds; only where there are several seeds."""
    if all(len(point['trials']) == 1 for point in data.points):
        return Markup('')
    head = ['rank', *(axis.name for axis in data.axes), data.metric, '± over seeds', 'seeds']
    rows = [
        [
            rank,
            *(_parameter(axis, point) for axis in data.axes),
            _metric(data, point['mean']),
            _metric(data, point['deviation']),
            Cell(f'{len(point["values"])} / {len(point["trials"])}', len(point['values'])),
        ]
        for rank, point in enumerate(data.points, 1)
    ]
    return page.joined(parts.heading('Points, the best first'), page.table(head, rows))


def _trials(data: Data) -> Markup:
    seeds = any(trial['seed'] is not None for trial in data.trials)
    energy = any(trial['joules'] is not None for trial in data.trials)
    head = ['trial', *(axis.name for axis in data.axes), *(['seed'] if seeds else [])]
    head += ['status', data.metric, 'at step', 'steps', 'seconds', *(['joules'] if energy else [])]
    head.append('attempts')
    values = [trial['value'] for trial in data.trials if trial['value'] is not None]
    top = max(values, key=lambda value: data.sign * value, default=None)
    rows = []
    for trial in data.trials:
        status, value, step = trial['status'], trial['value'], trial['step'] or 0
        rows.append([
            trial['id'],
            *(_parameter(axis, trial) for axis in data.axes),
            *([trial['seed']] if seeds else []),
            Cell(status.replace('_', ' '), status, title=trial['reason'], look=f'status {status}'),
            _metric(data, value, look='good' if value is not None and value == top else ''),
            trial['value_step'],
            Cell(f'{step:,} / {trial["steps"]:,}', step),
            *(
                Cell('–' if trial[name] is None else f'{trial[name]:,.1f}', trial[name])
                for name in ('seconds', *(['joules'] if energy else []))
            ),
            trial['attempts'],
        ])  # fmt: skip
    return page.table(head, rows, tie='trial', ties=[trial['id'] for trial in data.trials])


def _metric(data: Data, value: float | None, look: str = '') -> Cell:
    return Cell(shown(data.metric, value) or '–', value, look=look)


def _parameter(axis: Axis, item: dict[str, Any]) -> Cell:
    value = axis.value(item)
    return Cell(spec.text(value), value)
