"""Prepares and checks a data set: python -m jaxdl prepare NAME [--from=DIR] [--data_dir=DIR]

Without --from the original files are downloaded; with it they are taken from DIR, as downloaded by
hand. A set that is prepared already is checked.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from jaxdl.core import flags as cli
from jaxdl.data import prepare, store
from jaxdl.data.images.catalogue import IMAGE_SETS
from jaxdl.errors import UserError


def main(argv: Sequence[str]) -> int:
    values = flags.FlagValues()
    flags.DEFINE_string('from', '', 'folder with the original files', flag_values=values)
    flags.DEFINE_string('data_dir', '', 'where prepared data sets are kept', flag_values=values)
    words = cli.parse_flags(argv, __doc__ or '', values=values)
    if len(words) != 1:
        raise UserError(
            f'give one data set, not {words or "none"}: {", ".join(IMAGE_SETS)}, or a TFDS name\n'
            'usage: python -m jaxdl prepare NAME [--from=DIR] [--data_dir=DIR]'
        )
    given = values['from'].value
    source = Path(given).expanduser() if given else None
    print(prepare.prepare(words[0], store.data_dir(values['data_dir'].value or ''), source))
    return 0
