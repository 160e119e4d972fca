"""All runs at or below folders: status, step, what differs, best value, energy.

'What differs' are the fields of the configs that are not the same in all of them.
"""

import json
from collections.abc import Sequence

from jaxdl.core.flags import CommandLine


def main(argv: Sequence[str]) -> None:
    line = CommandLine(__doc__ or '', words='DIR …', example='runs')
    line.string('metric', 'NAME', 'the metric to show and sort by; the main one unless given')
    line.boolean('json', 'print one JSON object a run')
    given = line.parse(argv)
    from jaxdl.errors import UserError, nearest
    from jaxdl.record.terminal import columns, number
    from jaxdl.report import data

    runs = data.find_runs(given.words)
    known = list(dict.fromkeys(key for run in runs for key in run.keys()))
    key = given.metric or data.main_metric(runs)
    if key and key not in known:
        evaluated = [name for name in known if name.startswith('eval/')]
        raise UserError(
            f'--metric={key}: no run has it{nearest(key, known)}; the evaluations have '
            f'{", ".join(evaluated) or "none"}'
        )
    differing = data.differing(runs)
    found = []
    for index, run in enumerate(runs):
        best = run.best(key)
        joules = [run.last(f'energy/{part}_joules') for part in ('gpu', 'cpu')]
        measured = [value for value in joules if value is not None]
        found.append(
            {
                'run': run.name,
                'status': run.status,
                'step': run.step,
                'steps': run.steps,
                'best': best and best[0],
                'best_step': best and best[1],
                'joules': sum(measured) if measured else None,
                'differs': {path: values[index] for path, values in differing.items()},
            }
        )
    # The best first; a run without a value comes last.
    sign = 1 if key and runs[0].better(key) == 'min' else -1
    found.sort(key=lambda row: (row['best'] is None, sign * (row['best'] or 0)))
    if given.json:
        for row in found:
            print(json.dumps({**row, 'metric': key}))
        return
    head = ['run', 'status', 'step', f'best {key}'.rstrip(), 'at', 'joules', *differing]
    rows = [head]
    for row in found:
        rows.append(
            [
                row['run'],
                row['status'],
                f'{row["step"]}/{row["steps"] or "?"}',
                data.shown(key, row['best']),
                str(row['best_step'] or ''),
                number(row['joules']),
                *(_short(value) for value in row['differs'].values()),
            ]
        )
    # A column that is empty everywhere, such as joules without a sensor, is left out.
    kept = [i for i in range(len(head)) if any(row[i] for row in rows[1:])]
    print('\n'.join(columns([[row[i] for i in kept] for row in rows])))


def _short(value) -> str:
    text = '' if value is None else str(value)
    return text if len(text) <= 30 else text[:29] + '…'
