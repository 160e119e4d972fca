"""Claim 1, parallelism: the training step of a CNN by batch and width, against one example on one core."""

import json
import sys
from typing import Any

from experiments.claims import base, fits
from experiments.claims.base import MEASURED, Part, Settings, Shown

QUESTION = 'How much faster are many examples trained together than one after the other?'
CLAIM = (
    'A GPU does thousands of operations at the same time, and training is made of such operations.'
)
HERE = 'experiments.claims.parallelism'
WIDTH, BATCH = 16, 16  # of the sweeps over the other
CARDS = ('gtx1080', 'v100-16', 'h100')


def parts(settings: Settings) -> list[Part]:
    batches = (1, 4, 16, 64, 256) if settings.quick else (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    widths = (4, 16, 64) if settings.quick else (4, 8, 16, 32, 64, 128)
    enough = 0.4 if settings.quick else 2.0
    found: list[Part] = [
        ('sequential', lambda: measure('cpu', [(1, WIDTH), (64, WIDTH)], enough, cores=1))
    ]
    for platform in ('cpu', *(('cuda',) if base.gpu_names() else ())):
        name = 'gpu' if platform == 'cuda' else 'cpu'
        found += [
            (
                f'{name} batches',
                lambda p=platform: measure(p, [(n, WIDTH) for n in batches], enough),
            ),
            (f'{name} widths', lambda p=platform: measure(p, [(BATCH, w) for w in widths], enough)),
        ]
    return found


def measure(platform: str, sizes: list[tuple[int, int]], enough: float, cores: int = 0) -> Any:
    """A child process measures the steps of these (batch, width) on one platform."""
    spec = {'sizes': sizes, 'enough': enough, 'cores': cores}
    return base.child(HERE, spec, env={'JAX_PLATFORMS': platform})


def _measure(spec: dict[str, Any]) -> dict[str, Any]:
    """In the child: the steps, and the machine's peak and bandwidth."""
    import os

    if spec['cores'] and hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec['cores']])
    from jaxdl.run import runtime

    runtime.prepare_process()
    import jax

    from experiments.bench import cases, jax_step
    from jaxdl.compiled import cards

    steps = []
    for batch, width in spec['sizes']:
        sizes = dict(channels=(width, 2 * width), convs=1, pools=2, dense=64)
        case = cases.Case('cnn', 'images', batch, batch, sizes)
        step, facts = jax_step.build(case, batch, [], 1)
        seconds = base.seconds_of(step, enough=spec['enough'])
        steps.append({'batch': batch, 'width': width, 'seconds': seconds, **facts})
    device = jax.local_devices()[0]
    card = cards.of_device(device.device_kind)
    return {
        'device': device.device_kind if card else base.processor(),
        'cores': base.cores(),
        'steps': steps,
        'peak': card.peak('float32') if card else cards.cpu_peak(),
        'bandwidth': card.memory_bandwidth if card else _bandwidth(),
    }


def _bandwidth() -> float:
    """Bytes a second that a sum of two long arrays reads and writes."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(1 << 25, jnp.float32)
    add = jax.jit(lambda a, b: a + b)
    return 3 * x.nbytes / base.seconds_of(lambda: jax.block_until_ready(add(x, x)), least=5)


def rates(steps: list[dict[str, Any]]) -> list[float]:
    """Examples a second."""
    return [one['batch'] / one['seconds'] for one in steps]


def present(values: dict[str, Any]) -> Shown:
    from experiments.claims.draw import Curve, curves
    from jaxdl.compiled import cards

    alone = values['sequential']['steps'][0]
    one = 1 / alone['seconds']
    lines, rows, roofs, widths, notes, answers = [], [], [], [], [], []
    for place, platform in enumerate(('cpu', 'gpu')):
        found = values.get(f'{platform} batches')
        if found is None:
            continue
        steps, name = found['steps'], platform.upper()
        batches = [step['batch'] for step in steps]
        fit = fits.fit_amdahl(batches, [step['seconds'] for step in steps])
        lines += [
            Curve(f'{name}, measured', batches, rates(steps), style=place),
            Curve(
                f'{name}, Amdahl fitted', batches, [fit.speed_up(n) / (fit.fixed + fit.each) for n in batches],
                predicted=True, style=place,
            ),
        ]  # fmt: skip
        best = max(rates(steps))
        where = batches[rates(steps).index(best)]
        cores = base.of_cores(found['cores']) if platform == 'cpu' else found['device']
        answers.append(
            f'{name} ({cores}): a batch of {where} trains {best / one:.1f} times as many examples a '
            f'second as one after the other on one core'
        )
        notes.append(
            f'{name}: a step takes {base.duration(fit.fixed)} whatever the batch and '
            f'{base.duration(fit.each)} more for each example. So {base.share(fit.shared)} of a single '
            f"example's time is shared (Amdahl), batching alone gives at most {fit.limit:.1f} times, "
            f'and the knee, half of that, is at a batch of {fit.knee:.1f}.'
        )
        if platform == 'cpu' and found['cores'] > 1 and 64 in batches:
            one_core = values['sequential']['steps'][1]['seconds']
            gain = one_core / steps[batches.index(64)]['seconds']
            part = base.share(fits.parallel_share(gain, found['cores']))
            notes.append(
                f'CPU, cores: a batch of 64 is {gain:.2f} times as fast on {found["cores"]} cores as '
                f'on one, so by Amdahl {part} of its time is divided among them.'
            )
        for step in steps + values.get(f'{platform} widths', {'steps': []})['steps']:
            flops, moved = 1e9 * step['gflop'], step['bytes']
            bound = fits.roofline(flops / moved, found['peak'], found['bandwidth'])
            speed = flops / step['seconds']
            roofs.append((flops / moved, speed, place))
            rows.append(
                [name, step['batch'], step['width'], base.duration(step['seconds']),
                 f'{step["batch"] / step["seconds"]:,.0f}', f'{step["batch"] / step["seconds"] / one:.1f}×',
                 f'{flops / moved:.1f}', f'{speed / 1e9:.1f}', f'{base.share(speed / bound)}']
            )  # fmt: skip
        if f'{platform} widths' in values:
            wide = values[f'{platform} widths']['steps']
            widths.append(
                Curve(
                    name, [s['width'] for s in wide],
                    [s['gflop'] / s['seconds'] for s in wide], style=place,
                )
            )  # fmt: skip
        ridge = found['peak'] / found['bandwidth']
        notes.append(
            f'{name}, roofline: {found["peak"] / 1e9:,.0f} GFLOP/s and '
            f'{found["bandwidth"] / 1e9:.1f} GB/s{" (both measured here)" if platform == "cpu" else " (published)"}'
            f' meet at {ridge:.0f} FLOPs a byte; below that, memory decides. '
            'Caches can lift a small step above the roof.'
        )
    each = alone['gflop'] * 1e9
    for place, name in enumerate(CARDS):
        card = cards.find(name)
        bound = card.peak('float32') / each
        short = card.title.removeprefix('NVIDIA ').removeprefix('GeForce ')
        lines.append(
            Curve(f'{short} at most', [lines[0].x[0], lines[0].x[-1]], [bound] * 2, True, place + 2)
        )  # fmt: skip
        notes.append(
            f'{card.title} (predicted, a bound): {card.peak("float32") / 1e12:g} TFLOP/s published ÷ '
            f'{each / 1e6:.1f} MFLOP an example = at most {base.number(bound)} examples/s.'
        )
    lines.append(
        Curve('one example, one core', [lines[0].x[0], lines[0].x[-1]], [one] * 2, False, 6)
    )
    shown = Shown('; '.join(answers) + '.', MEASURED, notes=notes)
    cpu = values['cpu batches']
    steps = cpu['steps']
    fit = fits.fit_amdahl([s['batch'] for s in steps], [s['seconds'] for s in steps])
    inside = steps[0]['batch'] <= fit.knee <= steps[-1]['batch']
    shown.figures.append(
        (
            'Examples a second by batch',
            curves(
                lines, x='batch', y='examples/s', mark=(fit.knee, 'knee (CPU)') if inside else None
            ),
        )
    )
    if widths:
        shown.figures.append(
            (f'Arithmetic by width, batch {BATCH}', curves(widths, x='channels of the first layer', y='GFLOP/s'))
        )  # fmt: skip
    span = [min(x for x, *_ in roofs) / 2, max(x for x, *_ in roofs) * 4]
    ridge = cpu['peak'] / cpu['bandwidth']
    places = sorted({*span, min(max(ridge, span[0]), span[1])})
    roof = [fits.roofline(x, cpu['peak'], cpu['bandwidth']) / 1e9 for x in places]
    points = [
        Curve(
            f'steps on the {name}', [x for x, _, p in roofs if p == place],
            [y / 1e9 for _, y, p in roofs if p == place], style=place, points=True,
        )
        for place, name in enumerate(('CPU', 'GPU'))
        if any(p == place for *_, p in roofs)
    ]  # fmt: skip
    shown.figures.append(
        (
            'The same steps under the roofline',
            curves(
                [Curve("the CPU's roofline", places, roof, predicted=True, style=6), *points],
                x='FLOPs a byte (as compiled)', y='GFLOP/s',
            ),
        )
    )  # fmt: skip
    head = ['on', 'batch', 'width', 'step', 'examples/s', 'of one by one', 'FLOPs a byte', 'GFLOP/s', 'of the roof']  # fmt: skip
    shown.tables.append(('', head, rows))
    return shown


if __name__ == '__main__':
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
