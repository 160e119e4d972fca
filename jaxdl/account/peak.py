"""The FLOP/s that MFU is measured against: published for GPUs, measured for CPUs."""

import contextlib
import dataclasses
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdl import files
from jaxdl.compiled import cards
from jaxdl.errors import UserError

OVERRIDE = 'JAXDL_PEAK_FLOPS'


@dataclasses.dataclass(frozen=True)
class Peak:
    """The highest FLOP/s of a matrix product.

    Attributes:
        flops: FLOP/s of one device, or of the machine if `shared`.
        shared: whether all local devices share it, as simulated devices on one CPU do.
        measured: whether it was measured by matrix products on this machine.
    """

    flops: float
    shared: bool
    measured: bool = False


def of(device: Any, by_dtype: Mapping[str, float]) -> Peak | None:
    """The peak of `device` for the operand type that most of the FLOPs in `by_dtype` have.

    A GPU's is published (cards.json); None for an unknown card. A CPU's is measured once per
    machine by matrix products, in about half a second, and kept in the cache folder. The
    environment variable JAXDL_PEAK_FLOPS overrides both, for one device.

    Raises:
        UserError: that variable is not a positive number.
    """
    dtype = max(by_dtype, key=lambda name: by_dtype[name], default='float32')
    given = os.environ.get(OVERRIDE)
    if given:
        try:
            value = float(given)
        except ValueError:
            value = 0.0
        if not 0 < value < float('inf'):
            raise UserError(f'{OVERRIDE}={given}: must be a positive number of FLOP/s')
        return Peak(value, shared=device.platform == 'cpu')
    if device.platform == 'cpu':
        return Peak(_cpu(dtype), shared=True, measured=True)
    card = cards.of_device(device.device_kind)
    return card and Peak(card.peak(dtype), shared=False)


def _cpu(dtype: str) -> float:
    key = f'{_processor()}, {os.cpu_count()} cores, {dtype}'
    known = _read()
    if key not in known:
        known[key] = cards.cpu_peak(dtype)
        _write(known)
    return known[key]


def forget() -> None:
    """Deletes the measured peaks after a run has exceeded one; the next run measures them anew."""
    if (path := _path()) is not None:
        with contextlib.suppress(OSError):
            path.unlink()


def _path() -> Path | None:
    folder = files.cache_folder()
    return None if folder is None else folder / 'peak.json'


def _read() -> dict[str, float]:
    path = _path()
    try:
        found = {} if path is None else files.read_object(path)
        known = {key: float(value) for key, value in found.items()}
        return {key: value for key, value in known.items() if 0 < value < math.inf}
    except (OSError, ValueError, TypeError):
        return {}


def _write(known: dict[str, float]) -> None:
    if (path := _path()) is not None:
        with contextlib.suppress(OSError):  # if it is not writable, the next start measures again
            files.write_json(path, known)


def _processor() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            for line in file:
                if line.startswith('model name'):
                    return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
