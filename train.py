"""Trains a config: python train.py --config=configs/NAME.py[:variant] [--workdir=DIR] [--config.FIELD=VALUE …]

The same as `python -m jaxdl train`; --help explains the flags.
"""

import sys

from jaxdl.core import flags as cli
from jaxdl.run import runtime

if __name__ == '__main__':
    runtime.restart_with_tuned_heap()
    from jaxdl.commands import train

    sys.exit(cli.run(train.main))
