"""Sends runs to a tracking service, from a process of its own; the runs need not know.

It reads what the runs at or below the folders have written, sends what is new, and goes on where it
was when it is called again. With --follow it does so until every run is over. Weights & Biases:
WANDB_PROJECT and WANDB_MODE=offline are its own variables.
"""

import time
from collections.abc import Sequence

from jaxdl.core.flags import CommandLine


def main(argv: Sequence[str]) -> None:
    line = CommandLine(__doc__ or '', words='DIR …', example='runs --to=wandb --follow')
    line.choice('to', ('wandb',), 'the service')
    line.boolean('follow', 'go on until no run is running')
    line.number('every', 'seconds between two looks', default=30.0, least=1.0)
    given = line.parse(argv)
    from jaxdl.report import data, trackers

    while True:
        runs = data.find_runs(given.words)
        for run in runs:
            if steps := trackers.send(run, given.to):
                print(f'{run.name}: {steps} new steps, up to {run.step}', flush=True)
        if not given.follow or all(run.status != 'running' for run in runs):
            return
        time.sleep(given.every)
