"""Trains several trials of a sweep in one program, as lanes of jaxdl.run.loop.

The sweep starts it as python -m jaxdl.sweeps.vectorized --workdir=SWEEP --trials=ID,ID,…
"""

import os
import sys
from collections.abc import Sequence

from jaxdl.core.flags import CommandLine
from jaxdl.run import runtime


def main(argv: Sequence[str]) -> None:
    line = CommandLine(__doc__ or '', example='--workdir=runs/sweep --trials=0000,0001')
    line.string('workdir', 'DIR', 'the folder of the sweep', required=True)
    line.string('trials', 'ID,…', 'the ids of the trials', required=True)
    given = line.parse(argv)
    environment = runtime.prepare_process()
    from jaxdl.run.loop import train_together
    from jaxdl.sweeps.check import read_config
    from jaxdl.sweeps.store import Store

    folder, names = given.workdir, given.trials.split(',')
    trials = {trial.id: trial for trial in Store(folder).trials()}
    configs = [read_config(trials[name].config, trials[name].words()) for name in names]
    if any(config.deterministic for config in configs):
        runtime.make_deterministic(environment)
    places = [os.path.join(folder, 'trials', name) for name in names]
    train_together(
        configs, places, context={'environment': environment, 'started': runtime.process_started()}
    )


if __name__ == '__main__':
    sys.exit(runtime.program(main, sys.argv, tuned_heap=True))
