"""make demo: trains configs/digits_cnn.py on real digits and says where everything is."""

import subprocess
import sys
from collections.abc import Sequence

WORKDIR = 'runs/demo'
CONFIG = 'configs/digits_cnn.py'


def main(argv: Sequence[str]) -> int:
    """Runs the ordinary commands, as a user would, and ends with one line."""
    train = [sys.executable, 'train.py', f'--config={CONFIG}', f'--workdir={WORKDIR}']
    report = [sys.executable, '-m', 'jaxdl', 'report', WORKDIR]
    for command in (train, report):
        code = subprocess.run(command).returncode
        if code:
            return code
    from pathlib import Path

    from jaxdl.record import metrics_file as logs

    row = logs.read_metrics(Path(WORKDIR) / 'metrics.jsonl')[-1]
    print(
        f'test accuracy {row["eval/test/accuracy"]:.2%} on {row["eval/test/examples"]:.0f} digits; '
        f'run folder {WORKDIR}, plots {WORKDIR}/report/index.html; '
        f'next: python train.py --config={CONFIG} --config.optimizer.learning_rate=0.001'
    )
    return 0
