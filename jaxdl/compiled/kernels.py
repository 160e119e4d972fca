"""What a compiled program does on one device: kernels, collectives, and what stands out.

`read(text)` walks the schedule of the text of `compiled.as_text()`, loops times their turns.
"""

import collections
import dataclasses
from collections.abc import Iterator

from jaxdl.compiled import hlo
from jaxdl.compiled.hlo import Computation, Instruction, Module, Shape
from jaxdl.compiled.kernel_cost import batch_dims, dtype_name, fusion_bytes, plain_bytes, product

COLLECTIVES = (
    'all-reduce',
    'all-gather',
    'reduce-scatter',
    'all-to-all',
    'ragged-all-to-all',
    'collective-permute',
    'collective-broadcast',
)
_FREE = frozenset(
    """
    parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id
    add-dependency opt-barrier
    """.split()
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One operation that the device executes.

    Attributes:
        name: the instruction's name.
        kind: 'matmul', 'conv', 'attention' or 'other'.
        library: what executes it: 'cuDNN', 'cuBLAS', 'Triton', 'XLA', or a custom call's target.
        dtype: of the operands of its products ('bfloat16'), '' where it has none.
        flops: of its products, once.
        bytes: that it reads and writes, once.
        op_name: where in the user's program it comes from.
        scores: elements of each result of a batched product, for finding unfused attention.
        exponentials: elements of each exponential.
    """

    name: str
    kind: str
    library: str
    dtype: str
    flops: float
    bytes: int
    op_name: str
    scores: tuple[int, ...] = ()
    exponentials: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
        name: the instruction's name.
        kind: 'all-reduce', 'all-gather', ..., or 'host-copy' between device and host memory.
        bytes: of the whole buffer in one device: what is reduced, the gathered result, what is
            scattered; all arrays of a combined collective together.
        dtype: of the arrays, e.g. 'bfloat16'; several are joined by '+'.
        groups: the devices that exchange with each other.
        asynchronous: compute may run between its start and its end.
        op_name: where in the user's program it comes from.
    """

    name: str
    kind: str
    bytes: int
    dtype: str
    groups: tuple[tuple[int, ...], ...]
    asynchronous: bool
    op_name: str

    @property
    def size(self) -> int:
        """Devices in a group."""
        return max((len(group) for group in self.groups), default=1)

    @property
    def wire_bytes(self) -> float:
        """Bytes that one device has to send at least (ring algorithms)."""
        n = self.size
        if self.kind in ('collective-permute', 'host-copy', 'collective-broadcast'):
            return float(self.bytes)
        return self.bytes * (n - 1) / n * (2 if self.kind == 'all-reduce' else 1)

    def crosses(self, gpus_per_host: int) -> bool:
        """Whether devices of different hosts exchange."""
        return any(len({d // gpus_per_host for d in group}) > 1 for group in self.groups)


@dataclasses.dataclass(frozen=True)
class Launch:
    """A kernel is executed."""

    kernel: Kernel


@dataclasses.dataclass(frozen=True)
class Start:
    """A collective begins; a synchronous one is followed by its Done at once."""

    collective: Collective


@dataclasses.dataclass(frozen=True)
class Done:
    """A collective, named like its Start, must have ended here."""

    name: str


@dataclasses.dataclass(frozen=True)
class HloLoop:
    """A part of the schedule that runs several times, or one of several ways (turns=1)."""

    turns: int
    body: tuple['Event', ...]


Event = Launch | Start | Done | HloLoop


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The schedule of one device.

    Attributes:
        events: in order of execution.
        notes: what had to be assumed.
    """

    events: tuple[Event, ...]
    notes: tuple[str, ...]

    def kernels(self) -> list[tuple[Kernel, int]]:
        """Every kernel with the number of times that it runs."""
        return [(e.kernel, n) for e, n in _flat(self.events, 1) if isinstance(e, Launch)]

    def collectives(self) -> list[tuple[Collective, int]]:
        """Every collective with the number of times that it runs."""
        return [(e.collective, n) for e, n in _flat(self.events, 1) if isinstance(e, Start)]

    def overlapped(self) -> set[str]:
        """Names of the collectives between whose start and end a kernel is scheduled."""
        found: set[str] = set()
        _overlapped(self.events, found)
        return found

    def traffic(self) -> dict[str, tuple[int, float]]:
        """(number, bytes) of the collectives of a step by kind; bytes as in Collective."""
        total: dict[str, tuple[int, float]] = {}
        for collective, times in self.collectives():
            number, size = total.get(collective.kind, (0, 0.0))
            total[collective.kind] = (number + times, size + collective.bytes * times)
        return total

    def float32_products(self) -> list[tuple[Kernel, int]]:
        """Matrix products and convolutions with float32 operands."""
        return [(k, n) for k, n in self.kernels() if k.flops and k.dtype in ('float32', 'float64')]

    def unfused_attention(self) -> list[tuple[int, int]]:
        """(elements of the scores, times) of softmaxes over the result of a batched product.

        Such attention writes [batch, heads, time, time] to memory; a fused kernel does not.
        """
        softmaxes = collections.Counter()
        products = set()
        for kernel, times in self.kernels():
            products.update(kernel.scores)
            for size in set(kernel.exponentials):
                softmaxes[size] += times
        return [(size, times) for size, times in softmaxes.items() if size in products]

    @property
    def bytes(self) -> float:
        """Bytes that the kernels of a step read and write."""
        return float(sum(kernel.bytes * times for kernel, times in self.kernels()))


def read(text: str, *, devices: int = 1) -> Schedule:
    """Reads the text of a compiled program that `devices` devices run together."""
    module = hlo.parse(text)
    reader = _Reader(module, devices)
    events = tuple(reader.events(module.entry))
    if not module.scheduled:
        reader.notes.append('the text is not scheduled: the overlap of collectives is unknown')
    return Schedule(events, tuple(dict.fromkeys(reader.notes)))


def _flat(events: tuple[Event, ...], times: int) -> Iterator[tuple[Event, int]]:
    for event in events:
        if isinstance(event, HloLoop):
            yield from _flat(event.body, times * event.turns)
        else:
            yield event, times


def _overlapped(events: tuple[Event, ...], found: set[str]) -> bool:
    open_: set[str] = set()
    works = False
    for event in events:
        inner = isinstance(event, HloLoop) and _overlapped(event.body, found)
        if isinstance(event, Launch) or inner:
            found |= open_
            works = True
        elif isinstance(event, Start) and event.collective.asynchronous:
            open_.add(event.collective.name)
        elif isinstance(event, Done):
            open_.discard(event.name)
    return works


class _Reader:
    """Turns computations into events."""

    def __init__(self, module: Module, devices: int):
        self.module = module
        self.devices = devices
        self.notes: list[str] = []

    def events(self, computation: Computation) -> Iterator[Event]:
        for instruction in computation.instructions:
            yield from self._events(computation, instruction)

    def _events(self, computation: Computation, instruction: Instruction) -> Iterator[Event]:
        opcode = instruction.opcode
        if opcode in _FREE:
            return
        if opcode == 'while':
            turns = hlo.trip_count(self.module, instruction)
            if turns is None:
                self.notes.append(f'the loop {instruction.name} of unknown length counts once')
            body = self._inner(instruction.called('body'))
            yield HloLoop(1 if turns is None else turns, body)
        elif opcode == 'conditional':
            ways = [self._inner(name) for name in instruction.branches]
            if ways:
                yield HloLoop(
                    1, max(ways, key=lambda way: sum(_weight(e) * n for e, n in _flat(way, 1)))
                )
        elif opcode == 'call' or (opcode == 'async-start' and not self._wrapped(instruction)):
            yield from self._inner(instruction.called('to_apply') or instruction.called('calls'))
        elif opcode.endswith('-start'):
            wrapped = self._wrapped(instruction)
            owner, inner = wrapped if wrapped else (computation, instruction)
            collective = self._collective(owner, inner, instruction)
            if collective:
                yield Start(collective)
            elif opcode == 'copy-start':  # within the device
                yield Launch(self._kernel(computation, instruction))
        elif opcode.endswith('-done'):
            # The operand of a done, or of the updates between, leads to the start.
            start = computation.operand(instruction, 0)
            while start is not None and start.opcode.endswith('-update'):
                start = computation.operand(start, 0)
            yield Done(start.name if start else '')
        elif opcode in COLLECTIVES:
            collective = self._collective(computation, instruction, instruction)
            if collective:
                yield Start(collective)
                yield Done(collective.name)
        elif not opcode.endswith('-update'):
            yield Launch(self._kernel(computation, instruction))

    def _inner(self, name: str | None) -> tuple[Event, ...]:
        computation = self.module.computations.get(name or '')
        return tuple(self.events(computation)) if computation else ()

    def _wrapped(self, start: Instruction) -> tuple[Computation, Instruction] | None:
        """The collective inside a general async-start, if it is one."""
        inner = self.module.computations.get(start.called('calls') or '')
        if start.opcode != 'async-start' or inner is None:
            return None
        found = [i for i in inner.instructions if i.opcode in COLLECTIVES]
        return (inner, found[0]) if found else None

    def _collective(
        self, computation: Computation, inner: Instruction, start: Instruction
    ) -> Collective | None:
        kind = inner.opcode.removesuffix('-start')
        sent = computation.operand_shapes(inner)
        if kind == 'copy':
            host = {shape.host for shape in (*sent, *inner.shapes)}
            if host != {True, False}:
                return None
            size = sum(shape.bytes for shape in sent)
            return Collective(start.name, 'host-copy', size, _joined(sent), (), True, inner.op_name)
        if kind not in COLLECTIVES:
            self.notes.append(f'{inner.opcode} {inner.name} is not counted')
            return None
        groups = hlo.replica_groups(inner.attributes, self.devices)
        size = sum(shape.bytes for shape in sent)
        if kind == 'all-gather':
            size *= max(len(group) for group in groups)
        asynchronous = start.opcode.endswith('-start') and '"is_sync":true' not in start.attributes
        return Collective(
            start.name,
            kind,
            size,
            _joined(sent),
            tuple(tuple(group) for group in groups),
            asynchronous,
            inner.op_name,
        )

    def _kernel(self, computation: Computation, instruction: Instruction) -> Kernel:
        target = instruction.target
        inside = [(computation, instruction)]
        if instruction.opcode == 'fusion':
            inside = list(self._fused(instruction.called('calls')))
        flops, kind, dtype, scores, exponentials = 0.0, 'other', '', [], []
        for owner, part in inside:
            if part.opcode in ('exponential', 'exponential-minus-one'):
                exponentials += [shape.elements for shape in part.shapes]
            found = product(owner, part)
            if found:
                flops += found[1]
                kind, dtype = found[0], found[2]
            if part.opcode == 'dot' and part.dims('lhs_batch_dims'):
                scores.append(part.shapes[0].elements)
            elif part.target.startswith('__cublas') and batch_dims(part):
                scores.append(part.shapes[0].elements)
        if instruction.opcode == 'fusion':
            size = fusion_bytes(computation, instruction, self.module)
        else:
            size = plain_bytes(computation, instruction)
        return Kernel(
            instruction.name,
            kind,
            _library(instruction, target),
            dtype,
            flops,
            size,
            instruction.op_name,
            tuple(scores),
            tuple(exponentials),
        )

    def _fused(self, name: str | None) -> Iterator[tuple[Computation, Instruction]]:
        computation = self.module.computations.get(name or '')
        if computation is None:
            return
        for instruction in computation.instructions:
            if instruction.opcode == 'fusion':
                yield from self._fused(instruction.called('calls'))
            else:
                yield computation, instruction


def _weight(event: Event) -> float:
    return event.kernel.flops + event.kernel.bytes if isinstance(event, Launch) else 0.0


def _joined(shapes: list[Shape]) -> str:
    return '+'.join(dict.fromkeys(dtype_name(shape.dtype) for shape in shapes))


def _library(instruction: Instruction, target: str) -> str:
    if '__cudnn' in target or '"kind":"__cudnn' in instruction.attributes:
        return 'cuDNN'
    if '__cublas' in target:
        return 'cuBLAS'
    if '__triton' in instruction.attributes or 'triton' in target:
        return 'Triton'
    return target or 'XLA'
