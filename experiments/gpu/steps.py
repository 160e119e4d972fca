"""The real training step of every shipped config on the GPU of this machine, beside its plan.

    python -m experiments.gpu.steps [--only=NAMES] [--seconds=3] [--out=FILE.json]     # on the GPU
    python -m experiments.gpu.steps --plans=h100 --out=PLANS.json                      # anywhere
    python -m experiments.gpu.steps --table=FILE.json,PLANS.json

Each config is a process of its own that trains on one random batch, which lives on the GPU: the time
of a step, the joules by the card's own counter, and the most memory that was in use. Batches larger
than one card are divided as ONE_GPU says. The plan is `python -m jaxdl plan` of the same config; it
needs no GPU.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from jaxdl.core.flags import CommandLine
from jaxdl.errors import UserError, run

IMAGES = 'image:uint8[{0},{0},{1}],label:int32[]'
FILES = ('--config.data.source.train=FILES',)
# Where a config is for several GPUs, or its data set has to be there: what changes on one card.
ONE_GPU = {
    'digits_cnn': (IMAGES.format(8, 1), ()),
    'fashion_cnn': (IMAGES.format(28, 1), ('--config.model.dtype=bfloat16',)),
    'cifar_cnn': (IMAGES.format(32, 3), ()),
    'cifar_cnn:resnet18': (IMAGES.format(32, 3), ()),
    'cifar_vit': (IMAGES.format(32, 3), ()),
    'resnet50': (IMAGES.format(224, 3), ('--config.batch_size=256',)),
    'char_rnn': ('', ('--config.model.dtype=bfloat16',)),
    'stdlib_lm': ('', ('--config.model.dtype=bfloat16',)),
    'lm_small': ('', (*FILES, '--config.model.dtype=bfloat16')),
    'gpt2_124m': ('', (*FILES, '--config.batch_size=64', '--config.accumulate=1')),
    'bert_base': ('', (*FILES, '--config.batch_size=64', '--config.accumulate=1')),
    'bert_large': ('', (*FILES, '--config.batch_size=32', '--config.accumulate=1')),
    'wmt_base': ('', ()),
    'wmt_big': ('', ()),
    'imdb_lstm:files': ('', FILES),
}


def words_of(name: str) -> tuple[str, ...]:
    """The command line of a config on one card."""
    base, _, variant = name.partition(':')
    config = f'--config=configs/{base}.py' + (f':{variant}' if variant else '')
    rows, words = ONE_GPU[name]
    return (config, *words, *((f'--rows={rows}',) if rows else ()))


def random_rows(example: dict, batch: int) -> dict:
    """A batch of random rows: tokens and classes below 10 fit every vocabulary."""
    import numpy as np

    rng, found = np.random.default_rng(0), {}
    for name, one in example.items():
        shape = (batch, *np.shape(one))
        dtype = np.asarray(one).dtype
        if dtype == np.bool_:
            found[name] = np.ones(shape, np.bool_)
        elif name in ('id', 'row'):
            found[name] = np.arange(batch, dtype=dtype)
        elif name.endswith('positions'):
            found[name] = np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
        elif name.endswith('segments'):
            found[name] = np.ones(shape, dtype)
        elif name in ('lengths', 'bytes'):
            found[name] = np.full(shape, 100, dtype)
        elif name in ('token_types', 'next_sentence', 'label'):
            found[name] = rng.integers(0, 2, shape).astype(dtype)
        else:
            found[name] = rng.integers(5, 250, shape).astype(dtype)
    return found


def run_one(name: str, seconds: float) -> dict:
    """Compiles and times the step of one config in this process."""
    from jaxdl.run import runtime

    begin = time.perf_counter()
    runtime.prepare_process()
    import jax
    import numpy as np

    from jaxdl.account import energy, flops
    from jaxdl.commands.plan import parse_rows
    from jaxdl.compiled import cards
    from jaxdl.core import flags
    from jaxdl.core import mesh as mesh_lib
    from jaxdl.core.program import Program
    from jaxdl.plan import planning

    config_word, *rest = words_of(name)
    words = [word for word in rest if not word.startswith('--rows')]
    config = flags.apply_overrides(
        flags.load_config(config_word.partition('=')[2]), flags.overrides_in(['', *words])
    )
    text = ONE_GPU[name][0]
    if text:
        shapes = {k: np.zeros(v.shape, v.dtype) for k, v in parse_rows(text).items()}
    else:
        shapes = config.data.example()
    rows = random_rows({'id': np.int32(0), **shapes}, config.batch_size)
    mesh = mesh_lib.make_mesh(config.mesh)
    program = Program(config, mesh, {k: v[0] for k, v in rows.items()})
    placed = mesh_lib.put(rows, mesh_lib.batch_sharding(mesh))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed
    )
    started = time.perf_counter()
    step, _ = program.compile_train(abstract, {})
    compiled = time.perf_counter() - started
    started = time.perf_counter()
    state = program.init({k: v[:2] for k, v in rows.items() if k != 'id'})
    jax.block_until_ready(state)
    initialised, hyper = time.perf_counter() - started, program.place_hyper()
    for _ in range(5):
        state, packed = step(state, placed, {}, hyper)
    jax.block_until_ready((state, packed))
    times, meter = [], energy.Meter(None, local_devices=[0])
    with meter:
        while len(times) < 4 or sum(t * n for t, n in times) < seconds:
            count = max(2, int(0.3 / times[-1][0])) if times else 10
            started = time.perf_counter()
            for _ in range(count):
                state, packed = step(state, placed, {}, hyper)
            jax.block_until_ready((state, packed))
            times.append(((time.perf_counter() - started) / count, count))
        meter.update()
        watts = meter.metrics().get('energy/gpu_watts')
    device = jax.local_devices()[0]
    counted = flops.count(
        program.steps.train_metrics, program.abstract, abstract, {}, program.hyper
    )
    card = cards.of_device(device.device_kind)
    stats = device.memory_stats() or {}
    steps = sum(count for _, count in times)
    median = float(np.median([t for t, _ in times[1:]]))
    dtype = max(counted.by_dtype, key=lambda k: counted.by_dtype[k])
    return {
        'device': device.device_kind,
        'jax': jax.__version__,
        'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
        'batch_size': config.batch_size,
        'units': _units(config.batch_size, shapes),
        'step_s': median,
        'range_s': [min(t for t, _ in times[1:]), max(t for t, _ in times[1:])],
        'steps': steps,
        'compile_s': compiled,
        'init_s': initialised,
        'ready_s': time.perf_counter() - begin,
        # Of the step that is timed: the counter's own sum holds the pauses between two rounds too.
        'joules': None if watts is None else watts * median,
        'watts': watts,
        'peak_bytes': stats.get('peak_bytes_in_use'),
        'program_bytes': planning.peak_bytes(step),
        'flops': counted.model,
        'mfu': counted.model / median / card.peak(dtype) if card else None,
        'dtype': dtype,
    }


def _units(batch: int, shapes: dict) -> int:
    import numpy as np

    for name in ('tokens', 'target'):
        if name in shapes:
            return batch * int(np.prod(np.shape(shapes[name])))
    return batch


def _process(words: list[str], timeout: float) -> dict | str:
    """The JSON that a command prints last, or its last words."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{')]
    if done.returncode or not lines:
        return f'exit {done.returncode}: {(done.stderr or done.stdout)[-1500:]}'
    return json.loads(lines[-1])


def table(measured: dict, plans: dict) -> str:
    """Markdown: the plan's figures beside the measured ones."""
    lines = [
        '| config | batch | parameters | step | plan: at least | of the bound | MFU | plan: at most '
        '| memory in use | plan: peak | joules a step | watts |',
        '|' + '---|' * 12,
    ]
    for name, one in measured.items():
        plan = plans.get(name)
        if isinstance(one, str) or isinstance(plan, str) or plan is None:
            lines.append(f'| {name} | {one if isinstance(one, str) else plan} |' + ' |' * 10)
            continue
        least = plan['time']['seconds']
        joules = '' if one['joules'] is None else f'{one["joules"]:.2f}'
        watts = '' if one['watts'] is None else f'{one["watts"]:.0f}'
        mfu = '' if one['mfu'] is None else f'{one["mfu"]:.1%}'
        lines.append(
            f'| {name} | {one["batch_size"]} | {one["parameters"] / 1e6:.1f} M '
            f'| {1e3 * one["step_s"]:.2f} ms | {1e3 * least:.2f} ms | {least / one["step_s"]:.0%} '
            f'| {mfu} | {plan["mfu_bound"]:.1%} | {one["peak_bytes"] / 2**30:.2f} GiB '
            f'| {plan["memory"]["peak"] / 2**30:.2f} GiB | {joules} | {watts} |'
        )
    return '\n'.join(lines)


def main(argv: Sequence[str]) -> None:
    """Parses the command line, measures or plans, prints and writes."""
    line = CommandLine(__doc__ or '', example='--only=digits_cnn --out=measured.json')
    line.several('only', ONE_GPU, 'configs')
    line.number('seconds', 'how long each is measured', default=3.0)
    line.string('plans', 'CARD', 'plan for this card instead of measuring')
    line.string('table', 'MEASURED.json,PLANS.json', 'print their table')
    line.string('one', 'NAME', 'measure this config in this process')
    line.string('out', 'FILE.json', 'what was measured goes there too')
    options = line.parse(argv)
    if options.one and options.one not in ONE_GPU:
        raise UserError(f'--one={options.one}: must be one of {", ".join(ONE_GPU)}')
    if options.table:
        measured, plans = (
            json.loads(pathlib.Path(p).read_text()) for p in options.table.split(',')
        )
        print(table(measured, plans))
        return
    if options.one:
        print(json.dumps(run_one(options.one, options.seconds)), flush=True)
        return
    found = {}
    for name in options.only:
        if options.plans:
            words = ['jaxdl', 'plan', *words_of(name), f'--devices={options.plans}', '--json']
        else:
            words = ['experiments.gpu.steps', f'--one={name}', f'--seconds={options.seconds}']
        found[name] = _process([sys.executable, '-m', *words], 900)
        said = found[name] if isinstance(found[name], str) else 'done'
        print(f'{name}: {said}', file=sys.stderr, flush=True)
        if options.out:
            os.makedirs(os.path.dirname(options.out) or '.', exist_ok=True)
            pathlib.Path(options.out).write_text(json.dumps(found, indent=1))
    if not options.out:
        print(json.dumps(found, indent=1))


if __name__ == '__main__':
    sys.exit(run(main))
