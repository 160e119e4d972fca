"""A plan as text for people."""

from jaxdl.plan.planning import RESERVE, Plan, gib


def render(plan: Plan) -> str:
    """The whole plan, a screen long."""
    parts = [_head(plan), _memory(plan), _work(plan), _exchanges(plan), _time(plan)]
    if plan.warnings:
        parts.append('Warnings\n' + '\n'.join(f'  - {text}' for text in plan.warnings))
    return '\n\n'.join(parts)


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows of texts as columns, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append(('  ' + '  '.join(cells)).rstrip())
    return '\n'.join(lines)


def count(number: float) -> str:
    """12.3 G, 4.5 T, ..."""
    for size, letter in ((1e15, ' P'), (1e12, ' T'), (1e9, ' G'), (1e6, ' M'), (1e3, ' k')):
        if abs(number) >= size:
            return (
                f'{number / size:.3g}{letter}'
                if number < 1000 * size
                else f'{number / size:.0f}{letter}'
            )
    return f'{number:.3g} '


def duration(seconds: float) -> str:
    """Seconds, ms or µs."""
    for size, name in ((1.0, 's'), (1e-3, 'ms')):
        if seconds >= size:
            return f'{seconds / size:.3g} {name}'
    return f'{seconds / 1e-6:.3g} µs'


def _head(plan: Plan) -> str:
    mesh = (
        ' × '.join(f'{axis} {size}' for axis, size in plan.mesh.items() if size > 1) or 'one device'
    )
    how = (
        'compiled for CUDA; nothing was run'
        if plan.cuda
        else 'ESTIMATE from a program compiled for CPUs: parameters, arguments and FLOPs are exact; '
        'temporary memory, kernels, collectives and time are not those of a GPU '
        '(requirements-plan.txt installs the CUDA compiler)'
    )
    links = ', '.join(f'{name} {speed / 1e9:.3g} GB/s' for name, speed in plan.links.items())
    return (
        f'{plan.devices}: {mesh}\n{how}\n'
        + (f'{links} of a GPU and direction\n' if links else '')
        + f'{count(plan.parameters)} parameters, {plan.batch_size} examples '
        f'({plan.units:,} {plan.unit}) a step'
    )


def _memory(plan: Plan) -> str:
    memory = plan.memory
    verdict = (
        f'fits, {gib(-memory.missing)} left'
        if memory.fits
        else f'DOES NOT FIT by {gib(memory.missing)}'
    )
    rows = [
        ('parameters', gib(memory.parameters)),
        ('gradients', gib(memory.gradients)),
        ('optimizer state', gib(memory.optimizer)),
        ('averages, statistics', gib(memory.averages)),
        ('batch, resident data', gib(memory.batch)),
        ('activations, workspace', gib(memory.activations)),
        ('arguments of the step', gib(memory.arguments)),
        ('temporary', gib(memory.temporary)),
        ('peak', gib(memory.peak)),
        ('driver, libraries (assumed)', gib(RESERVE)),
        ('card', gib(memory.card)),
    ]
    return f'Memory of a GPU: {verdict}\n{table(rows)}'


def _work(plan: Plan) -> str:
    flops = plan.flops
    rows = [
        ('matrix products', count(flops.matmul)),
        ('convolutions', count(flops.conv)),
        ('fused attention', count(flops.attention)),
        ('recomputed', count(flops.remat)),
        ('element-wise', count(flops.other)),
    ]
    types = ', '.join(
        f'{dtype} {count(n)}' for dtype, n in sorted(flops.by_dtype.items(), key=lambda i: -i[1])
    )
    kernels = [('kernels of a GPU', 'by', 'type', 'number', 'FLOPs')]
    kernels += [
        (kind, by, dtype, f'{n}', f'{share:.1%}') for kind, by, dtype, n, share in plan.kernels
    ]
    return (
        f'FLOPs of a step, all GPUs: {count(flops.model)} (model), {count(flops.hardware)} (executed)\n'
        f'{table(rows)}\n  products by type: {types or "none"}\n{table(kernels)}'
    )


def _exchanges(plan: Plan) -> str:
    if not plan.time.exchanges:
        return 'Collectives of a step: none'
    rows = [('', 'over', 'type', 'number', 'bytes', 'sent by a GPU', 'time', 'overlapped')]
    for item in plan.time.exchanges:
        rows.append(
            (
                item.kind,
                item.link,
                item.dtype,
                f'{item.count}',
                gib(item.bytes),
                gib(item.wire_bytes),
                duration(item.seconds),
                f'{item.overlapped}',
            )
        )
    return f'Collectives of a step\n{table(rows)}'


def _time(plan: Plan) -> str:
    time = plan.time
    rows = [
        ('compute-bound kernels', duration(time.compute)),
        ('memory-bound kernels', duration(time.memory)),
        ('communication not overlapped', duration(time.exposed)),
        ('communication in all', duration(time.communication)),
        ('bytes to and from memory', gib(time.bytes)),
    ]
    return (
        f'Least time of a step (roofline, a bound): {duration(time.seconds)}\n{table(rows)}\n'
        f'  MFU at most {plan.mfu_bound:.1%} of the {plan.dtype} peak; '
        f'at most {plan.units_per_second:,.0f} {plan.unit}/s; '
        f'at most {plan.joules_upper:,.4g} J a step (upper estimate: rated power, GPUs alone)'
    )
