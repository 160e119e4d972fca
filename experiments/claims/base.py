"""What the claims share: where results are kept, what a claim shows, child processes, clocks."""

import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.files import read_object, write_json

MEASURED, PREDICTED, UNAVAILABLE = 'measured', 'predicted', 'unavailable'
Part = tuple[str, Callable[[], Any]]


class Absent(Exception):
    """A part cannot be had on this machine; the message says why. That is a result, no failure."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the claims are run.

    Attributes:
        quick: smaller and fewer, for two cores and five minutes.
        folder: of the results; runs and stand-in data go below it.
        power_limits: watts that claim 5 may set, where the driver allows it.
        grams_per_kwh: CO₂ of the electricity, as the user states it.
    """

    quick: bool
    folder: str
    power_limits: tuple[int, ...] = ()
    grams_per_kwh: float | None = None


@dataclasses.dataclass
class Shown:
    """What a page shows of a claim.

    Attributes:
        answer: one sentence with its number.
        label: 'measured', 'predicted' or 'unavailable'.
        figures: (title, matplotlib figure).
        tables: (title, head, rows).
        notes: how a reader follows it, a paragraph each.
    """

    answer: str
    label: str
    figures: list[tuple[str, Any]] = dataclasses.field(default_factory=list)
    tables: list[tuple[str, list[str], list[list[Any]]]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


class Results:
    """The parts of one claim in a JSON file, written after each.

    Raises:
        UserError: the file is of the other mode.
    """

    def __init__(self, folder: Path, claim: str, *, quick: bool):
        self.path = folder / f'{claim}.json'
        self.data: dict[str, Any] = {'claim': claim, 'quick': quick, 'parts': {}}
        if self.path.exists():
            self.data = read_object(self.path)
            if self.data['quick'] != quick:
                here, there = ('quick', 'full') if self.data['quick'] else ('full', 'quick')
                raise UserError(
                    f'--workdir={folder}: holds the results of {here} mode, this call is in {there} '
                    'mode; give another folder'
                )

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        return self.data['parts']

    def values(self) -> dict[str, Any]:
        """{part: its result} of those that have one."""
        return {name: one['value'] for name, one in self.parts.items() if 'value' in one}

    def without(self) -> dict[str, str]:
        """{part: why it has none}."""
        return {
            name: one.get('absent') or one.get('failed') or ''
            for name, one in self.parts.items()
            if 'value' not in one
        }

    def run(self, parts: Iterable[Part], *, seconds: float = float('inf')) -> None:
        """Runs what is not there yet; a part that failed is tried again. Begins none after `seconds`."""
        begun = time.monotonic()
        self.data |= {'about': about(), 'pending': []}
        for name, work in parts:
            if {'value', 'absent'} & set(self.parts.get(name, {})):
                continue
            if time.monotonic() - begun > seconds:
                self.data['pending'].append(name)
                continue
            started = time.monotonic()
            try:
                found: dict[str, Any] = {'value': work()}
            except Absent as error:
                found = {'absent': str(error)}
            except Exception as error:
                traceback.print_exc()
                first = ' '.join(str(error).split())[:300]
                found = {'failed': f'{type(error).__name__}: {first}'}
            self.parts[name] = {**found, 'seconds': round(time.monotonic() - started, 2)}
            write_json(self.path, self.data)
            print(f'  {name}: {_outcome(found)} ({self.parts[name]["seconds"]:.1f} s)', flush=True)
        for name in self.data['pending']:
            print(f'  {name}: left for the next call', flush=True)
        write_json(self.path, self.data)


def _outcome(found: dict[str, Any]) -> str:
    if 'value' in found:
        return 'done'
    return f'absent, {found["absent"]}' if 'absent' in found else f'failed, {found["failed"]}'


def about() -> dict[str, Any]:
    """What the parts ran on, without opening a device."""
    from jaxdl.record.run_info import git_revision

    git = git_revision() or {}
    return {
        'processor': processor(),
        'cores': cores(),
        'gpus': gpu_names(),
        'git': git.get('revision') or git.get('commit') or '',
        'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    }


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line.partition(':')[2].strip() for line in lines if 'model name' in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def of_cores(count: int) -> str:
    """'1 core', '2 cores'."""
    return f'{count} core{"" if count == 1 else "s"}'


def compile_quickly() -> None:
    """Has XLA leave its costly optimisations for CPUs out; call it before jax is imported."""
    from jaxlib.version import __version__

    if __version__ == '0.10.2':  # by version, since XLA aborts on an unknown flag
        flags = (
            '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
            '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
        )
        os.environ['XLA_FLAGS'] = f'{flags} {os.environ.get("XLA_FLAGS", "")}'


def gpu_names() -> list[str]:
    """The NVIDIA GPUs of this machine, as the driver calls them; [] without one."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        names = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
        return [name.decode() if isinstance(name, bytes) else name for name in names]
    except Exception:  # no package, no driver, no permission: none can be used
        return []


def child(module: str, spec: dict[str, Any], *, env: dict[str, str] | None = None) -> Any:
    """What `python -m module SPEC` prints last, as JSON. Raises RuntimeError with its last words."""
    words = [sys.executable, '-m', module, json.dumps(spec)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(('{', '['))]
    if done.returncode or not lines:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f'exit {done.returncode}: {said[-1] if said else "nothing was said"}')
    return json.loads(lines[-1])


def compiler_is_there() -> bool:
    """Whether the CUDA compiler is installed, with which plans are more than estimates."""
    from jaxdl.compiled import gpu_compile

    return (gpu_compile.package_folder() / 'jax_cuda12_plugin').is_dir()


def plan(words: list[str], devices: str) -> dict[str, Any]:
    """`jaxdl plan` of a config for GPUs that are not here. Raises Absent without the CUDA compiler.

    Without it the plan would be an estimate from a CPU program, whose times say nothing of a GPU.
    """
    if not compiler_is_there():
        raise Absent('the CUDA compiler is not installed (requirements-plan.txt)')
    command = [sys.executable, '-m', 'jaxdl', 'plan', *words, f'--devices={devices}', '--json']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def seconds_of(
    call: Callable[[], Any], *, enough: float = 0.5, least: int = 3, most: int = 200
) -> float:
    """The median seconds of `call`, which must wait for its result; after one call to warm up."""
    call()
    times: list[float] = []
    while len(times) < least or (sum(times) < enough and len(times) < most):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def number(value: float, digits: int = 3) -> str:
    """A number with `digits` digits that count: 0.0123, 12.3, 1,230, 1.23 M."""
    size = abs(value)
    for limit, letter in ((1e18, 'E'), (1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M')):
        if size >= limit:
            return f'{value / limit:.{digits}g} {letter}'
    if size >= 1000:
        return f'{value:,.0f}'
    return f'{value:.{digits}g}'


def amount(value: float, unit: str, digits: int = 3) -> str:
    """A number with its unit: '7,060 J', '1.2 MJ', '348 TFLOP'."""
    text = number(value, digits)
    return f'{text}{unit}' if text[-1].isalpha() else f'{text} {unit}'


def share(value: float, digits: int = 0) -> str:
    """'14 %' of 0.14."""
    return f'{100 * value:.{digits}f} %'


def duration(seconds: float) -> str:
    """'3.2 ms', '12 s', '5.1 h', '3.4 days'."""
    for limit, name in ((2 * 86400, 86400), (2 * 3600, 3600), (120, 60)):
        if seconds >= limit:
            words = {86400: 'days', 3600: 'hours', 60: 'min'}
            return f'{number(seconds / name)} {words[name]}'
    return f'{number(seconds)} s' if seconds >= 1 else f'{number(1e3 * seconds)} ms'
