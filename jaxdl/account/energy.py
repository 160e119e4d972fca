"""Measured energy: the GPUs' own counters, and the CPU's (RAPL) where they can be read.

Only measurements are reported. Without a sensor a part is unavailable, with the reason; nothing is
guessed from rated power, and "unknown" is never shown as 0 J.
"""

import dataclasses
import os
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_POWER_PERIOD = 0.1  # seconds between two power readings that are integrated
_COUNTER_PERIOD = 10.0  # seconds; RAPL wraps after minutes, so it must be read more often


class Unavailable(Exception):
    """Nothing can be measured; the message says why."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """The energy that a part of the machine used.

    Attributes:
        joules: since the run began, earlier sessions included; None: unavailable.
        watts: mean power since this process began to measure; None: unavailable or too early.
        source: where the number comes from, or why there is none.
    """

    joules: float | None
    watts: float | None
    source: str


class Meter:
    """Adds up the energy of a run, also across resumes.

    Args:
        previous: None for a new run; for a resumed one, the result of `joules()` at the end of the
            last session. A part that is missing there was not measured before, so its total is
            unavailable.
        local_devices: which of the visible GPUs this process uses, by position; None: all.
        nvml: the module that reads GPUs, by default `pynvml`.
        powercap: the folder of the CPU's counters.
        environ: the environment with CUDA_VISIBLE_DEVICES.
        clock: gives seconds that only increase.

    Attributes:
        share: this run's part of the measured energy, if several runs share the devices.
    """

    def __init__(
        self,
        previous: Mapping[str, float] | None = None,
        *,
        local_devices: Sequence[int] | None = None,
        nvml: Any = None,
        powercap: str | os.PathLike = '/sys/class/powercap',
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        environ = os.environ if environ is None else environ
        makers = {
            'gpu': lambda: _gpu_sensors(nvml, environ, local_devices, clock),
            'cpu': lambda: _cpu_sensors(pathlib.Path(powercap)),
        }
        self._parts: dict[str, _Part] = {}
        for name, make in makers.items():
            before = 0.0 if previous is None else previous.get(name)
            self._parts[name] = _Part(make, before, clock)
        self.share = 1.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        periods = [part.period for part in self._parts.values() if part.sensors]
        if periods:
            self._thread = threading.Thread(
                target=self._poll, args=(min(periods),), name='energy', daemon=True
            )
            self._thread.start()

    def go_on(self, previous: Mapping[str, float] | None) -> None:
        """Continues a run that has used `previous` joules, as the argument of that name."""
        with self._lock:
            for name, part in self._parts.items():
                part.before = 0.0 if previous is None else previous.get(name)

    def _poll(self, period: float) -> None:
        while not self._stop.wait(period):
            self.update()

    def update(self) -> None:
        """Reads all counters now. Wait for the device first if the window must be exact."""
        with self._lock:
            for part in self._parts.values():
                part.update()

    def read(self) -> dict[str, Reading]:
        """Readings of 'gpu' and 'cpu' up to now."""
        self.update()
        with self._lock:
            return {name: part.reading(self.share) for name, part in self._parts.items()}

    def joules(self) -> dict[str, float]:
        """The joules of the available parts, for the next Meter of the same run."""
        return {k: r.joules for k, r in self.read().items() if r.joules is not None}

    def metrics(self) -> dict[str, float]:
        """`energy/gpu_joules`, `energy/gpu_watts`, …, for measured parts only."""
        found = {}
        for name, reading in self.read().items():
            if reading.joules is not None:
                found[f'energy/{name}_joules'] = reading.joules
                if reading.watts is not None:
                    found[f'energy/{name}_watts'] = reading.watts
        return found

    def describe(self) -> str:
        """One line that names the measured parts, and the others with the reason."""
        words = {'gpu': 'GPU', 'cpu': 'CPU'}
        found = []
        for name, reading in self.read().items():
            state = '' if reading.joules is not None else 'unavailable, '
            found.append(f'{words[name]}: {state}{reading.source}')
        return '; '.join(found)

    def close(self) -> None:
        """Stops the thread that reads; the totals stay."""
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=5)
            self._thread = None

    def __enter__(self) -> 'Meter':
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Part:
    """The sensors of one part of the machine and what they have counted."""

    def __init__(self, make: Callable[[], tuple[list, str]], before: float | None, clock):
        self._clock = clock
        self.before = before
        self.measured = 0.0
        self.begun = clock()
        try:
            self.sensors, self.source = make()
        except Unavailable as error:
            self.sensors, self.source = [], str(error)
        self.period = min((s.period for s in self.sensors), default=_COUNTER_PERIOD)

    def update(self) -> None:
        try:
            self.measured += sum([sensor.joules() for sensor in self.sensors])
        except Exception as error:
            # A sensor may stop working, because a driver resets or a counter is made root-only.
            # That must not end the run. The energy since then is unknown, so the part becomes
            # unavailable.
            self.sensors, self.source = [], f'the sensor failed: {error or type(error).__name__}'

    def reading(self, share: float) -> Reading:
        if not self.sensors:
            return Reading(None, None, self.source)
        if self.before is None:
            return Reading(None, None, 'an earlier part of the run was not measured')
        if self.measured <= 0:
            return Reading(None, None, f'{self.source}, which has not moved')
        elapsed = self._clock() - self.begun
        measured = share * self.measured
        watts = measured / elapsed if elapsed > 0 else None
        return Reading(self.before + measured, watts, self.source)


# ---- GPUs -----------------------------------------------------------------------------------


class _EnergyCounter:
    """NVML's total energy (millijoules since the driver was loaded; Volta and newer)."""

    period = _COUNTER_PERIOD

    def __init__(self, nvml: Any, handle: Any):
        self._read = lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        self._last = self._read()

    def joules(self) -> float:
        now = self._read()
        # After the driver was reloaded the counter starts at 0; only the energy since then counts.
        used = now - self._last if now >= self._last else now
        self._last = now
        return used


class _PowerIntegral:
    """NVML's power (milliwatts) integrated over time, where there is no energy counter."""

    period = _POWER_PERIOD

    def __init__(self, nvml: Any, handle: Any, clock: Callable[[], float]):
        self._read = lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3
        self._clock = clock
        self._last = (clock(), self._read())

    def joules(self) -> float:
        then, before = self._last
        now, watts = self._clock(), self._read()
        self._last = (now, watts)
        return (now - then) * (before + watts) / 2


def _gpu_sensors(nvml: Any, environ: Mapping[str, str], local: Sequence[int] | None, clock):
    if nvml is None:
        try:
            import pynvml as nvml
        except ImportError:
            raise Unavailable('nvidia-ml-py is not installed') from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        raise Unavailable('no NVIDIA driver') from None
    handles = visible_devices(nvml, environ)
    if local is not None:
        handles = [handles[place] for place in local if place < len(handles)]
    if not handles:
        raise Unavailable('no GPU is visible to this process')
    try:
        sensors = [_EnergyCounter(nvml, handle) for handle in handles]
        kind = 'energy counter'
    except nvml.NVMLError:
        try:
            sensors = [_PowerIntegral(nvml, handle, clock) for handle in handles]
            kind = f'power read every {_POWER_PERIOD:g} s'
        except nvml.NVMLError as error:
            raise Unavailable(f'the GPU reports neither energy nor power ({error})') from None
    return sensors, f'NVML {kind}, {len(handles)} GPU{"s" if len(handles) > 1 else ""}'


def local_gpus() -> list[int]:
    """The positions among the visible GPUs of those that jax uses in this process."""
    import jax

    return [d.local_hardware_id for d in jax.local_devices() if d.platform == 'gpu']


def visible_devices(nvml: Any, environ: Mapping[str, str]) -> list[Any]:
    """NVML's handles of the GPUs behind CUDA_VISIBLE_DEVICES, in that order.

    Raises Unavailable where its numbers cannot be matched: CUDA counts the fastest GPU first and
    NVML by PCI address, which is the same only if all GPUs are of one kind.
    """
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    visible = environ.get('CUDA_VISIBLE_DEVICES')
    if visible is None:
        return handles
    uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    chosen = []
    for word in visible.split(','):
        word = word.strip()
        if word.startswith('MIG-'):
            raise Unavailable('a MIG slice has no energy counter of its own')
        if word.isdigit():
            kinds = {_text(nvml.nvmlDeviceGetName(handle)) for handle in handles}
            if len(kinds) > 1 and environ.get('CUDA_DEVICE_ORDER') != 'PCI_BUS_ID':
                raise Unavailable(
                    'GPUs of several kinds are numbered differently by CUDA and the driver; '
                    'set CUDA_DEVICE_ORDER=PCI_BUS_ID'
                )
            matches = [int(word)] if int(word) < len(handles) else []
        else:
            matches = [i for i, uuid in enumerate(uuids) if word and uuid.startswith(word)]
        if len(matches) != 1:
            break  # CUDA ignores everything from the first invalid entry on
        chosen.append(matches[0])
    return [handles[i] for i in dict.fromkeys(chosen)]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


# ---- the CPU --------------------------------------------------------------------------------


class _Rapl:
    """A RAPL counter (microjoules, starting again at 0 after max_energy_range_uj)."""

    period = _COUNTER_PERIOD

    def __init__(self, folder: pathlib.Path):
        self._file = folder / 'energy_uj'
        self._range = int((folder / 'max_energy_range_uj').read_text())
        self._last = int(self._file.read_text())

    def joules(self) -> float:
        now = int(self._file.read_text())
        used = now - self._last
        self._last = now
        return (used if used >= 0 else used + self._range) / 1e6


def _cpu_sensors(powercap: pathlib.Path):
    packages, memory = [], []
    # 'intel-rapl:0' is a package and 'intel-rapl:0:1' a part of it; AMD's have the same names.
    # Memory is not included in its package, so it is added; 'psys' would count everything twice.
    for folder in sorted(powercap.glob('intel-rapl:*')):
        try:
            name = (folder / 'name').read_text().strip()
        except OSError:
            continue
        if name.startswith('package'):
            packages.append(folder)
        elif name == 'dram':
            memory.append(folder)
    if not packages:
        raise Unavailable(f'no RAPL counters under {powercap}')
    try:
        sensors = [_Rapl(folder) for folder in (*packages, *memory)]
    except PermissionError:
        raise Unavailable('the RAPL counters are readable by root alone') from None
    except (OSError, ValueError) as error:
        raise Unavailable(f'the RAPL counters cannot be read: {error}') from None
    parts = f'{len(packages)} package{"s" if len(packages) > 1 else ""}'
    parts += ' and memory' if memory else ''
    return sensors, f'RAPL, {parts} (the whole machine, not this process alone)'
