"""One config compiled for given GPUs and judged: memory, FLOPs, traffic, kernels, least time.

Nothing is run. With the CUDA compiler the program is the one that the GPUs would run; without it,
a program compiled for as many simulated CPUs stands in, and the plan says that it is an estimate.
"""

import collections
import contextlib
import dataclasses
import math
import pathlib
from typing import Any

import jax
import numpy as np

from jaxdl.account import flops as flops_lib
from jaxdl.compiled import gpu_compile, roofline
from jaxdl.compiled import kernels as kernels_lib
from jaxdl.compiled.cards import Cluster
from jaxdl.core import config as config_lib
from jaxdl.core import feed
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Config
from jaxdl.core.program import Program
from jaxdl.errors import UserError
from jaxdl.models import ops

# What the driver, cuBLAS, cuDNN and NCCL take beside the program's own memory.
RESERVE = 1.5 * 2**30
# The share of a GPU's memory that XLA takes for itself unless told otherwise.
DEFAULT_FRACTION = 0.75


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        parameters: of the model.
        gradients: the same once more, while a step runs.
        optimizer: its state.
        averages: moving averages of the weights, and statistics of BatchNorm.
        batch: one batch, and the data set where it lives on the device.
        activations: what else a step needs at its worst moment (temporary less gradients).
        arguments: all that is there before a step.
        temporary: all that a step needs beside it.
        peak: both, and outputs that do not replace an argument.
        card: the GPU's memory.
        fits: whether the peak and RESERVE fit in the card.
    """

    parameters: int
    gradients: int
    optimizer: int
    averages: int
    batch: int
    activations: int
    arguments: int
    temporary: int
    peak: int
    card: int
    fits: bool

    @property
    def missing(self) -> float:
        """Bytes that are too many; negative: that are left."""
        return self.peak + RESERVE - self.card


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config would do on given GPUs. `seconds` and all that follows from it is a bound.

    Attributes:
        devices: the GPUs.
        links: bytes per second of each link between them, per GPU and direction.
        mesh: size of each axis.
        cuda: compiled for CUDA; otherwise everything but parameters, arguments and FLOPs is an
            estimate from a CPU program.
        parameters: numbers in the model.
        batch_size: examples of a step.
        unit: what a throughput counts: 'tokens', 'images' or 'examples'.
        units: of them in a step.
        memory: of one GPU.
        flops: of a step on all GPUs.
        time: of one GPU.
        dtype: of most products, whose peak the MFU refers to.
        mfu_bound: the highest model FLOPs utilisation that the time allows.
        units_per_second: the highest throughput of all GPUs.
        joules_upper: of a step with all GPUs at rated power.
        kernels: (kind, library, dtype, number in a step, share of the FLOPs).
        warnings: what stands out.
    """

    devices: str
    links: dict[str, float]
    mesh: dict[str, int]
    cuda: bool
    parameters: int
    batch_size: int
    unit: str
    units: int
    memory: Memory
    flops: flops_lib.Flops
    time: roofline.Estimate
    dtype: str
    mfu_bound: float
    units_per_second: float
    joules_upper: float
    kernels: tuple[tuple[str, str, str, int, float], ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, texts, lists and dictionaries."""
        found = dataclasses.asdict(self)
        found['flops'] |= {'model': self.flops.model, 'hardware': self.flops.hardware}
        found['memory'] |= {'missing': self.memory.missing}
        return found


def make(
    config: Config, cluster: Cluster, *, cuda: bool, rows: dict[str, Any] | None = None
) -> Plan:
    """Compiles the train step of `config` for `cluster` and judges it.

    Args:
        config: the run.
        cluster: the GPUs.
        cuda: compile for them; otherwise for as many simulated CPUs.
        rows: {name: ShapeDtypeStruct} of one example, for a data set that is not on this machine.

    Raises:
        UserError: the config does not fit these devices, or its data set is not here.
    """
    devices = gpu_compile.gpus(cluster) if cuda else jax.devices('cpu')[: cluster.devices]
    if len(devices) < cluster.devices:
        raise UserError(
            f'{cluster.devices} simulated CPUs are needed for the estimate, this process has '
            f'{len(devices)}: start python with XLA_FLAGS='
            f'--xla_force_host_platform_device_count={cluster.devices}'
        )
    ops.set_platform('cuda' if cuda else 'cpu')
    try:
        mesh = mesh_lib.make_mesh(config.mesh, devices)
        mesh_lib.check_batch('batch_size', config.batch_size, config.accumulate, mesh)
        example, resident = _example(config, mesh, cluster, rows)
        built = Program(config, mesh, example)
        batch = _batch(config, mesh, example, resident)
        try:
            with gpu_compile.quiet(), gpu_compile.attention_of(cluster):
                executable, _ = built.compile_train(batch, resident)
        except jax.errors.JaxRuntimeError as error:
            raise _refused(error, cluster) from error
        with gpu_compile.attention_of(cluster), built.scope():
            one = flops_lib.count(
                built.steps.train_metrics, built.abstract, batch, resident, built.hyper
            )
    finally:
        ops.set_platform(None)
    one = one.scaled(config.steps_per_call)
    return _judge(config, cluster, built, executable, one, batch, resident, cuda=cuda)


def _example(config, mesh, cluster, rows):
    """(one example, the arrays that live on the device)."""
    if rows is not None:
        return {'id': np.int32(0), **{k: np.zeros(v.shape, v.dtype) for k, v in rows.items()}}, {}
    known = config.data.example()
    if known is not None:  # the data set knows its shapes without its files
        return {'id': np.int32(0), **known}, {}
    source = config.data.train_source()
    arrays = None if config.placement == 'stream' else source.in_memory()
    small = arrays is not None and sum(a.nbytes for a in arrays.values()) <= (
        feed.DEVICE_SHARE * cluster.card.memory_bytes
    )
    one = arrays if arrays is not None else source.fetch(np.zeros(1, np.int64))
    example = {'id': np.int32(0), **{name: values[0] for name, values in one.items()}}
    if config.placement == 'device' or (config.placement == 'auto' and small):
        everywhere = mesh_lib.replicated(mesh)
        return example, {
            name: jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=everywhere)
            for name, values in (arrays or {}).items()
        }
    return example, {}


def _batch(config, mesh, example, resident) -> dict[str, jax.ShapeDtypeStruct]:
    place = mesh_lib.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(
            (config.batch_size, *np.shape(value)), np.asarray(value).dtype, sharding=place
        )
        for name, value in example.items()
        if name not in resident
    }


def _refused(error: Exception, cluster: Cluster) -> UserError:
    text = str(error).split('\n')[0]
    if 'ALG_DOT_BF16' in text:
        return UserError(
            f"{cluster.card.title} has no bfloat16 units: use dtype='float32', "
            "or 'float16' where the model has it"
        )
    return UserError(f'the compiler refuses this program for {cluster.card.title}: {text}')


def local_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays on one device, by their shardings; host memory left out."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        place = getattr(leaf, 'sharding', None)
        if place is not None and getattr(place, 'memory_kind', None) == 'pinned_host':
            continue
        shape = place.shard_shape(leaf.shape) if place is not None else leaf.shape
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def peak_bytes(executable: Any) -> tuple[int, int, int]:
    """(arguments, temporary, peak) bytes of a compiled program on one device."""
    stats = executable.memory_analysis()
    arguments, temporary = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    new = max(0, stats.output_size_in_bytes - stats.alias_size_in_bytes)
    return arguments, temporary, arguments + temporary + new


def _memory(built: Program, executable, batch, resident, cluster: Cluster) -> Memory:
    state = built.abstract
    arguments, temporary, peak = peak_bytes(executable)
    parameters = local_bytes(state.params)
    return Memory(
        parameters=parameters,
        gradients=parameters,
        optimizer=local_bytes(state.opt_state),
        averages=local_bytes((state.model_state, state.ema)),
        batch=local_bytes((batch, resident)),
        activations=max(0, temporary - parameters),
        arguments=arguments,
        temporary=temporary,
        peak=peak,
        card=cluster.card.memory_bytes,
        fits=peak + RESERVE <= cluster.card.memory_bytes,
    )


def _judge(config, cluster, built, executable, counted, batch, resident, *, cuda) -> Plan:
    read = kernels_lib.read(executable.as_text(), devices=cluster.devices)
    time = roofline.estimate(read, cluster)
    dtypes = counted.by_dtype
    dtype = max(dtypes, key=lambda name: dtypes[name]) if dtypes else 'float32'
    unit, each = _unit(built.example)
    units = config.batch_size * config.steps_per_call * each
    memory = _memory(built, executable, batch, resident, cluster)
    seconds = max(time.seconds, 1e-12)
    mesh = dict(built.mesh.shape)
    found = _warnings(cluster, memory, counted, read, time, dtype, mesh)
    if not cuda:
        found = [w for w in found if not w.startswith(('float32', 'attention'))]
    return Plan(
        devices=str(cluster),
        links=cluster.links,
        mesh=mesh,
        cuda=cuda,
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(built.abstract.params)),
        batch_size=config.batch_size,
        unit=unit,
        units=units,
        memory=memory,
        flops=counted,
        time=time,
        dtype=dtype,
        mfu_bound=roofline.mfu_bound(counted.model, seconds, cluster, dtype),
        units_per_second=units / seconds,
        joules_upper=roofline.joules_upper(seconds, cluster),
        kernels=_kernels(read),
        warnings=tuple(found),
    )


def _unit(example: dict[str, Any]) -> tuple[str, int]:
    shapes = {name: np.shape(value) for name, value in example.items()}
    for name in ('tokens', 'target'):
        if len(shapes.get(name, ())) == 1:
            return 'tokens', shapes[name][0]
    return ('images' if 'image' in shapes else 'examples'), 1


def _kernels(read: kernels_lib.Schedule) -> tuple[tuple[str, str, str, int, float], ...]:
    number: dict[tuple[str, str, str], int] = collections.defaultdict(int)
    work: dict[tuple[str, str, str], float] = collections.defaultdict(float)
    for kernel, times in read.kernels():
        if kernel.flops:
            key = (kernel.kind, kernel.library, kernel.dtype)
            number[key] += times
            work[key] += kernel.flops * times
    total = sum(work.values()) or 1.0
    keys = sorted(work, key=lambda key: -work[key])
    return tuple((*key, number[key], work[key] / total) for key in keys)


def _warnings(cluster, memory, counted, read, time, dtype, mesh) -> list[str]:
    found = []
    if not memory.fits:
        found.append(advice(memory, mesh, cluster.devices))
    elif memory.peak > DEFAULT_FRACTION * memory.card:
        share = min(0.95, math.ceil(100 * memory.peak / memory.card + 2) / 100)
        found.append(
            f'memory: more than the {DEFAULT_FRACTION:.0%} of the card that XLA takes by default; '
            f'set XLA_CLIENT_MEM_FRACTION={share:.2f}'
        )
    total = sum(kernel.flops * times for kernel, times in read.kernels()) or 1.0
    slow = read.float32_products()
    share = sum(kernel.flops * times for kernel, times in slow) / total
    if slow:
        worst = max(slow, key=lambda item: item[0].flops * item[1])[0]
        found.append(
            f'float32 matrix products: {sum(n for _, n in slow)} with {share:.2%} of the FLOPs, '
            f'the largest in {worst.op_name or worst.name}; '
            "dtype='bfloat16' makes them faster"
        )
    for elements, times in read.unfused_attention():
        found.append(
            f'attention that is not fused: {times} times scores of {elements:,} elements are '
            'written to memory'
        )
    if cluster.card.major < 8 and any(k.kind == 'attention' for k, _ in read.kernels()):
        found.append(
            f"attention: cuDNN's kernels need compute capability 8.0, {cluster.card.title} has less"
        )
    if dtype == 'bfloat16' and 'bfloat16' not in cluster.card.peak_flops:
        found.append(f'{cluster.card.title} has no bfloat16 units: float16 would be faster')
    traffic = read.traffic()
    if 'all-to-all' in traffic and mesh.get('context', 1) == 1 and mesh.get('tensor', 1) == 1:
        found.append(
            f'{traffic["all-to-all"][0]} all-to-all exchanges that no layout asks for: '
            'an activation lacks its sharding constraint'
        )
    done = time.flops * cluster.devices
    if done < 0.8 * counted.model:
        found.append(
            f'the times are too low: only {done / counted.model:.0%} of the FLOPs were found in the '
            'compiled program, which has a loop or a kernel that cannot be read'
        )
    if time.exposed > 0.05 * time.seconds:
        found.append(
            f'communication: the GPUs wait {time.exposed / time.seconds:.0%} of the time for it'
        )
    return found + list(dict.fromkeys((*counted.notes, *read.notes)))


def advice(memory: Memory, mesh: dict[str, int], devices: int) -> str:
    """By how much a plan does not fit, and what would change that."""
    state = memory.parameters + memory.optimizer + memory.averages
    split = mesh.get('fsdp', 1) * mesh.get('tensor', 1) * mesh.get('pipe', 1)
    ways = []
    less = state * (1 - split / devices)
    if less > 0.2 * memory.missing:
        ways.append(f'--config.mesh.fsdp=-1 --config.mesh.data=1 (saves {gib(less)} of state)')
    if memory.activations > memory.missing:
        ways.append('rematerialisation (--config.model.remat=full, where the model has it)')
        parts = memory.activations / max(1.0, memory.activations - memory.missing)
        ways.append(f'--config.accumulate={2 ** math.ceil(math.log2(max(2.0, parts)))}')
    elif not ways:
        ways.append('more GPUs, larger ones, or a smaller model')
    return (
        f'memory: does not fit, {gib(memory.missing)} too much '
        f'(peak {gib(memory.peak)} and {gib(RESERVE)} for the driver and libraries, '
        f'card {gib(memory.card)}); what helps: {"; ".join(ways)}; or ask --search'
    )


def gib(size: float) -> str:
    """'3.42 GiB'; small sizes in MiB."""
    return f'{size / 2**30:.2f} GiB' if abs(size) >= 2**29 else f'{size / 2**20:.1f} MiB'


def require_fit(config: Config) -> str:
    """Compiles the train step for the devices of this process and returns one line about it.

    Raises UserError if it needs more memory than they have, before anything has run.
    """
    mesh = mesh_lib.make_mesh(config.mesh)
    mesh_lib.check_batch('batch_size', config.batch_size, config.accumulate, mesh)
    place = feed.Feed(
        config.data.train_source(), config.batch_size, mesh, placement=config.placement
    )
    built = Program(config, mesh, place.example)
    executable, _ = built.compile_train(place.abstract(mask=False), place.resident)
    device = mesh.local_devices[0]
    _, _, peak = peak_bytes(executable)
    stats = device.memory_stats() if device.platform != 'cpu' else None
    if stats and 'bytes_limit' in stats:
        limit, where = stats['bytes_limit'], f'{device.device_kind} gives {{}} to this process'
    else:
        limit = machine_memory() // len(mesh.local_devices)
        where = f'this machine has {{}} for each of {len(mesh.local_devices)} device(s)'
    where = where.format(gib(limit))
    if peak > limit:
        raise UserError(
            f'the step needs {gib(peak)} a device, but {where}: {gib(peak - limit)} too much.\n'
            'Use more parts (--config.accumulate), --config.mesh.fsdp, rematerialisation, or a '
            'smaller batch; python -m jaxdl plan --search finds a layout'
        )
    return f'plan: the step needs {gib(peak)} a device; {where}'


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container around this process if it has less."""
    import psutil

    limits = [psutil.virtual_memory().total]
    for name in ('memory.max', 'memory/memory.limit_in_bytes'):  # cgroups, version 2 and 1
        with contextlib.suppress(OSError, ValueError):  # no such file, or 'max'
            limits.append(int(pathlib.Path('/sys/fs/cgroup', name).read_text()))
    return min(limits)


def has_field(config: Config, path: str) -> bool:
    """Whether 'config.a.b' is a field of the tree."""
    return any(
        f'{p}.{f.name}' == path
        for p, node in config_lib.nodes(config)
        for f in config_lib.fields(node)
    )
