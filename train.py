"""Trains a config: python train.py --config=configs/NAME.py[:variant] [--workdir=DIR] [--config.FIELD=VALUE …]

A second call with the same workdir resumes. Without --workdir the run goes to runs/, into a folder
named after the config and its overrides. --help with a --config lists the config's fields.
"""

import sys

from absl import flags

from jaxdl import cli, runtime


def main(argv):

    environment = runtime.prepare_process(deterministic=cli.is_true(argv, 'deterministic'))
    flags.DEFINE_string('config', '', 'configs/NAME.py[:variant]')
    flags.DEFINE_string('workdir', '', 'the folder of the run')
    config = cli.parse_config(argv, __doc__ or '')
    from jaxdl import trainer  # heavy; wrong command lines need not wait for it

    workdir = flags.FLAGS.workdir or cli.default_workdir(argv)
    result = trainer.train(
        config, workdir, context={'environment': environment, 'started': runtime.process_started()}
    )
    print(cli.summary(result.metrics, workdir), flush=True)


if __name__ == '__main__':
    sys.exit(cli.run(main))
