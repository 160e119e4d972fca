"""One of several processes that train every family for some steps, or the one they are compared to.

    python -m tests.process_layouts OUT DEVICES [--coordinator=… --processes=… --process=…]

Process 0 writes {family: losses} and, of all processes, the rows that each one fetched, to OUT.
"""

import json
import os
import sys

os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={sys.argv[2]}'
os.environ['JAX_PLATFORMS'] = 'cpu'


def main(argv):
    from jaxdl.core.flags import CommandLine
    from jaxdl.run import cluster

    line = CommandLine('A process of a test.', example='')
    cluster.define_flags(line)
    given = line.parse([argv[0], *argv[3:]])
    found = cluster.find(
        os.environ,
        coordinator=given.coordinator,
        processes=given.processes,
        process=given.process,
    )
    cluster.join(found)
    import jax
    from jax.experimental import multihost_utils

    from jaxdl.core.config import Mesh
    from tests import layouts

    count = jax.device_count()
    meshes = {
        'cnn': Mesh(data=count),
        'lstm': Mesh(data=1, fsdp=count),
        'decoder': Mesh(data=count // 2, tensor=2),
        'encoder_decoder': Mesh(data=count // 2, pipe=2),
    }
    found = {}
    for family, mesh in meshes.items():
        run = layouts.config(family, mesh=mesh)
        found[family] = layouts.losses(run, layouts.initial(run)).tolist()
    rows = layouts.built(run)[1].mine
    fetched = multihost_utils.process_allgather(rows).reshape(jax.process_count(), -1)
    if jax.process_index() == 0:
        with open(argv[1], 'w') as file:
            json.dump({'losses': found, 'rows': fetched.tolist()}, file)
    print('said by', jax.process_index(), flush=True)


if __name__ == '__main__':
    from jaxdl.errors import run

    sys.exit(run(main))
