"""Compiles for GPUs that are not there: finds the CUDA compiler's packages, describes the devices.

XLA needs no GPU to compile for one, only the plugin (requirements-plan.txt) and the card's limits.
`prepare_process` must run before jax is imported.
"""

import contextlib
import importlib.util
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator

from jaxdl.compiled.cards import Cluster
from jaxdl.errors import UserError

INSTALL = (
    'python -m pip install --no-deps --target={folder} -r requirements-plan.txt '
    '(about 2.4 GB, needs no GPU)'
)

# A plan reads the schedule and the buffers, not the machine code: leaving its optimisation out
# changes neither and saves about a sixth of the time. By version, since XLA aborts on an unknown flag.
_QUICK = {
    '0.10.2': (
        '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
        '--xla_gpu_disable_gpuasm_optimizations=true'
    ),
}


def package_folder() -> pathlib.Path:
    """Where the CUDA compiler's packages are looked for: $JAXDL_PLAN_PACKAGES or <venv>/plan."""
    return pathlib.Path(os.environ.get('JAXDL_PLAN_PACKAGES') or pathlib.Path(sys.prefix) / 'plan')


def prepare_process(devices: int) -> bool:
    """Sets up this process to compile for `devices` GPUs, or else for as many simulated CPUs.

    Returns whether the CUDA compiler is there. Raises RuntimeError if jax is imported already.
    """
    if 'jax' in sys.modules:
        raise RuntimeError('prepare_process must run before jax is imported')
    # The process itself computes on the CPU; a GPU that is there stays untouched.
    os.environ['JAX_PLATFORMS'] = 'cpu'
    os.environ['JAX_SKIP_CUDA_CONSTRAINTS_CHECK'] = '1'
    # What jaxdl sets where it finds GPUs: without it no collective overlaps with compute.
    os.environ.setdefault('JAX_OPTIMIZATION_LEVEL', 'O1')
    flags = os.environ.get('XLA_FLAGS', '')
    flags = re.sub(r'--xla_force_host_platform_device_count=\S+', '', flags)
    there = importlib.util.find_spec('jax_cuda12_plugin') is not None
    folder = package_folder()
    if not there and (folder / 'jax_cuda12_plugin').is_dir():
        # Behind everything else, so that it adds packages and replaces none.
        sys.path.append(str(folder))
        there = True
    if there:
        from jaxlib.version import __version__  # light: jax itself is not imported

        flags = f'{_QUICK.get(__version__, "")} {flags}'  # the user's own come last and win
    os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count={devices}'.strip()
    with quiet():  # starting up, the plugin says several times that it misses its GPU
        import jax

        jax.devices()
    return there


def gpus(cluster: Cluster) -> list:
    """The cluster's GPUs as jax devices for a mesh: programs compile for them, nothing runs.

    Raises UserError where the installed compiler does not take the description.
    """
    from jax.experimental import topologies

    try:
        with quiet():
            topology = topologies.get_topology_desc(
                '', 'cuda', topology=cluster.topology, target_config=cluster.card.target_config()
            )
    except Exception as error:
        first = str(error).strip().split('\n')[0]
        raise UserError(
            f'the CUDA compiler does not work here ({first}); install it anew: '
            + INSTALL.format(folder=package_folder())
        ) from error
    return list(topology.devices)


@contextlib.contextmanager
def attention_of(cluster: Cluster) -> Iterator[None]:
    """While a program is traced: no cuDNN attention for cards older than its kernels (Ampere).

    jax asks the process's own GPU what it can do, and here there is none to ask.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    def refuse():
        raise RuntimeError(f'{cluster.card.title} is too old for cuDNN attention')

    kept = cudnn.check_cudnn_version
    if cluster.card.major < 8:
        cudnn.check_cudnn_version = refuse
    try:
        yield
    finally:
        cudnn.check_cudnn_version = kept


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what the compiler writes to stderr (it misses its GPU) to itself, unless it fails."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(saved, 2)
            sink.seek(0)
            kept = sink.read().decode(errors='replace')
            lines = [
                line for line in kept.splitlines() if not re.match(r'[IW]\d{4} |WARNING: All', line)
            ]
            sys.stderr.write('\n'.join([*lines[-20:], '']) if lines else '')
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
