"""Claim 4, scalability: bytes, collectives and memory on simulated devices; what fits which cards."""

import dataclasses
from typing import Any

from experiments.claims import base, fits
from experiments.claims.base import PREDICTED, Part, Settings, Shown

QUESTION = 'What do more devices cost and buy, and which models need more than data parallelism?'
CLAIM = 'Deep learning scales over many GPUs by data and model parallelism.'
SIMULATED = 8
CARDS = ('gtx1080', 'v100-16', 'a100-80', 'h100')
# How the state of BERT is laid out over 8 cards of a host: axes of the mesh.
LAYOUTS: dict[str, dict[str, int]] = {
    'data 8': {'data': 8},
    'fsdp 8': {'data': 1, 'fsdp': 8},
    'tensor 8': {'data': 1, 'tensor': 8},
}
FEW, MORE = 2, 6  # layers whose exact bytes decide the line


def prepare(settings: Settings) -> None:
    """Simulated CPU devices instead of the machine's; their programs are read and not run."""
    from jaxdl.compiled import gpu_compile

    del settings
    base.compile_quickly()
    gpu_compile.prepare_process(SIMULATED)


def parts(settings: Settings) -> list[Part]:
    from experiments.scaling import collectives

    layouts = ('data', 'fsdp', 'tensor') if settings.quick else collectives.LAYOUTS
    devices = (2, 8) if settings.quick else (2, 4, 8)
    found: list[Part] = [
        ('bert layers', bert_layers),
        ('1 device', lambda: collective('data', 1, 8)),
    ]
    for axis in layouts:
        for n in devices:
            found.append((f'{axis}, weak, {n}', lambda a=axis, n=n: collective(a, n, 8 * n)))
            if not settings.quick or (axis, n) == ('data', 8):
                found.append((f'{axis}, strong, {n}', lambda a=axis, n=n: collective(a, n, 64)))
    words = [
        '--config=bert_large', '--config.data.source.train=FILES', '--config.accumulate=1',
        '--config.model.scan_layers=False', '--config.mesh.data=1', '--config.mesh.fsdp=-1',
    ]  # fmt: skip
    plans: list[Part] = []
    for gpus in ('h100', 'h100x8', 'h100x8x8') if not settings.quick else ('h100x8',):
        plans.append((f'plan {gpus}', lambda g=gpus: planned(words, g)))
    plans.append(
        ('plan v100-16x8', lambda: planned([*words, '--config.model.dtype=float32'], 'v100-16x8'))
    )
    # Without the compiler all plans are absent at once; with it each takes a minute.
    return [*found, *plans] if base.compiler_is_there() else [*plans, *found]


def collective(axis: str, devices: int, rows: int) -> dict[str, Any]:
    """The step of a small decoder compiled for simulated devices; nothing is run."""
    from experiments.scaling import collectives
    from jaxdl.plan import planning

    plan = planning.make(
        collectives.config(axis, devices, rows), collectives.cluster(devices), cuda=False
    )
    kinds: dict[str, int] = {}
    for one in plan.time.exchanges:
        kinds[one.kind] = kinds.get(one.kind, 0) + one.count
    return {
        'devices': devices,
        'rows': rows,
        'bytes': sum(one.bytes for one in plan.time.exchanges),
        'kinds': kinds,
        'arguments': plan.memory.arguments,
        'peak': plan.memory.peak,
        'parameters': plan.parameters,
    }


def bert_layers() -> dict[str, Any]:
    """Bytes of parameters, gradients and optimizer of BERT-large by layers and layout, on one card."""
    return {name: [state_bytes(n, axes) for n in (FEW, MORE, 24)] for name, axes in LAYOUTS.items()}


def state_bytes(layers: int, axes: dict[str, int]) -> dict[str, int]:
    """Exact, from shapes and shardings: the bytes on one of 8 devices, and all parameters."""
    import jax
    import numpy as np

    from jaxdl.core import flags
    from jaxdl.core import mesh as mesh_lib
    from jaxdl.core.config import Mesh
    from jaxdl.core.program import Program
    from jaxdl.plan import planning

    config = flags.load_config('bert_large')
    config.model = config.model.clone(layers=layers)
    config.mesh = dataclasses.replace(Mesh(), **axes)
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices('cpu')[:SIMULATED])
    example = config.data.example()
    assert example is not None
    program = Program(config, mesh, {'id': np.zeros((), np.int32), **example})
    state = program.abstract
    parameters = planning.local_bytes(state.params)
    return {
        'layers': layers,
        'bytes': 2 * parameters + planning.local_bytes((state.opt_state, state.model_state)),
        'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    }


def planned(words: list[str], gpus: str) -> dict[str, Any]:
    plan = base.plan(words, gpus)
    return {
        'seconds': plan['time']['seconds'],
        'exposed': plan['time']['exposed'],
        'units_per_second': plan['units_per_second'],
        'unit': plan['unit'],
        'peak': plan['memory']['peak'],
        'fits': plan['memory']['fits'],
        'mfu_bound': plan['mfu_bound'],
        'joules': plan['joules_upper'],
    }


def largest_layers(points: list[dict[str, int]], room: float) -> tuple[int, float]:
    """(layers whose state fits into `room` bytes of each card, their parameters)."""
    few, more = points[0], points[1]
    layers = fits.largest(few['layers'], few['bytes'], more['layers'], more['bytes'], room)
    each = (more['parameters'] - few['parameters']) / (more['layers'] - few['layers'])
    return layers, few['parameters'] + each * (layers - few['layers'])


def present(values: dict[str, Any]) -> Shown:
    from experiments.claims.draw import Curve, curves
    from jaxdl.compiled import cards
    from jaxdl.plan.planning import RESERVE

    shown, said = Shown('', PREDICTED), []
    if 'bert layers' in values:
        rows, found = [], values['bert layers']
        for name in CARDS:
            card = cards.find(name)
            room = card.memory_bytes - RESERVE
            for layout, points in found.items():
                layers, parameters = largest_layers(points, room)
                rows.append(
                    [f'8 × {card.title}', layout, layers, base.number(parameters),
                     f'{points[2]["bytes"] / 2**30:.2f} GiB', 'yes' if points[2]['bytes'] < room else 'no']
                )  # fmt: skip
                if name == 'v100-16':
                    said.append((layout, layers, parameters, points[2]['bytes']))
        shown.tables.append(
            ('BERT, width 1024: the largest whose state fits (exact bytes; activations come on top)',
             ['cards', 'layout', 'layers at most', 'parameters', "BERT-large's state on a card", 'fits'], rows)
        )  # fmt: skip
        shown.notes.append(
            'State is float32: 4 bytes a weight, 4 a gradient, 8 for the two moments of Adam, by the '
            'shapes and shardings of the real program; 1.5 GiB of each card are kept for libraries. '
            f'Layers are alike, so the bytes of {FEW} and {MORE} layers give those of any number.'
        )
        (_, few, small, alone), (_, many, large, split), *_ = said
        shown.answer = (
            f'On 8 V100s of 16 GB data parallelism alone holds a BERT of at most {few} layers '
            f'({base.number(small)} parameters) and dividing the state (FSDP) one of {many} '
            f'({base.number(large)}); BERT-large itself has {alone / 2**30:.1f} GiB of state on each '
            f'card, divided {split / 2**30:.1f} GiB'
        )
    lines, rows = [], []
    single = values.get('1 device')
    for axis in ('data', 'fsdp', 'tensor', 'pipe', 'context'):
        for scaling in ('weak', 'strong'):
            found = [v for k, v in values.items() if k.startswith(f'{axis}, {scaling}')]
            rows += [
                [axis, scaling, v['devices'], v['rows'], f'{v["bytes"] / 1e6:.2f}',
                 ', '.join(f'{n} {kind}' for kind, n in v['kinds'].items()) or 'none',
                 f'{v["arguments"] / 2**20:.1f}', f'{v["peak"] / 2**20:.1f}']
                for v in found
            ]  # fmt: skip
            if scaling == 'weak' and found:
                lines.append(
                    Curve(axis, [v['devices'] for v in found], [v['bytes'] / 1e6 for v in found])
                )
    if lines:
        shown.figures.append(
            ('Bytes that a device exchanges in a step, weak scaling', curves(lines, x='devices', y='MB', log='x'))
        )  # fmt: skip
        if single:
            rows.insert(0, ['one device', '', 1, single['rows'], '0.00', 'none', f'{single["arguments"] / 2**20:.1f}', f'{single["peak"] / 2**20:.1f}'])  # fmt: skip
        size = next(v['parameters'] for k, v in values.items() if ', weak' in k and 'pipe' not in k)
        shown.tables.append(
            (f'A decoder of {base.number(size)} parameters on simulated devices (compiled, not run)',
             ['layout', 'scaling', 'devices', 'rows', 'MB exchanged', 'collectives', 'arguments, MiB', 'peak, MiB'], rows)
        )  # fmt: skip
        shown.notes.append(
            'Simulated devices share the cores of one CPU, so their time says nothing of GPUs and is '
            'not shown. Bytes and collectives are those of the compiled program of one device; the '
            'peak is that of the CPU program.'
        )
    plans = [(k.removeprefix('plan '), v) for k, v in values.items() if k.startswith('plan ')]
    if plans:
        shown.tables.append(
            ('BERT-large, 256 sequences a step, FSDP (predicted: compiled for these cards, not run)',
             ['cards', 'least step', 'throughput at most', 'MFU at most', 'peak of a card', 'fits', 'joules: that time at rated power'],
             [[g, base.duration(v['seconds']), f'{base.number(v["units_per_second"])} {v["unit"]}/s', f'{base.share(v["mfu_bound"])}',
               f'{v["peak"] / 2**30:.1f} GiB', 'yes' if v['fits'] else 'no', base.number(v['joules'])] for g, v in plans])
        )  # fmt: skip
    shown.answer = f'{shown.answer or "The layouts were compiled for simulated devices"}.'
    shown.notes.append(
        'Tables of five configs on 1 to 64 H100s, made earlier with the compiler: docs/scaling.md.'
    )
    return shown
