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
from jaxdl.run import runtime, signals

MOST = 6  # runs whose mistakes are shown


def main(argv: Sequence[str]) -> int:
    line = CommandLine(__doc__ or '', words='DIR …', example='runs/a runs/b --output=comparison')
    line.string('output', 'DIR', 'where the page goes; report/ of the first folder unless given')
    line.boolean('mistakes', 'the worst examples of classifiers, and their calibration')
    line.boolean('serve', 'show it at http://127.0.0.1:PORT, made anew while the runs go on')
    line.integer('port', 'the port of --serve; 0: a free one', default=8008)
    given = line.parse(argv)
    if given.mistakes:
        runtime.prepare_process()
        runtime.open_devices()
    from jaxdl.report import data, write

    runs = data.find_runs(given.words)
    output = given.output or os.path.join(given.words[0], 'report')
    judged = _judged(runs) if given.mistakes else {}
    if given.serve:
        return _serve(given.words, Path(output), judged, given.port)
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


def _serve(folders: Sequence[str], output: Path, judged: dict, port: int) -> int:
    """Serves the report until Ctrl-C or TERM."""
    from jaxdl.report import data, write
    from jaxdl.report.serve import server

    def make() -> None:
        write.write(data.find_runs(folders), folders, output, judged)

    with server(output, make, port) as serving:
        print(f'http://127.0.0.1:{serving.server_address[1]}/ (Ctrl-C ends it)', flush=True)
        signals.command_is_over(0)  # a signal is how it ends
        serving.serve_forever()
    return 0
