"""Trains a config: python train.py --config=configs/NAME.py[:variant] [--workdir=DIR] [--config.FIELD=VALUE …]

A second call with the same workdir resumes. Without --workdir the run goes to runs/, into a folder
named after the config and its overrides. --help with a --config lists the config's fields.
--profile=100:110 traces these steps and prints the operations that take the time; the signal
SIGUSR2 does so for the next steps of a running job. --plan refuses a run whose step needs more memory
than the devices have. Several processes: Slurm and Open MPI say it themselves; otherwise each is
started with --coordinator=HOST:PORT --processes=NUMBER --process=INDEX.
"""

import os
import sys

from absl import flags

from jaxdl import cli, distributed, runtime
from jaxdl.efficiency import profiler


def main(argv):

    environment = runtime.prepare_process()
    flags.DEFINE_string('config', '', 'configs/NAME.py[:variant]')
    flags.DEFINE_string('workdir', '', 'the folder of the run')
    flags.DEFINE_string('profile', '', 'START:STOP, the steps to trace')
    flags.DEFINE_bool('plan', False, 'start only what fits the memory of the devices')
    distributed.define_flags()
    config = cli.parse_config(argv, __doc__ or '')
    if config.deterministic:
        runtime.make_deterministic(environment)
    profile = profiler.parse(flags.FLAGS.profile)
    distributed.join(distributed.of_flags(os.environ))
    from jaxdl import trainer  # heavy; wrong command lines need not wait for it

    if flags.FLAGS.plan:
        from jaxdl import planning

        print(planning.require_fit(config), flush=True)
    workdir = flags.FLAGS.workdir or cli.default_workdir(argv)
    context = {'environment': environment, 'started': runtime.process_started()}
    result = trainer.train(config, workdir, context=context, profile=profile)
    print(cli.summary(result.metrics, workdir), flush=True)


if __name__ == '__main__':
    runtime.restart_with_tuned_heap()
    sys.exit(cli.run(main))
