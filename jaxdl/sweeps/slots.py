"""The places of a machine where trials run: GPUs, or shares of the CPU cores."""

import dataclasses
import os
from collections.abc import Mapping

from jaxdl.errors import UserError

GPU_SHARE = 0.9  # of a GPU's memory is divided among its trials; CUDA itself needs the rest


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for one process.

    Attributes:
        name: the name in the table, such as 'gpu 0' or 'cpu 1'.
        env: variables of the process; None removes one.
        cpus: the cores that the process may use; empty: all.
    """

    name: str
    env: tuple[tuple[str, str | None], ...]
    cpus: tuple[int, ...] = ()


def visible_gpus(environ: Mapping[str, str] | None = None) -> list[str]:
    """The GPUs this process may use, in CUDA_VISIBLE_DEVICES' terms; creates no CUDA context."""
    environ = os.environ if environ is None else environ
    listed = environ.get('CUDA_VISIBLE_DEVICES')
    present = _present_gpus()
    if listed is None:
        return present
    words = [word.strip() for word in listed.split(',') if word.strip()]
    if '-1' in words:
        words = words[: words.index('-1')]
    # UUIDs of GPUs or MIG slices are passed on unchanged.
    return [word for word in words if word in present or not word.isdigit()] if present else []


def _present_gpus() -> list[str]:
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return [str(i) for i in range(pynvml.nvmlDeviceGetCount())]
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # NVML has a different error for no library, no driver and no GPU
        return []


def gpu_slots(wanted: str, per_gpu: int, gpus: list[str]) -> list[Slot]:
    """`per_gpu` slots on each of the GPUs in 'wanted' ('0,1'; '' for all of `gpus`).

    Raises:
        UserError: a GPU does not exist, or is named twice.
    """
    names = [word.strip() for word in wanted.split(',') if word.strip()] or gpus
    for name in names:
        if name not in gpus:
            raise UserError(
                f'--gpus={wanted}: there is no GPU {name}; '
                f'{"this machine shows GPUs " + ", ".join(gpus) if gpus else "no GPU was found; use --slots=N for CPU slots"}'
            )
    if len(set(names)) < len(names):
        raise UserError(
            f'--gpus={wanted}: a GPU is named twice; use --per_gpu=K for K trials on each'
        )
    slots = []
    for share in range(per_gpu):
        for name in names:
            env: list[tuple[str, str | None]] = [
                ('CUDA_VISIBLE_DEVICES', name),
                ('CUDA_DEVICE_ORDER', 'PCI_BUS_ID'),  # numbers GPUs as nvidia-smi does
            ]
            if per_gpu > 1:
                env += [
                    ('XLA_CLIENT_MEM_FRACTION', f'{GPU_SHARE / per_gpu:.4f}'),
                    ('XLA_PYTHON_CLIENT_MEM_FRACTION', None),  # jax refuses the old and new name
                ]
            label = f'gpu {name}' + (f'.{share}' if per_gpu > 1 else '')
            slots.append(Slot(label, tuple(env)))
    return slots


def cpu_slots(count: int) -> list[Slot]:
    """`count` slots that share the cores evenly, so that trials do not compete for cores.

    All slots have the same number of cores, since the number of threads can change the last bits
    of a sum.
    """
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // count)
    slots = []
    for index in range(count):
        first = index * each % len(cores)
        mine = tuple(cores[first : first + each]) or (cores[0],)
        pinned = mine if len(mine) < len(cores) else ()
        slots.append(Slot(f'cpu {index}', (), pinned))
    return slots
