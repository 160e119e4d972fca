"""Trains several trials of a sweep in one program: see jaxdl.run.loop.

The sweep starts it: python -m jaxdl.sweeps.vectorized --workdir=SWEEP --trials=ID,ID,…
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from jaxdl.core import flags as cli
from jaxdl.run import runtime


def main(argv: Sequence[str]) -> None:
    flags.DEFINE_string('workdir', '', 'the folder of the sweep')
    flags.DEFINE_list('trials', [], 'the ids of the trials')
    cli.parse_flags(argv, __doc__ or '', required=('workdir', 'trials'))
    environment = runtime.prepare_process()
    from jaxdl.run.loop import train_together
    from jaxdl.sweeps.check import read_config
    from jaxdl.sweeps.store import Store

    folder, names = flags.FLAGS.workdir, flags.FLAGS.trials
    trials = {trial.id: trial for trial in Store(folder).trials()}
    configs = [read_config(trials[name].config, trials[name].words()) for name in names]
    if any(config.deterministic for config in configs):
        runtime.make_deterministic(environment)
    places = [os.path.join(folder, 'trials', name) for name in names]
    train_together(
        configs, places, context={'environment': environment, 'started': runtime.process_started()}
    )


if __name__ == '__main__':
    runtime.restart_with_tuned_heap()
    sys.exit(cli.run(main))
