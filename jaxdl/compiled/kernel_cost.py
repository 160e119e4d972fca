"""What one kernel of a compiled program costs: FLOPs of its products, bytes that it moves."""

import collections
import math
import re

from jaxdl.compiled.hlo import Computation, Instruction, Module, Shape

_DTYPES = {'f64': 'float64', 'f32': 'float32', 'bf16': 'bfloat16', 'f16': 'float16', 's8': 'int8'}
_TRANSPARENT = ('bitcast', 'reshape', 'copy', 'transpose', 'convert')


def dtype_name(dtype: str) -> str:
    """XLA's name of a type in NumPy's words: 'bf16' → 'bfloat16', 'f8e4m3fn' → 'float8_e4m3fn'."""
    return _DTYPES.get(dtype, re.sub(r'^f8', 'float8_', dtype))


# ---- products -------------------------------------------------------------------------------


def product(owner: Computation, part: Instruction) -> tuple[str, float, str] | None:
    """(kind, FLOPs, dtype) of a product, or None for anything else."""
    operands = owner.operand_shapes(part)
    if part.opcode == 'dot' and operands:
        depth = math.prod(operands[0].dims[d] for d in part.dims('lhs_contracting_dims'))
        return 'matmul', 2.0 * part.shapes[0].elements * depth, dtype_name(operands[0].dtype)
    if part.opcode == 'convolution' and len(operands) >= 2:
        return 'conv', _conv_flops(part, operands), dtype_name(operands[0].dtype)
    target = part.target
    if '__cublas' in target and operands:
        text = re.search(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', part.attributes)
        dims = [int(d) for d in re.findall(r'\d+', text.group(1))] if text else []
        depth = math.prod(operands[0].dims[d] for d in dims)
        return 'matmul', 2.0 * part.shapes[0].elements * depth, dtype_name(operands[0].dtype)
    if '__cudnn$conv' in target and len(operands) >= 2:
        return 'conv', _cudnn_conv_flops(part, operands), dtype_name(operands[0].dtype)
    if '__cudnn$fmha' in target and operands:
        return 'attention', _fmha_flops(part, operands), dtype_name(operands[0].dtype)
    return None


def batch_dims(part: Instruction) -> bool:
    return bool(re.search(r'"lhs_batch_dimensions":\s*\["', part.attributes))


def _labels(part: Instruction) -> tuple[str, str, str] | None:
    found = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', part.attributes)
    return (found.group(1), found.group(2), found.group(3)) if found else None


def _conv_flops(part: Instruction, operands: list[Shape]) -> float:
    labels = _labels(part)
    if labels is None:
        return 0.0
    kernel = operands[1]
    holes = re.search(r'lhs_dilate=([\dx]+)', part.attributes)
    spread = math.prod(int(d) for d in holes.group(1).split('x')) if holes else 1
    features = kernel.dims[labels[1].index('o')]
    return 2.0 * part.shapes[0].elements * kernel.elements / features / spread


def _cudnn_conv_flops(part: Instruction, operands: list[Shape]) -> float:
    labels = _labels(part)
    if labels is None:
        return 0.0
    # All three directions multiply every tap of the kernel with every position of the output.
    if part.target.endswith('BackwardFilter'):
        kernel, output = part.shapes[0], operands[1]
    elif part.target.endswith('BackwardInput'):
        kernel, output = operands[1], operands[0]
    else:
        kernel, output = operands[1], part.shapes[0]
    return 2.0 * kernel.elements * output.elements / kernel.dims[labels[1].index('o')]


def _fmha_flops(part: Instruction, operands: list[Shape]) -> float:
    found = re.search(
        r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]', part.attributes
    )
    if not found:
        return 0.0
    scores = math.prod(int(d) for d in re.findall(r'\d+', found.group(1)))
    width = operands[0].dims[-1]
    # Backward: the scores once more, then the gradients of weights, values, queries and keys.
    return 2.0 * scores * width * (5 if 'Backward' in part.target else 2)


# ---- memory traffic -------------------------------------------------------------------------


def plain_bytes(computation: Computation, instruction: Instruction) -> int:
    opcode = instruction.opcode
    operands = computation.operand_shapes(instruction)
    if opcode in ('dynamic-slice', 'slice', 'gather'):
        return 2 * instruction.bytes
    if opcode == 'dynamic-update-slice' and len(operands) > 1:
        return 2 * operands[1].bytes
    if opcode in ('iota', 'rng-bit-generator', 'broadcast'):
        return instruction.bytes
    if opcode == 'custom-call' and instruction.target.startswith('__cu'):
        # Behind the result stands the library's scratch memory, as bytes; the traffic in it is
        # not known.
        results = [s for s in instruction.shapes if s.dtype not in ('s8', 'u8')]
        return sum(shape.bytes for shape in (*operands, *(results or instruction.shapes[:1])))
    return sum(shape.bytes for shape in operands) + instruction.bytes


def fusion_bytes(computation: Computation, fusion: Instruction, module: Module) -> int:
    """Bytes read and written by a fusion: of slices only what they take or replace."""
    inner = module.computations.get(fusion.called('calls') or '')
    if inner is None:
        return plain_bytes(computation, fusion)
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for part in inner.instructions:
        for name in part.operands:
            users[name].append(part)
    total = 0
    for part in inner.instructions:
        if part.opcode == 'parameter':
            total += min(part.bytes, _read(inner, part, users))
    roots = [inner.root]
    if inner.root.opcode == 'tuple':
        roots = [inner.by_name[n] for n in inner.root.operands if n in inner.by_name]
    for root in roots:
        update = root
        while (
            update.opcode in _TRANSPARENT
            and update.operands[:1]
            and update.operands[0] in inner.by_name
        ):
            update = inner.by_name[update.operands[0]]
        if update.opcode in ('dynamic-update-slice', 'scatter') and len(update.operands) > 1:
            # In place: only the slice is written.
            replaced = inner.by_name.get(update.operands[-1 if update.opcode == 'scatter' else 1])
            total += replaced.bytes if replaced else root.bytes
        else:
            total += root.bytes
    return total


def _read(inner: Computation, value: Instruction, users: dict[str, list[Instruction]]) -> int:
    """Bytes of `value` that its users inside a fusion need."""
    total = 0
    for user in users[value.name]:
        first = user.operands[:1] == (value.name,)
        if user.opcode in ('dynamic-slice', 'slice', 'gather') and first:
            total += user.bytes
        elif user.opcode == 'dynamic-update-slice' and first:
            continue
        elif user.opcode in ('bitcast', 'reshape') and not user.root:
            total += _read(inner, user, users)
        else:
            return value.bytes
    return total
