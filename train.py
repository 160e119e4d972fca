"""Trains a config: python train.py --config=NAME[:variant] [--workdir=DIR] [--config.FIELD=VALUE …]

The same as `jaxdl train`; --help explains the flags.
"""

import sys

from jaxdl.__main__ import console

if __name__ == '__main__':
    sys.exit(console('train'))
