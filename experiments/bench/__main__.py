"""Everything that docs/performance.md reports, in one command.

    python -m experiments.bench [--only=step,loader,loop,startup,fashion] [--data=DIR] [--out=DIR]

Measure on a machine that does nothing else: about 40 minutes on two cores. Each part writes JSON into
--out; --data is the folder of Fashion-MNIST's original idx files, without which that part is left out.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

from jaxdl.core.flags import CommandLine
from jaxdl.errors import run

OUT = 'experiments/bench/results'
PARTS = ('step', 'loader', 'loop', 'startup', 'fashion')
STEPS = (
    ('cnn', 'float32'),
    ('resnet18', 'float32'),
    ('resnet20', 'float32'),
    ('transformer', 'float32,bfloat16'),
    ('transformer_50k', 'float32,bfloat16'),
    ('lstm', 'float32,bfloat16'),
    ('vit_ti', 'float32'),
    ('bert_base', 'float32'),
)


def commands(only: list[str], data: str, out: str) -> list[list[str]]:
    """The commands of the chosen parts, without the interpreter."""
    found = []
    if 'step' in only:
        for model, dtypes in STEPS:
            words = [f'--model={model}', f'--dtype={dtypes}', f'--out={out}/{model}.json']
            found.append(['-m', 'experiments.bench.step', *words])
    if 'loader' in only:
        words = ['--model=loader', f'--out={out}/loader.json']
        found.append(['-m', 'experiments.bench.step', *words])
    for part in ('loop', 'startup'):
        if part in only:
            found.append(['-m', f'experiments.bench.{part}', f'--out={out}/{part}.json'])
    if 'fashion' in only and data:
        words = [f'--data={data}', f'--out={out}/fashion.json']
        found.append(['-m', 'experiments.bench.fashion', *words])
    return found


def main(argv: Sequence[str]) -> int:
    """Runs the parts one after another; 1 where one failed."""
    line = CommandLine(__doc__ or '', example='--only=step,loop')
    line.several('only', PARTS, 'parts')
    line.string('data', 'DIR', "Fashion-MNIST's original files; without them that part is left out")
    line.string('out', 'DIR', 'where each part writes', default=OUT)
    options = line.parse(argv)
    os.makedirs(options.out, exist_ok=True)
    failed = 0
    for words in commands(options.only, options.data, options.out):
        print('python', *words, flush=True)
        failed |= subprocess.run([sys.executable, *words], check=False).returncode != 0
    return int(failed)


if __name__ == '__main__':
    sys.exit(run(main))
