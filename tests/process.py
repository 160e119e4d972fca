"""One process of a run of several: python -m tests.process INDEX COUNT PORT WORKDIR STEPS [EVERY]

One device each, a checkpoint every EVERY steps; what watches the others is quicker than in earnest.
"""

import os
import sys

os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=1'


def main(argv):
    index, count, port, workdir, steps = argv[1:6]
    every = int(argv[6]) if len(argv) > 6 else 500
    import jax

    if int(count) > 1:
        jax.distributed.initialize(
            f'127.0.0.1:{port}', num_processes=int(count), process_id=int(index)
        )
    from jaxdl.run import loop as trainer
    from jaxdl.run import processes
    from tests import faulty

    processes.EVERY, processes.SILENT = 1.0, 6.0
    config = faulty.config(
        steps=int(steps), log_every=1, eval_every=0, checkpoint=faulty.small.Checkpoint(every=every)
    )
    trainer.train(config, workdir)


if __name__ == '__main__':
    from jaxdl.errors import run

    sys.exit(run(main))
