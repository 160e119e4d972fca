"""Trains a config: python train.py --config=configs/NAME.py[:variant] [--workdir=DIR] [--config.FIELD=VALUE …]

A second call with the same workdir resumes. Without --workdir the run goes to runs/, into a folder
named after the config and its overrides. --help with a --config lists the config's fields.
--profile=100:110 traces these steps and prints the operations that take the time; the signal
SIGUSR2 does so for the next steps of a running job. --plan refuses a run whose step needs more memory
than the devices have. Several processes: Slurm and Open MPI say it themselves; otherwise each is
started with --coordinator=HOST:PORT --processes=NUMBER --process=INDEX.
"""

import os
from collections.abc import Sequence

from absl import flags

from jaxdl.account import profiler
from jaxdl.core import flags as cli
from jaxdl.run import cluster, runtime


def main(argv: Sequence[str]) -> None:
    environment = runtime.prepare_process()
    flags.DEFINE_string('config', '', 'configs/NAME.py[:variant]')
    flags.DEFINE_string('workdir', '', 'the folder of the run')
    flags.DEFINE_string('profile', '', 'START:STOP, the steps to trace')
    flags.DEFINE_bool('plan', False, 'start only what fits the memory of the devices')
    cluster.define_flags()
    config = cli.parse_config(argv, __doc__ or '')
    if config.deterministic:
        runtime.make_deterministic(environment)
    profile = profiler.parse(flags.FLAGS.profile)
    cluster.join(cluster.of_flags(os.environ))
    from jaxdl.run import loop as trainer  # heavy; wrong command lines need not wait for it

    if flags.FLAGS.plan:
        from jaxdl.plan import planning

        print(planning.require_fit(config), flush=True)
    workdir = flags.FLAGS.workdir or cli.default_workdir(argv)
    context = {'environment': environment, 'started': runtime.process_started()}
    result = trainer.train(config, workdir, context=context, profile=profile)
    print(cli.summary(result.metrics, workdir), flush=True)
