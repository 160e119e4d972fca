"""Reads the text of a compiled XLA program (`compiled.as_text()`), of the CPU and of CUDA.

Only syntax lives here: computations, instructions, shapes, the groups of devices of a collective,
trip counts. What the program does is read off in `compiled.py`.
"""

import dataclasses
import functools
import itertools
import math
import re

import numpy as np

_BITS = {'pred': 8, 'token': 0, 'opaque': 0}
_SHAPE = re.compile(r'([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?')


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: the element type in XLA's words ('bf16'), its dimensions, and its memory space.

    Attributes:
        dtype: 'f32', 'bf16', 's32', 'f8e4m3fn', ...
        dims: sizes.
        host: the array lives in host memory (memory space 5).
    """

    dtype: str
    dims: tuple[int, ...]
    host: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return math.ceil(self.elements * _bits(self.dtype) / 8)


@functools.cache
def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.match(r'(?:bf|f|s|u|c)(\d+)', dtype)
    return int(found.group(1)) if found else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: without the '%'.
        opcode: 'fusion', 'all-reduce-start', 'custom-call', ...
        shapes: the arrays of the result, tuples flattened.
        operands: names of the operands.
        arguments: the text between the parentheses.
        attributes: the text after them.
        root: this is the result of its computation.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    root: bool

    @property
    def bytes(self) -> int:
        """Bytes of the result."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def op_name(self) -> str:
        """Where in the user's program it comes from, e.g. 'jit(step)/dot_general'."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ''

    @property
    def target(self) -> str:
        """The target of a custom call, or ''."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found.group(1) if found else ''

    def called(self, key: str) -> str | None:
        """The computation that the attribute `key` ('calls', 'body', ...) names, or None."""
        found = re.search(rf'(?:^|[ ,]){key}=%?([\w.\-]+)', self.attributes)
        return found.group(1) if found else None

    @property
    def branches(self) -> tuple[str, ...]:
        """The computations among which a conditional chooses."""
        found = re.search(r'branch_computations=\{([^}]*)\}', self.attributes)
        if found:
            return tuple(name.strip().lstrip('%') for name in found.group(1).split(','))
        names = (self.called('true_computation'), self.called('false_computation'))
        return tuple(name for name in names if name)

    def dims(self, key: str) -> tuple[int, ...]:
        """The numbers of an attribute like `lhs_contracting_dims={0,2}`."""
        found = re.search(rf'{key}=\{{([\d,]*)\}}', self.attributes)
        return tuple(int(d) for d in found.group(1).split(',') if d) if found else ()


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions, in the order in which they are scheduled where they are."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        return next((i for i in self.instructions if i.root), self.instructions[-1])

    def operand(self, instruction: Instruction, index: int) -> Instruction | None:
        """The instruction that makes operand `index`, or None."""
        if index >= len(instruction.operands):
            return None
        return self.by_name.get(instruction.operands[index])

    def operand_shapes(self, instruction: Instruction) -> list[Shape]:
        """All arrays that the operands hold, tuples flattened."""
        found = (self.by_name.get(name) for name in instruction.operands)
        return [shape for operand in found if operand for shape in operand.shapes]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
        computations: by name.
        entry: the one that is run.
        scheduled: whether the order of the instructions is the order of execution.
    """

    computations: dict[str, Computation]
    entry: Computation
    scheduled: bool


def parse(text: str) -> Module:
    """Parses a module; raises ValueError if `text` holds no entry computation."""
    computations: dict[str, Computation] = {}
    entry = None
    header, lines = None, []
    for line in text.splitlines():
        if header is None:
            found = re.match(r'(ENTRY )?%?([\w.\-]+) .*\{\s*$', line)
            # Tables of files and frames, and the module's own line, hold no body.
            if found and not line.startswith('HloModule') and ('->' in line or found.group(1)):
                header, lines = found, []
            continue
        if line.startswith('}'):
            found = [parse_instruction(text) for text in lines]
            body = tuple(instruction for instruction in found if instruction)
            computation = Computation(header.group(2), body)
            computations[computation.name] = computation
            if header.group(1):
                entry = computation
            header = None
        else:
            lines.append(line)
    if entry is None:
        raise ValueError('not the text of a compiled XLA program: it has no ENTRY computation')
    return Module(computations, entry, 'is_scheduled=true' in text.split('\n', 1)[0])


def parse_instruction(line: str) -> Instruction | None:
    """Parses `%name = shape opcode(operands), attributes`; None for anything else."""
    found = re.match(r'\s*(ROOT )?%?([\w.\-]+) = ', line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.find(' ')
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode = re.match(r'([\w\-]+)\(', rest)
    if not opcode:
        return None
    closing = _closing(rest, opcode.end() - 1)
    arguments = rest[opcode.end() : closing]
    return Instruction(
        name=found.group(2),
        opcode=opcode.group(1),
        shapes=shapes(shape),
        operands=tuple(re.findall(r'%([\w.\-]+)', arguments)),
        arguments=arguments,
        attributes=rest[closing + 1 :].lstrip(', '),
        root=bool(found.group(1)),
    )


def _closing(text: str, start: int) -> int:
    depth, quoted = 0, False
    for place in range(start, len(text)):
        character = text[place]
        if character == '"' and text[place - 1] != '\\':
            quoted = not quoted
        elif not quoted and character == '(':
            depth += 1
        elif not quoted and character == ')':
            depth -= 1
            if depth == 0:
                return place
    return len(text)


def shapes(text: str) -> tuple[Shape, ...]:
    """All arrays in the text of a shape, tuples flattened: 'f32[8,4]{1,0}' → one Shape."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        sizes = tuple(int(d.lstrip('<=')) for d in dims.split(',') if d)
        found.append(Shape(dtype, sizes, 'S(5)' in layout))
    return tuple(found)


def trip_count(module: Module, loop: Instruction) -> int | None:
    """Turns of a while loop: the compiler's note, or what its condition compares; None if unknown.

    A condition is read as `counter < constant`, which may stand in a fusion of its own, with the
    counter's first value and step where these are constants, else 0 and 1, as a scan counts.
    """
    found = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if found:
        return int(found.group(1))
    condition = module.computations.get(loop.called('condition') or '')
    if condition is None:
        return None
    inside, root, given = condition, condition.root, {}
    if root.opcode == 'fusion':
        inside = module.computations.get(root.called('calls') or '')
        if inside is None:
            return None
        outside = [condition.operand(root, i) for i in range(len(root.operands))]
        given = _parameters(inside, outside)
        root = inside.root
    if 'direction=LT' not in root.attributes:
        return None
    sides = [given.get(name, inside.by_name.get(name)) for name in root.operands]
    limits = [value for side in sides if (value := _constant(side)) is not None]
    if len(limits) != 1:
        return None
    start, step = 0, 1
    places = [int(i) for side in sides for i in _tuple_index(side)]
    if len(places) == 1:
        start = _first_value(module, loop, places[0])
        step = _step(module, loop, places[0])
    return max(0, -(-(limits[0] - start) // step))


def _parameters(inside: Computation, given: list) -> dict[str, Instruction | None]:
    """{name of a parameter of a called computation: the instruction that is passed for it}."""
    return {
        part.name: given[int(part.arguments)]
        for part in inside.instructions
        if part.opcode == 'parameter' and int(part.arguments) < len(given)
    }


def _constant(part: Instruction | None) -> int | None:
    if part is not None and part.opcode == 'constant' and re.fullmatch(r'-?\d+', part.arguments):
        return int(part.arguments)
    return None


def _tuple_index(part: Instruction | None) -> list[str]:
    if part is None or part.opcode != 'get-tuple-element':
        return []
    return re.findall(r'(?:^|[ ,])index=(\d+)', part.attributes)


def _first_value(module: Module, loop: Instruction, place: int) -> int:
    """The constant with which element `place` of a loop's state begins; 0 if it is none."""
    for owner in module.computations.values():
        if owner.by_name.get(loop.name) is loop:
            state = owner.operand(loop, 0)
            value = owner.operand(state, place) if state and state.opcode == 'tuple' else None
            while value is not None and value.opcode in ('copy', 'bitcast'):
                value = owner.operand(value, 0)
            return _constant(value) or 0
    return 0


def _step(module: Module, loop: Instruction, place: int) -> int:
    """The constant that a turn adds to element `place` of a loop's state; 1 if it is none."""
    body = module.computations.get(loop.called('body') or '')
    if body is None or body.root.opcode != 'tuple':
        return 1
    owner, value = body, body.operand(body.root, place)
    while value is not None and value.opcode in ('copy', 'bitcast'):
        value = owner.operand(value, 0)
    if value is not None and value.opcode == 'fusion':
        owner = module.computations.get(value.called('calls') or '', owner)
        value = owner.root
    if value is None or value.opcode != 'add':
        return 1
    added = [_constant(owner.operand(value, i)) for i in range(len(value.operands))]
    return next((number for number in added if number), 1)


def replica_groups(attributes: str, devices: int) -> list[list[int]]:
    """The groups of devices that take part in a collective together.

    Understands `{{0,1},{2,3}}`, `[2,4]<=[4,2]T(1,0)`, and the mesh form
    `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`; `{}` and nothing mean all devices.
    """
    found = re.search(
        r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}', attributes
    )
    if found:
        return _mesh_groups(*found.groups())
    found = re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes)
    if found:
        order = _iota(found.group(2), found.group(3))
        return order.reshape(_numbers(found.group(1))).tolist()
    found = re.search(r'replica_groups=\{(\{[\d,{} ]*\})\}', attributes)
    if found:
        return [_numbers(group) for group in re.findall(r'\{([\d, ]*)\}', found.group(1))]
    found = re.search(r'source_target_pairs=\{(\{[\d,{} ]*\})\}', attributes)
    if found:
        return [_numbers(pair) for pair in re.findall(r'\{([\d, ]*)\}', found.group(1))]
    return [list(range(devices))]


def _mesh_groups(axes: str, order: str | None, named: str) -> list[list[int]]:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    total = math.prod(sizes.values())
    ids = np.arange(total)
    if order:
        found = re.match(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', order)
        ids = _iota(*found.groups()).reshape(-1) if found else np.array(_numbers(order))
    # An axis may be split: 'a':(2)4 is the part of 'a' of size 4 inside of 2.
    factors: list[tuple[str, int, int]] = []
    wanted = [
        (name, int(before or 1), int(size) if size else sizes[name])
        for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", named)
    ]
    for name, size in sizes.items():
        cuts = {1, size}
        for other, before, part in wanted:
            if other == name:
                cuts |= {before, before * part}
        edges = sorted(cuts)
        for low, high in itertools.pairwise(edges):
            factors.append((name, low, high // low))
    inside = [
        place
        for place, (name, before, size) in enumerate(factors)
        if any(
            other == name and low <= before and before * size <= low * part
            for other, low, part in wanted
        )
    ]
    grid = ids.reshape([size for _, _, size in factors] or [1])
    outside = [place for place in range(len(factors)) if place not in inside]
    width = math.prod(factors[place][2] for place in inside)
    return grid.transpose(outside + inside).reshape(-1, width).tolist()


def _iota(dims: str, permutation: str | None) -> np.ndarray:
    grid = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return grid.transpose(_numbers(permutation)) if permutation else grid


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r'\d+', text)]
