"""Writes the report of the runs or the sweep under some folders: a page, plots, a table of text."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.files import write_bytes
from jaxdl.record.terminal import columns
from jaxdl.report.data import Run, find_runs, flatten, main_metric, shown


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
            value, step = item.best(key) or (None, None)
            metrics[key] = {'final': item.last(key), 'best': value, 'best_step': step}
        about = {key: item.info.get(key) for key in ('reason', 'parameters', 'devices', 'command')}
        found.append(
            about
            | {
                'name': item.name,
                'folder': str(item.folder),
                'status': item.status,
                'step': item.step,
                'steps': item.steps,
                'seed': item.seed,
                'seconds': item.seconds,
                'config': flatten(item.config),
                'metrics': metrics,
            }
        )
    return found


def terminal_table(runs: Sequence[Run]) -> str:
    """The runs as lines of text: name, status, steps, best value of the main metric."""
    key = main_metric(runs)
    rows = [['run', 'status', 'step', f'{key} (best)' if key else '']]
    for item in runs[:40]:
        last, best = item.last(key), item.best(key)
        text = f'{shown(key, last)} ({shown(key, best[0])} at {best[1]})' if best else ''
        rows.append([item.name, item.status, f'{item.step}/{item.steps or "?"}', text])
    if len(runs) > 40:
        rows.append([f'… {len(runs) - 40} more', '', '', ''])
    return '\n'.join(columns(rows))


def write(
    runs: Sequence[Run],
    folders: Sequence[str | os.PathLike],
    output: Path,
    judged: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Writes index.html and the PNG files into `output`; returns the page's path.

    `judged` is that of jaxdl.report.sections.contents.
    """
    # matplotlib takes a second to import: not before the folders are known to hold something.
    import matplotlib

    from jaxdl.report import page as html
    from jaxdl.report import plots
    from jaxdl.report.sections import contents

    # What a user calls his runs and metrics is no formula.
    with matplotlib.rc_context({'text.parse_math': False}):
        sections, figures = contents(runs, folders, judged)
        names = sorted(f'{name}.png' for name in figures)
        places = ', '.join(str(Path(folder)) for folder in folders)
        subtitle = f'{count(len(runs))} · {places} · {time.strftime("%Y-%m-%d %H:%M")}'
        title = runs[0].name if len(runs) == 1 else Path(folders[0]).resolve().name
        text = html.page(title, subtitle, sections, files=names)
        page = output / 'index.html'
        try:
            output.mkdir(parents=True, exist_ok=True)
            for name in set(html.kept_files(page)) - set(names):
                if name == os.path.basename(name) and name.endswith('.png'):
                    (output / name).unlink(missing_ok=True)  # a plot that is no longer part of it
            for name, figure in figures.items():
                plots.save_png(figure, output / f'{name}.png')
            write_bytes(page, text.encode(errors='replace'))
        except OSError as error:
            raise UserError(
                f'{output}: the report cannot be written there: {error.strerror}; '
                'give another folder with --output=DIR'
            ) from None
    return page


def count(runs: int) -> str:
    return f'{runs} run{"" if runs == 1 else "s"}'
