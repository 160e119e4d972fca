"""Bytes that a device exchanges as devices are added: python -m experiments.scaling.collectives [--only=LAYOUTS]

Compiles the training step of a small decoder for 1 to 64 simulated CPU devices and prints, for weak
scaling (the same rows a device) and strong scaling (the same rows in all), the bytes of the collectives
that one device takes part in, beside what theory says. Nothing is run; the figures are exact.
"""

import dataclasses
import sys

from jaxdl.compiled import cards, gpu_compile
from jaxdl.core.flags import CommandLine
from jaxdl.errors import run

WIDTH, LAYERS, VOCAB, LENGTH = 128, 2, 256, 64
ROWS, EACH = 64, 8  # in all for strong scaling, a device for weak scaling
LAYOUTS = ('data', 'fsdp', 'tensor', 'pipe', 'context')


def cluster(devices: int) -> cards.Cluster:
    hosts = max(1, devices // 8)
    return cards.parse(f'h100x{devices // hosts}x{hosts}')


def config(axis: str, devices: int, rows: int):
    """A decoder with all devices on one axis; those inside a host end at 8, data takes the rest."""
    from jaxdl.core.config import Config, Mesh
    from jaxdl.core.optim import AdamW
    from jaxdl.data.text.documents import Documents
    from jaxdl.data.text.packing import Packed
    from jaxdl.data.text.sources import TextFiles
    from jaxdl.data.text.tokenizers import Bytes
    from jaxdl.models.transformer import gpt2
    from jaxdl.tasks.language_model import LanguageModel

    model = gpt2(vocab=VOCAB, width=WIDTH, layers=LAYERS, heads=8, max_length=LENGTH)
    if axis == 'pipe':
        model = model.clone(layers=8, scan_layers=True)
    if axis in ('tensor', 'pipe', 'context'):
        ways = min(devices, 8)
        mesh = dataclasses.replace(Mesh(data=devices // ways, context_by='ring'), **{axis: ways})
    else:
        mesh = dataclasses.replace(Mesh(data=1), **{axis: devices})
    return Config(
        model=model.clone(head_chunks=1),
        task=LanguageModel(),
        data=Documents(
            source=TextFiles('text.txt'), tokenizer=Bytes(), length=LENGTH, packing=Packed()
        ),
        optimizer=AdamW(learning_rate=1e-3),
        batch_size=rows,
        steps=10,
        mesh=mesh,
    )


def measure(axis: str, devices: int, rows: int) -> dict:
    """{kind: (number, bytes)} of one device, and 'parameters' in bytes."""
    from jaxdl.plan import planning

    plan = planning.make(config(axis, devices, rows), cluster(devices), cuda=False)
    kinds: dict[str, tuple[int, float]] = {}
    for one in plan.time.exchanges:
        number, size = kinds.get(one.kind, (0, 0.0))
        kinds[one.kind] = (number + one.count, size + one.bytes)
    return {'parameters': 4 * plan.parameters, 'kinds': kinds}


def main(argv) -> int:
    line = CommandLine(__doc__ or '', example='--only=data,fsdp')
    line.several('only', LAYOUTS, 'layouts')
    layouts = line.parse(argv).only
    gpu_compile.prepare_process(64)
    print(
        '| layout | scaling | devices | rows | MB of the collectives of a device | parameters, MB |'
    )
    print('|---|---|---|---|---|---|')
    for axis in layouts:
        for scaling in ('weak', 'strong'):
            for devices in (1, 2, 8, 64):
                rows = ROWS if scaling == 'strong' else EACH * devices
                found = measure(axis, devices, rows)
                told = ', '.join(
                    f'{kind} {number} × {size / number / 1e6:.3f} = {size / 1e6:.2f}'
                    for kind, (number, size) in sorted(found['kinds'].items())
                )
                print(
                    f'| {axis} | {scaling} | {devices} | {rows} | {told or "none"} '
                    f'| {found["parameters"] / 1e6:.2f} |',
                    flush=True,
                )
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
