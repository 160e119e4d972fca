"""Plots and one HTML page of the runs or the sweep under some folders.

Reads every run at or below the folders, and writes index.html and one PNG per plot.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from jaxdl.core.flags import CommandLine


def main(argv: Sequence[str]) -> int:
    line = CommandLine(__doc__ or '', words='DIR …', example='runs/a runs/b --output=comparison')
    line.string('output', 'DIR', 'where the page goes; report/ of the first folder unless given')
    given = line.parse(argv)
    from jaxdl.report import data, write

    runs = data.find_runs(given.words)
    output = given.output or os.path.join(given.words[0], 'report')
    page = write.write(runs, given.words, Path(output))
    print(write.terminal_table(runs))
    print(f'report of {len(runs)} run{"s"[: len(runs) != 1]}: {page}')
    return 0
