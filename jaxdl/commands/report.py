"""Plots and one HTML page of runs or a sweep: python -m jaxdl report DIR [DIR …] [--output=DIR]

Draws the runs at or below the folders, as one PNG a plot and one HTML page.
--output=DIR is where the page and the plots go; DIR/report of the first folder by default.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from jaxdl.core import flags as cli
from jaxdl.errors import UserError
from jaxdl.record.terminal import say
from jaxdl.report.data import find_runs
from jaxdl.report.write import count, terminal_table, write


def main(argv: Sequence[str]) -> int:
    values = flags.FlagValues()
    flags.DEFINE_string('output', None, 'where the page and the plots go', flag_values=values)
    folders, output = cli.parse_flags(argv, __doc__ or '', values=values), values.output
    if not folders:
        raise UserError('no folder given; usage: python -m jaxdl report DIR [DIR …] [--output=DIR]')
    if output == '':
        raise UserError('--output is empty; give the folder for the report')
    runs = find_runs(folders)
    page = write(runs, folders, Path(output) if output else Path(folders[0]) / 'report')
    say(terminal_table(runs))
    say(f'report of {count(len(runs))}: {page}')
    return 0
