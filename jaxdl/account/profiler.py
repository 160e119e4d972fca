"""Traces some steps of a run, and summarises the trace as a table of operations.

`--profile=100:110` traces these steps; the signal SIGUSR2 traces the next steps of a running job.
XProf and Perfetto open the trace itself. The table joins its times with the FLOPs and bytes of the
compiled program.
"""

import collections
import dataclasses
import re
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.files import write_bytes

# Steps that are traced after SIGUSR2.
ON_REQUEST = 10
SHOWN = 20
# Operations that only call others; the time is counted in the operations that they call.
_CALLS = re.compile(r'(while|call|conditional|async-start|async-done)[.\d]*$')
# On a GPU most operations are nodes of a CUDA graph, and only their kernels have names: the name of
# the instruction with underscores, or a library's name. Equal instructions share one kernel.
_GRAPH = re.compile(r'command_buffer[.\d_]*$')


def parse(text: str) -> tuple[int, int] | None:
    """(100, 110) for '100:110', which means after step 100 until step 110; None for ''.

    Raises:
        UserError: the text has another form.
    """
    if not text:
        return None
    found = re.fullmatch(r'(\d+):(\d+)', text)
    if not found or int(found[1]) >= int(found[2]):
        raise UserError(
            f'--profile={text}: must be START:STOP in steps, START below STOP, such as 100:110'
        )
    return int(found[1]), int(found[2])


class Profiler:
    """Traces the steps of `span`, and the next steps whenever SIGUSR2 comes.

    Args:
        folder: the folder for traces and tables.
        span: the completed steps between which to trace, or None.
        text: gives the text of the compiled step, for FLOPs and bytes.
    """

    def __init__(self, folder: Path, span: tuple[int, int] | None, text: Callable[[], str]):
        self.folder, self.text = Path(folder), text
        self._span = span
        self._tracing: tuple[int, int] | None = None
        self._requested = False
        self._old: Any = None
        if threading.current_thread() is threading.main_thread() and hasattr(signal, 'SIGUSR2'):
            self._old = signal.signal(signal.SIGUSR2, self._request)

    def _request(self, number: int, frame: Any) -> None:
        del number, frame
        self._requested = True

    @property
    def tracing(self) -> bool:
        return self._tracing is not None

    def due(self, step: int) -> bool:
        """Whether `turn` has something to do after `step`."""
        if self._tracing is not None:
            return step >= self._tracing[1]
        return self._requested or (self._span is not None and step >= self._span[0])

    def turn(self, step: int) -> str:
        """Starts or stops a trace after `step`, and returns a message.

        All steps must have ended on the device.
        """
        if self._tracing is not None:
            return self._stop(step)
        if self._requested:
            self._requested, span = False, (step, step + ON_REQUEST)
        else:
            (start, stop), self._span = self._span or (step, step), None
            if step >= stop:
                return f'--profile={start}:{stop} lies before step {step}, where this run went on'
            span = (step, stop)
        return self._start(*span)

    def _start(self, start: int, stop: int) -> str:
        import jax

        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # events of Python calls would slow the steps down
        target = self.folder / f'{start}-{stop}'
        jax.profiler.start_trace(str(target), profiler_options=options)
        self._tracing = (start, stop)
        return f'profiling steps {start} to {stop}'

    def _stop(self, step: int) -> str:
        import jax

        start, stop = self._tracing or (step, step)
        self._tracing = None
        jax.profiler.stop_trace()
        target = self.folder / f'{start}-{stop}'
        table = summary(target, self.text(), steps=step - start)
        write_bytes(target / 'operations.txt', f'{table}\n'.encode())
        return f'{table}\ntrace: {target}'

    def close(self) -> None:
        """Ends a trace without a message, and restores the handler of SIGUSR2."""
        if self._tracing is not None:
            import jax

            self._tracing = None
            jax.profiler.stop_trace()
        if self._old is not None:
            signal.signal(signal.SIGUSR2, self._old)
            self._old = None


# ---- reading a trace ------------------------------------------------------------------------


@dataclasses.dataclass
class Operation:
    """An instruction of the compiled program, with its time in a trace.

    Attributes:
        name: name of the instruction.
        seconds: time in the whole trace, on all devices.
        calls: how often it ran.
        flops: FLOPs of one call; 0 if it has no products.
        bytes: bytes of one call.
        source: the place in the model that it comes from.
    """

    name: str
    seconds: float = 0.0
    calls: int = 0
    flops: float = 0.0
    bytes: int = 0
    source: str = ''


@dataclasses.dataclass
class Trace:
    """The operations of one program in a trace.

    Attributes:
        operations: the operations, the longest first.
        busy: share of the time between the first and the last operation in which one was running,
            the mean over the devices.
        devices: number of devices in the trace.
    """

    operations: list[Operation]
    busy: float
    devices: int


def summary(folder: Path, text: str, *, steps: int) -> str:
    """The table of a trace: operations with their share of the time, FLOP/s and bytes/s."""
    trace = read(folder, text)
    total = sum(operation.seconds for operation in trace.operations)
    if not total:
        return f'the trace of {steps} steps in {folder} holds no operation of the training step'
    lines = [
        f'{steps} steps, {1e3 * total / steps / trace.devices:.2f} ms of operations a step and '
        f'device, something running {100 * trace.busy:.0f} % of the time',
        f'{"share":>6} {"ms/step":>8} {"calls":>6} {"GFLOP/s":>9} {"GB/s":>7}  operation',
    ]
    for one in trace.operations[:SHOWN]:
        rate = one.calls / one.seconds / 1e9
        per_step = steps * trace.devices
        flops = f'{one.flops * rate:,.0f}' if one.flops else ''
        moved = f'{one.bytes * rate:,.1f}' if one.bytes else ''
        lines.append(
            f'{100 * one.seconds / total:5.1f}% {1e3 * one.seconds / per_step:8.3f} '
            f'{one.calls / per_step:6.0f} {flops:>9} {moved:>7}  {one.name}  {one.source}'
        )
    rest = trace.operations[SHOWN:]
    if rest:
        share = 100 * sum(one.seconds for one in rest) / total
        lines.append(f'{share:5.1f}% in {len(rest)} more')
    return '\n'.join(lines)


def read(folder: Path, text: str) -> Trace:
    """Reads the newest trace in `folder`; `text` is the compiled program's."""
    from jax.profiler import ProfileData

    files = sorted(Path(folder).glob('**/*.xplane.pb'))
    if not files:
        raise RuntimeError(f'the profiler wrote no trace into {folder}')
    operations = _known(text)
    kernels = {name.replace('.', '_').replace('-', '_'): name for name in operations}
    module = re.match(r'HloModule ([^,\s]+)', text)
    found: dict[str, Operation] = {}
    spans: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    for event, device in _events(ProfileData.from_file(str(files[-1]))):
        stats = {key: value for key, value in event.stats if key in ('hlo_op', 'hlo_module')}
        name = str(stats.get('hlo_op', ''))
        if _GRAPH.match(name):
            name = kernels.get(event.name, event.name)
        if not name or _CALLS.match(name):
            continue
        if module and stats.get('hlo_module') not in (None, module[1]):
            continue
        one = found.setdefault(name, operations.get(name, Operation(name)))
        one.seconds += event.duration_ns / 1e9
        one.calls += 1
        spans[device].append((event.start_ns, event.start_ns + event.duration_ns))
    ordered = sorted(found.values(), key=lambda one: -one.seconds)
    busy = [_covered(parts) for parts in spans.values()]
    return Trace(ordered, sum(busy) / max(len(busy), 1), max(len(spans), 1))


def _events(data: Any) -> Iterable[tuple[Any, str]]:
    """Yields (event, device) of the lines of a trace that hold a device's operations."""
    for plane in data.planes:
        lines = list(plane.lines)
        if plane.name.startswith('/device:'):
            # The streams hold the kernels; other lines repeat their time at a higher level.
            streams = [line for line in lines if line.name.startswith('Stream')]
            for line in streams or [line for line in lines if line.name == 'XLA Ops']:
                for event in line.events:
                    yield event, plane.name
            continue
        for line in lines:
            for event in line.events:
                ordinal = [value for key, value in event.stats if key == 'device_ordinal']
                if ordinal:
                    yield event, str(ordinal[0])


def _known(text: str) -> dict[str, Operation]:
    """The operations of the compiled program, without times; {} without a text."""
    from jaxdl.compiled import kernels as kernels_lib

    found = {}
    for kernel, _ in kernels_lib.read(text).kernels() if text else ():
        words = kernel.op_name.split('/')
        source = '/'.join(word for word in words[1:] if not word.startswith('closed_call'))
        found[kernel.name] = Operation(
            kernel.name, flops=kernel.flops, bytes=kernel.bytes, source=source[-70:]
        )
    return found


def _covered(spans: list[tuple[float, float]]) -> float:
    """The share of the time from the first start to the last end that the spans cover."""
    spans.sort()
    covered, reach = 0.0, spans[0][0]
    for start, end in spans:
        covered += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    whole = reach - spans[0][0]
    return covered / whole if whole else 1.0
