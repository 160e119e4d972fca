"""Plots and one HTML page of the runs or the sweep under some folders.

Reads every run at or below the folders, and writes index.html and one PNG per plot. With --mistakes
it also opens the checkpoints and evaluation sets of the classifiers and shows what they got wrong.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from jaxdl.core.flags import CommandLine
from jaxdl.errors import UserError
from jaxdl.record.terminal import warn
from jaxdl.run import runtime

MOST = 6  # runs whose mistakes are shown


def main(argv: Sequence[str]) -> int:
    line = CommandLine(__doc__ or '', words='DIR …', example='runs/a runs/b --output=comparison')
    line.string('output', 'DIR', 'where the page goes; report/ of the first folder unless given')
    line.boolean('mistakes', 'the worst examples of classifiers, and their calibration')
    given = line.parse(argv)
    if given.mistakes:
        runtime.prepare_process()
        runtime.open_devices()
    from jaxdl.report import data, write

    runs = data.find_runs(given.words)
    output = given.output or os.path.join(given.words[0], 'report')
    judged = _judged(runs) if given.mistakes else {}
    page = write.write(runs, given.words, Path(output), judged)
    print(write.terminal_table(runs))
    print(f'report of {len(runs)} run{"s"[: len(runs) != 1]}: {page}')
    return 0


def _judged(runs: Sequence) -> dict:
    """{name of a run: what it got wrong}; a run that cannot be opened is left out with a warning."""
    from jaxdl.predict import mistakes

    found = {}
    for run in runs[:MOST]:
        try:
            found[run.name] = mistakes.judge(str(run.folder))
        except UserError as error:
            warn(f'{run.name}: its mistakes are not shown: {error}')
    return found
