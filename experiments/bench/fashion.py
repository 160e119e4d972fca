"""Seconds from the command to 92 % and 93 % on Fashion-MNIST: train.py beside a plain PyTorch script.

    python -m experiments.bench.fashion --data=DIR [--rounds=1] [--out=FILE.json]

DIR holds the original idx files. Both train the network and the recipe of configs/fashion_cnn.py and
test after each epoch; start-up, compilation (with a warm cache for jaxdl) and tests count, the
preparation of the data set does not. PyTorch gets the same allocator settings.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from jaxdl.core.flags import CommandLine
from jaxdl.errors import run

GOALS = (0.92, 0.93)


def ours(folder: str, data: str, index: int, steps: int) -> list[tuple[float, float]]:
    """[(seconds, accuracy)] of the tests of one run."""
    workdir = f'{folder}/run{index}'
    begin = time.time()
    words = [f'--config.data.data_dir={folder}/data', f'--config.seed={index}']
    words += [f'--config.steps={steps}'] if steps else []
    _call('train.py', '--config=configs/fashion_cnn.py', f'--workdir={workdir}', *words)
    with open(f'{workdir}/metrics.jsonl') as file:
        rows = [json.loads(line) for line in file]
    return [
        (row['time'] - begin, row['eval/test/accuracy'])
        for row in rows
        if 'eval/test/accuracy' in row
    ]


def theirs(data: str, index: int) -> list[tuple[float, float]]:
    """The same of the PyTorch script."""
    begin = time.time()
    text = _call('-m', 'experiments.bench.torch_fashion', data, str(index))
    rows = [json.loads(line) for line in text.splitlines() if line.startswith('{')]
    return [(row['time'] - begin, row['accuracy']) for row in rows]


def _call(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def reached(tests: list[tuple[float, float]]) -> dict[str, float | None]:
    """{'92': seconds, …}; None where it was not reached."""
    return {
        f'{100 * goal:.0f}': next((seconds for seconds, found in tests if found >= goal), None)
        for goal in GOALS
    }


def main(argv: Sequence[str]) -> None:
    """Parses the command line, measures, prints and writes."""
    line = CommandLine(__doc__ or '', example='--data=/data/fashion-mnist')
    line.string('data', 'DIR', "Fashion-MNIST's original files", required=True)
    line.integer('rounds', 'runs of each', default=1, least=1)
    line.string('out', 'FILE.json', 'what was measured goes there too')
    options = line.parse(argv)
    found: dict[str, list] = {'jaxdl': [], 'torch': []}
    with tempfile.TemporaryDirectory() as folder:
        place = f'--data_dir={folder}/data'
        _call('-m', 'jaxdl', 'prepare', 'fashion_mnist', f'--from={options.data}', place)
        ours(folder, options.data, 999, 2)  # fills the compile cache
        for index in range(options.rounds):
            found['torch'].append(theirs(options.data, index))
            found['jaxdl'].append(ours(folder, options.data, index, 0))
    for name, runs in found.items():
        times = [reached(run) for run in runs]
        texts = []
        for goal in times[0]:
            good = [one[goal] for one in times if one[goal] is not None]
            text = f'{statistics.median(good):.0f} s' if good else 'not reached'
            texts.append(f'{goal} %: {text} ({len(good)} of {len(times)})')
        last = statistics.mean(run[-1][1] for run in runs)
        print(f'{name}: {", ".join(texts)}; last test {100 * last:.2f} %, {runs[0][-1][0]:.0f} s')
    if options.out:
        os.makedirs(os.path.dirname(options.out) or '.', exist_ok=True)
        with open(options.out, 'w') as file:
            json.dump(found, file, indent=1)


if __name__ == '__main__':
    sys.exit(run(main))
