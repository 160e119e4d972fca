"""Downloads, checks and stores a data set.

NAME is mnist, fashion_mnist, digits, cifar10, cifar100 or any data set of TFDS. A set that was
prepared before is only checked. For a TFDS set --from is the folder with the files that must be
downloaded by hand.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxdl.core.flags import CommandLine


def main(argv: Sequence[str]) -> int:
    line = CommandLine(__doc__ or '', words='NAME', example='cifar10 --from=/data/originals')
    line.string('from', 'DIR', 'folder with the original files; downloaded unless given')
    line.string(
        'data_dir', 'DIR', 'where data sets are kept; $JAXDL_DATA or a cache folder unless given'
    )
    given = line.parse(argv)
    from jaxdl.data import prepare, store

    source = getattr(given, 'from')
    folder = store.data_dir(given.data_dir)
    print(prepare.prepare(given.words[0], folder, Path(source) if source else None))
    return 0
