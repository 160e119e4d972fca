"""What a sweep costs: trials through the process pool against the same trials in one program.

    python -m experiments.sweep_cost [--sweep=experiments/sweeps/digits_lr_width.py] [--slots=2] [--vectorize=8]

Every program is compiled into the persistent cache first. Prints total times and their ratio, how
far the results differ, which trial is best, and what the pool adds to a trial beyond the life of the
trial's own process.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jaxdl import errors
from jaxdl.core.flags import CommandLine

# The same sweep with other points or steps, as a sweep file of its own.
CHANGED = """
import dataclasses
from jaxdl.sweeps.spec import load_sweep
def get_sweep():
    sweep = load_sweep({file!r})
    return dataclasses.replace(
        sweep, points=sweep.points[:{points}], overrides={{**sweep.overrides, **{overrides!r}}}
    )
"""


def run(file: str, workdir: Path, *words: str) -> tuple[float, dict]:
    """(seconds of the whole command, results.json) of a sweep."""
    began = time.monotonic()
    subprocess.run(
        [sys.executable, '-m', 'jaxdl', 'sweep', file, f'--workdir={workdir}', *words],
        check=True, stdout=subprocess.DEVNULL, env={**os.environ, 'PYTHONPATH': os.getcwd()},
    )  # fmt: skip
    seconds = time.monotonic() - began
    return seconds, json.loads((workdir / 'results.json').read_text())


def overhead(file: str, folder: Path) -> tuple[float, float]:
    """(seconds that the pool adds to a trial, seconds that a sweep takes to start and to end).

    On one slot, sweeps of 4 and of 16 short trials: what they take beyond the lives of their trials'
    processes is a constant and a part for each trial.
    """
    beyond = {}
    for points in (2, 8):  # two seeds each
        changed = folder / f'{points}.py'
        few = {'steps': 10, 'eval_every': 0, 'checkpoint.every': 0, 'model.channels': (4, 8)}
        changed.write_text(
            'from jaxdl.sweeps import grid\n'
            + CHANGED.format(file=file, points=points, overrides=few).replace(
                f'sweep.points[:{points}]',
                f"grid({{'optimizer.learning_rate': [1e-3 * i for i in range(1, {points + 1})]}})",
            )
        )
        seconds, results = run(str(changed), folder / f'one slot {points}', '--slots=1')
        beyond[2 * points] = seconds - results['wall']
    each = (beyond[16] - beyond[4]) / 12
    return each, beyond[4] - 4 * each


def main(argv: Sequence[str]) -> int:
    line = CommandLine(__doc__ or '', example='--slots=2 --vectorize=8')
    line.string('sweep', 'FILE', 'a sweep', default='experiments/sweeps/digits_lr_width.py')
    line.integer('slots', 'trials at a time', default=2, least=1)
    line.integer('vectorize', 'trials in one program', default=8, least=1)
    values = line.parse(argv)
    slots, many = f'--slots={values.slots}', f'--vectorize={values.vectorize}'
    with tempfile.TemporaryDirectory(prefix='jaxdl-sweep-cost-') as name:
        folder = Path(name)
        short = folder / 'short.py'
        short.write_text(
            CHANGED.format(file=values.sweep, points=10**6, overrides={'steps': 2, 'eval_every': 0})
        )
        run(str(short), folder / 'warm pool', slots)
        run(str(short), folder / 'warm together', slots, many)
        pool, alone = run(values.sweep, folder / 'pool', slots)
        vectorized, together = run(values.sweep, folder / 'together', slots, many)
        pairs = list(zip(alone['trials'], together['trials'], strict=True))
        apart = max(abs(a['value'] - b['value']) for a, b in pairs)
        print(f'{len(pairs)} trials on {values.slots} CPU slots, warm compile cache')
        print(f'  process pool       {pool:6.1f} s   {alone["wall"]:6.1f} s of processes')
        print(
            f'  --vectorize={values.vectorize}      {vectorized:6.1f} s   {together["wall"]:6.1f} s of processes'
        )
        print(f'  ratio              {pool / vectorized:6.2f}')
        print(f'  results apart by   {apart:.1e} at most')
        print(f'  best trial         {alone["best"]["trials"]} and {together["best"]["trials"]}')
        each, fixed = overhead(values.sweep, folder)
        print(
            f'the pool adds {each:.3f} s to a trial, and a sweep takes {fixed:.1f} s to start and to end'
        )
        return 0 if alone['best']['trials'] == together['best']['trials'] else 1


if __name__ == '__main__':
    sys.exit(errors.run(main))
