"""Trains the config digits_cnn on real digits and draws its plots."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxdl.core.flags import CommandLine
from jaxdl.record.metrics_file import read_metrics

WORKDIR = 'runs/demo'


def main(argv: Sequence[str]) -> int:
    """Runs the commands that a user would run, and prints the accuracy and the paths of results."""
    CommandLine(__doc__ or '', example='').parse(argv)
    train = ['train', '--config=digits_cnn', f'--workdir={WORKDIR}']
    for words in (train, ['report', WORKDIR, '--mistakes']):
        code = subprocess.run([sys.executable, '-m', 'jaxdl', *words]).returncode
        if code:
            return code
    row = read_metrics(Path(WORKDIR) / 'metrics.jsonl')[-1]
    print(
        f'test accuracy {row["eval/test/accuracy"]:.2%} on {row["eval/test/examples"]:.0f} digits; '
        f'run folder {WORKDIR}, plots {WORKDIR}/report/index.html; '
        'next: python train.py --config=digits_cnn --config.optimizer.learning_rate=0.001'
    )
    return 0
