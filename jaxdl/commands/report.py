"""Plots and one HTML page of the runs or the sweep under some folders.

    python -m jaxdl report DIR [DIR …] [--output=DIR]

The page and one PNG a plot go into the first folder's report/ unless --output says otherwise.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from jaxdl.core import flags as cli
from jaxdl.errors import UserError
from jaxdl.report import data, write


def main(argv: Sequence[str]) -> int:
    values = flags.FlagValues()
    flags.DEFINE_string('output', '', 'the folder for the report', flag_values=values)
    folders = cli.parse_flags(argv, __doc__ or '', values=values)
    if not folders:
        raise UserError('no folder given; usage: python -m jaxdl report DIR [DIR …] [--output=DIR]')
    runs = data.find_runs(folders)
    output = Path(values['output'].value or os.path.join(folders[0], 'report'))
    written = write.write(runs, folders, output)
    print(write.terminal_table(runs))
    print(f'report of {len(runs)} run{"s"[: len(runs) != 1]}: {written}')
    return 0
