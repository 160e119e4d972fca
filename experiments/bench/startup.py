"""From the command to the first completed step, with an empty and with a warm compile cache.

    python -m experiments.bench.startup [--rounds=3] [--configs=digits,resnet20]

Each start is a `train.py` of its own; the seconds are those that the run itself logs
(perf/first_step_s), which count from the start of the process.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from jaxdl.core.flags import CommandLine
from jaxdl.errors import run

CONFIGS = {
    'digits': 'configs/digits_cnn.py',
    'resnet20': 'experiments/bench/startup_config.py',
}


def start(config: str, cache: str, workdir: str) -> float:
    """Seconds from the start of the process to the first step."""
    words = ['--config.steps=4', '--config.log_every=2', '--config.eval_every=0']
    words.append('--config.checkpoint.every=0')
    subprocess.run(
        [sys.executable, 'train.py', f'--config={config}', f'--workdir={workdir}', *words],
        env={**os.environ, 'JAXDL_CACHE': cache},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    with open(os.path.join(workdir, 'metrics.jsonl')) as file:
        rows = [json.loads(line) for line in file]
    return next(row['perf/first_step_s'] for row in rows if 'perf/first_step_s' in row)


def main(argv: Sequence[str]) -> None:
    """Parses the command line, measures, prints and writes."""
    line = CommandLine(__doc__ or '', example='--rounds=5')
    line.integer('rounds', 'starts of each config with a warm cache', default=3, least=1)
    line.several('configs', CONFIGS, 'what starts')
    line.string('out', 'FILE.json', 'what was measured goes there too')
    options = line.parse(argv)
    found = {}
    for name in options.configs:
        with tempfile.TemporaryDirectory() as folder:
            times = [
                start(CONFIGS[name], f'{folder}/cache', f'{folder}/run{index}')
                for index in range(options.rounds + 1)
            ]
        warm = times[1:]
        found[name] = {'cold_s': times[0], 'warm_s': statistics.median(warm), 'all_s': times}
        print(
            f'{name}: first step after {times[0]:.2f} s with an empty cache, {min(warm):.2f}–'
            f'{max(warm):.2f} s with a warm one (median {statistics.median(warm):.2f})'
        )
    if options.out:
        with open(options.out, 'w') as file:
            json.dump(found, file, indent=1)


if __name__ == '__main__':
    sys.exit(run(main))
