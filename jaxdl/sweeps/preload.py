"""The modules that every trial needs; the standard library's fork server imports this one once.

A forked trial then starts at once instead of importing jax for seconds. Forking is safe because the
fork server has one thread, opens no device and reads no config. A trial opens its device after the
fork, under its own CUDA_VISIBLE_DEVICES. Nothing else may import this module.
"""

import os
import signal

from jaxdl.run import runtime
from jaxdl.sweeps import child

# glibc reads its tunables when a process starts, and trials inherit the heap of this process.
runtime.restart_with_tuned_heap()
child.fork_server = os.getpid()
child.end_with_parent(signal.SIGKILL)
runtime.prepare_process()
# numpy's BLAS would start threads, and a process with threads cannot be forked safely.
_THREADS = os.environ.get('OPENBLAS_NUM_THREADS')
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
import numpy  # noqa: E402, F401

if _THREADS is None:
    del os.environ['OPENBLAS_NUM_THREADS']
from ml_collections import config_flags  # noqa: E402, F401
from orbax.checkpoint import v1  # noqa: E402, F401

import jaxdl.run.loop  # noqa: E402
import jaxdl.sweeps.check  # noqa: E402, F401
