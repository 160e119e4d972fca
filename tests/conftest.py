"""Eight simulated devices, set before jax is imported anywhere, and one compile cache for all."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

flags = os.environ.get('XLA_FLAGS', '')
if 'xla_force_host_platform_device_count' not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count=8'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# The suite compiles the same small programs in many processes; compiled once they are shared.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.pytest_cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
# A run measures the machine's peak for its MFU once; tests need no true one.
os.environ.setdefault('JAXDL_PEAK_FLOPS', '1e11')


@pytest.fixture
def one_device(monkeypatch):
    """Runs have the first of the simulated devices alone, which compiles faster."""
    import jax

    from jaxdl.core import mesh as mesh_lib

    make = mesh_lib.make_mesh
    monkeypatch.setattr(
        mesh_lib, 'make_mesh', lambda sizes, devices=None: make(sizes, jax.devices()[:1])
    )
