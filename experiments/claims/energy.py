"""Claim 5, energy: joules by the hardware's counters, in windows; otherwise the word "unavailable"."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from experiments.claims import base, fits
from experiments.claims.base import MEASURED, UNAVAILABLE, Absent, Part, Settings, Shown

QUESTION = 'How many joules does a training step take, and how exact is sampled power?'
CLAIM = 'For deep learning a GPU does more work for a joule than a CPU.'
PERIOD = 0.1  # seconds between two samples of the power


def parts(settings: Settings) -> list[Part]:
    found: list[Part] = [('windows', lambda: windows(settings))]
    for watts in settings.power_limits:
        found.append((f'limit {watts} W', lambda w=watts: at_limit(w, settings)))
    return found


def windows(settings: Settings) -> dict[str, Any]:
    """Several windows of warm steps between two idle ones, by the counters and by sampled power.

    The device is warmed up first, and rests between; so the windows are in thermal steady state
    (the method of Zeus, arXiv:2208.06102).
    """
    from jaxdl.account.energy import Meter, local_gpus

    with Meter(None, local_devices=local_gpus()) as meter:
        time.sleep(0.5)
        parts_there = {k: v for k, v in meter.read().items() if v.joules is not None}
        if not parts_there:
            raise Absent(f'unavailable: {meter.describe()}')
        step, facts = _step()
        long = 4.0 if settings.quick else 30.0
        run_for(step, 2 * long)  # warm-up
        found = []
        idle = [measure_window(meter, lambda: time.sleep(long))]
        for _ in range(3 if settings.quick else 5):
            run_for(step, long / 2)
            found.append(measure_window(meter, lambda: run_for(step, long)))
        time.sleep(long)  # cool-down, so that the second idle window is comparable
        idle.append(measure_window(meter, lambda: time.sleep(long)))
        return {**facts, 'source': meter.describe(), 'idle': idle, 'windows': found}


def _step() -> tuple[Any, dict[str, float]]:
    """A training step that keeps the device busy, and its batch and FLOPs."""
    from experiments.bench import cases, jax_step

    case = cases.CASES['cnn']
    batch = case.gpu_batch if jax_step.GPU else case.batch
    step, facts = jax_step.build(case, batch, [], 1)
    return step, {'batch': batch, 'flops': 1e9 * facts['gflop']}


def run_for(step: Any, seconds: float) -> int:
    """How many steps were run in at least `seconds`."""
    begun, steps = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        step()
        steps += 1
    return steps


def measure_window(meter: Any, work: Any, sample: Any = None) -> dict[str, Any]:
    """The joules of each part that `work` took by the meter, and by power sampled beside it."""
    before, begun = meter.joules(), time.monotonic()
    with sampled(sample or _gpu_power()) as samples:
        steps = work()
    seconds, after = time.monotonic() - begun, meter.joules()
    used = {name: after[name] - before.get(name, 0.0) for name in after}
    watts = (
        fits.integrated(*samples) / (samples[0][-1] - samples[0][0])
        if len(samples[0]) > 1
        else None
    )
    return {
        'steps': steps or 0,
        'seconds': seconds,
        'joules': used,
        'sampled_joules': None if watts is None else watts * seconds,
    }


@contextlib.contextmanager
def sampled(read: Any) -> Iterator[tuple[list[float], list[float]]]:
    """While the block runs, a thread appends (times, watts); `read` gives watts, None: no samples."""
    times: list[float] = []
    watts: list[float] = []
    stop = threading.Event()

    def loop() -> None:
        while True:
            watts.append(read())
            times.append(time.monotonic())
            if stop.wait(PERIOD):
                return

    thread = threading.Thread(target=loop, daemon=True) if read else None
    if thread:
        thread.start()
    try:
        yield times, watts
    finally:
        stop.set()
        if thread:
            thread.join()


def _gpu_power() -> Any:
    """A function that reads the watts of the GPUs of this process by NVML, or None."""
    from jaxdl.account.energy import local_gpus

    if not local_gpus():
        return None
    nvml, handles = _handles()
    return lambda: sum(nvml.nvmlDeviceGetPowerUsage(handle) for handle in handles) / 1e3


def _handles() -> tuple[Any, list[Any]]:
    import os

    import pynvml

    from jaxdl.account.energy import local_gpus, visible_devices

    pynvml.nvmlInit()
    visible = visible_devices(pynvml, os.environ)
    return pynvml, [visible[place] for place in local_gpus()]


def at_limit(watts: int, settings: Settings) -> dict[str, Any]:
    """Joules and seconds of digits_cnn to 98 % with the cards limited to `watts`."""
    from jaxdl.account.energy import local_gpus

    if not local_gpus():
        raise Absent('unavailable: no NVIDIA GPU')
    nvml, handles = _handles()
    with limited(nvml, handles, watts):
        from experiments.claims.cpu_gpu import digits_to_target

        return digits_to_target(settings, f'limit-{watts}')


@contextlib.contextmanager
def limited(nvml: Any, handles: list[Any], watts: int) -> Iterator[None]:
    """While the block runs the cards' power is limited; the old limits come back afterwards.

    Raises Absent where the driver does not allow it.
    """
    old = [nvml.nvmlDeviceGetPowerManagementLimit(handle) for handle in handles]
    try:
        for handle in handles:
            try:
                nvml.nvmlDeviceSetPowerManagementLimit(handle, 1000 * watts)
            except nvml.NVMLError as error:
                raise Absent(
                    f'unavailable: the driver refuses a limit of {watts} W ({error})'
                ) from None
        yield
    finally:
        for handle, limit in zip(handles, old, strict=True):
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlDeviceSetPowerManagementLimit(handle, limit)


def summary(found: dict[str, Any], part: str) -> dict[str, float]:
    """Means over the windows, their spread, and the error of sampling, of 'gpu' or 'cpu'."""
    idle, _ = fits.spread([one['joules'][part] / one['seconds'] for one in found['idle']])
    costs = [
        fits.window(
            one['joules'][part], one['seconds'], steps=one['steps'], batch=found['batch'],
            flops=found['flops'], idle_watts=idle,
        )
        for one in found['windows']
    ]  # fmt: skip
    result = {name: fits.spread([cost[name] for cost in costs])[0] for name in costs[0]}
    result['idle_watts'] = idle
    result['deviation'] = fits.spread([cost['joules_per_step'] for cost in costs])[1]
    errors = [
        abs(one['sampled_joules'] / one['joules'][part] - 1)
        for one in found['windows']
        if one['sampled_joules'] is not None
    ]
    if part == 'gpu' and errors:
        result['sampling_error'] = max(errors)
    return result


def present(values: dict[str, Any], grams_per_kwh: float | None = None) -> Shown:
    shown = Shown(
        'Joules are unavailable on this machine: it has no sensor that can be read.', UNAVAILABLE
    )
    shown.notes.append(
        'Nothing is guessed from rated power. What a measurement on one H200 gave before stands in '
        'docs/gpu.md; the arithmetic (windows, idle part, sampling, CO₂) is tested with a fake meter.'
    )
    found = values.get('windows')
    if found is None:
        return shown
    shown.notes[0] = f'Measured by {found["source"]}.'
    rows, said = [], []
    for part in found['windows'][0]['joules']:
        one = summary(found, part)
        grams = fits.grams_of_carbon(1000 * one['joules_per_step'], grams_per_kwh)
        rows.append(
            [part.upper(), f'{one["joules_per_step"]:.4g} ± {one["deviation"]:.2g}', f'{one["joules_per_example"]:.4g}',
             f'{one["examples_per_joule"]:.4g}', base.number(one['flop_per_joule']), f'{one["watts"]:.0f}',
             f'{one["idle_watts"]:.0f}', f'{base.share(one["idle_joules"] / one["joules"])}',
             f'{base.share(one["sampling_error"], 1)}' if 'sampling_error' in one else 'unavailable',
             f'{grams:.3g} g' if grams is not None else 'no factor stated']
        )  # fmt: skip
        said.append(
            f'{part.upper()}: {one["joules_per_step"]:.3g} J a step of {found["batch"]} examples, '
            f'{base.amount(one["flop_per_joule"], "FLOP")} a joule'
        )
    shown.tables.append(
        ('A CNN step, windows in thermal steady state',
         ['part', 'J a step', 'J an example', 'examples a J', 'FLOP a J', 'watts', 'idle watts', 'idle part',
          'largest error of sampling', 'CO₂ of 1000 steps'], rows)
    )  # fmt: skip
    limits = {k: v for k, v in values.items() if k.startswith('limit') and v.get('joules')}
    if limits:
        least = min(limits, key=lambda k: sum(limits[k]['joules'].values()))
        said.append(f'the least joules to 98 % of the digits were at the {least}')
        shown.tables.append(
            ('digits_cnn to 98 % by power limit', ['limit', 'seconds', 'joules'],
             [[k, f'{v["seconds"]:.1f}', f'{sum(v["joules"].values()):.0f}'] for k, v in limits.items()])
        )  # fmt: skip
    shown.answer, shown.label = '; '.join(said) + '.', MEASURED
    return shown
