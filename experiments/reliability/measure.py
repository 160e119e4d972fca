"""What reliability costs: python -m experiments.reliability.measure digest|stall|memory [--millions=100]

digest  what the digest adds to a save of a state of so many parameters
stall   what an asynchronous save adds to the training that goes on meanwhile, in steps
memory  peak memory of a process that restores, against one that starts fresh

The state is a Transformer's with AdamW (three float32 numbers a parameter), the data is text of the
standard library; folders are made under --folder and removed.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl.core.flags import CommandLine
from jaxdl.errors import UserError, nearest, run, shortened
from jaxdl.run import runtime

WIDTHS = {10: (384, 6, 6), 100: (1024, 8, 8)}  # millions of parameters: width, layers, heads


def parts(millions: int):
    """(program, feed, order, compiled step) of a run on this machine's devices."""
    import argparse as text

    from jaxdl.core import mesh as mesh_lib
    from jaxdl.core.config import Config
    from jaxdl.core.feed import Feed
    from jaxdl.core.optim import AdamW
    from jaxdl.core.pipeline import Order
    from jaxdl.core.program import Program
    from jaxdl.data.text.documents import Documents
    from jaxdl.data.text.packing import Packed
    from jaxdl.data.text.sources import TextFiles
    from jaxdl.models.transformer import modern
    from jaxdl.tasks.language_model import LanguageModel

    width, layers, heads = WIDTHS[millions]
    config = Config(
        model=modern(vocab=260, width=width, layers=layers, heads=heads),
        task=LanguageModel(),
        data=Documents(source=TextFiles(str(text.__file__)), length=64, packing=Packed(context=8)),
        optimizer=AdamW(learning_rate=1e-4),
        steps=100,
        batch_size=4,
    )
    mesh = mesh_lib.make_mesh(config.mesh)
    feed = Feed(config.data.train_source(), config.batch_size, mesh)
    program = Program(config, mesh, feed.example)
    return program, feed, Order(len(feed.source), config.batch_size, 0)


def fresh(program, feed, order):
    return program.init(feed.source.fetch(order.batch(0)))


def noise(state):
    """The state with noise instead of the zeros that a fresh optimizer holds."""
    import jax
    import jax.numpy as jnp

    def fill(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        values = np.random.default_rng(leaf.size).standard_normal(leaf.shape, np.float32)
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, state)


def parameters(program) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params))


def store_in(folder: Path):
    from jaxdl.core.config import Checkpoint
    from jaxdl.record.checkpoints import Checkpoints

    return Checkpoints(folder / 'checkpoints', Checkpoint(keep=1))


def digest(millions: int, folder: Path, blocks: int = 6) -> dict:
    """Saves with their digest, and saves that are given a known one, four in a block."""
    import jax

    from jaxdl.record import checkpoints
    from jaxdl.record.digest import Digest

    program, feed, order = parts(millions)
    state, store = noise(fresh(program, feed, order)), store_in(folder)
    values = Digest(state).values()

    class Known(Digest):
        def __init__(self, tree):
            pass

        def values(self):
            return values

    alone = [timed(lambda: Digest(state).values()) for _ in range(2 * blocks)]
    read = [
        timed(lambda: [np.asarray(leaf).sum() for leaf in jax.tree.leaves(state)])
        for _ in range(2 * blocks)
    ]
    found: dict[str, list[tuple]] = {'with': [], 'without': []}
    for step in range(-2, 4 * blocks):  # the first two are not counted
        # Every second save is cheaper by itself here, so each kind comes first as often as second.
        kind = 'with' if step % 4 in (0, 3) else 'without'
        checkpoints.Digest = Digest if kind == 'with' else Known
        os.sync()  # or a save waits for the disk because of the one before it
        call = [0.0]

        def save(step=step, call=call):
            began = time.perf_counter()
            assert store.save(step + 3, state, extra={})
            call[0] = time.perf_counter() - began
            assert store.wait()

        wall, cpu = timed(save)
        if step >= 0:
            found[kind].append((call[0], wall, cpu))
    checkpoints.Digest = Digest
    store.close()
    result: dict[str, Any] = {
        'parameters': parameters(program),
        'state_gb': sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9,
        'digest_alone_s': spread([wall for wall, _ in alone]),
        'digest_alone_cpu_s': spread([cpu for _, cpu in alone]),
        'numpy_sum_of_the_same_cpu_s': spread([cpu for _, cpu in read]),
    }
    for place, name in enumerate(('call', 'save', 'save_cpu')):
        with_it, without = ([row[place] for row in found[k]] for k in ('with', 'without'))
        sums = [a - b for a, b in zip(with_it, without, strict=True)]
        added = [(first + second) / 2 for first, second in zip(sums[::2], sums[1::2], strict=True)]
        result[f'{name}_without_s'] = spread(without)
        result[f'{name}_added_s'] = spread(added)
    middle = {name: result[name]['median'] for name in result if name.endswith('_s')}
    result['alone_to_save'] = middle['digest_alone_s'] / middle['save_without_s']
    result['alone_to_save_cpu'] = middle['digest_alone_cpu_s'] / middle['save_cpu_without_s']
    return result


def timed(function) -> tuple[float, float]:
    """Seconds of a call, and of CPU time of this process during it."""
    began, busy = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - began, time.process_time() - busy


def stall(millions: int, folder: Path, steps: int = 4, repeats: int = 8) -> dict:
    """`steps` steps after a save was started, and as many without one, in turn."""
    import jax

    program, feed, order = parts(millions)
    step, _ = program.compile_train(feed.abstract(mask=False), feed.resident)
    state, store, hyper = fresh(program, feed, order), store_in(folder), program.place_hyper()
    batch = feed.place(feed.load(order.batch(0)))
    call = 0.0

    def run(save: int | None = None) -> None:
        nonlocal state, call
        if save is not None:
            began = time.perf_counter()
            assert store.save(save, state, extra={})
            call = time.perf_counter() - began
        for _ in range(steps):
            state, packed = step(state, batch, feed.resident, hyper)
            np.asarray(packed)

    run(0)  # warm
    found: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value)

    for repeat in range(1, repeats + 1):
        assert store.wait()
        os.sync()
        wall, cpu = timed(run)
        with_wall, with_cpu = timed(lambda repeat=repeat: run(repeat))
        late, _ = timed(store.wait)
        note(step_s=wall / steps, step_cpu_s=cpu / steps, call_s=call, still_writing_s=late)
        note(added_steps=(with_wall - wall) / (wall / steps))
        note(added_steps_of_cpu=(with_cpu - cpu) / (cpu / steps))
        note(call_in_steps=call / (wall / steps))
    store.close()
    jax.block_until_ready(state)
    return {
        'parameters': parameters(program),
        'steps_watched': steps,
        **{name: spread(values) for name, values in found.items()},
    }


def child(kind: str, millions: int, folder: Path) -> None:
    """Prints the peak memory of a process that makes, saves or restores the state."""
    import jax

    program, feed, order = parts(millions)
    if kind == 'restore':
        store = store_in(folder)
        store.read_only = True
        _, state, _ = store.restore(program.abstract)
    else:
        state = fresh(program, feed, order)
        if kind == 'save':
            store = store_in(folder)
            assert store.save(0, state, extra={}) and store.wait()
            store.close()
    jax.block_until_ready(state)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))


def memory(millions: int, folder: Path) -> dict:
    peaks = {}
    for kind in ('fresh', 'save', 'restore'):
        words = [sys.executable, '-m', 'experiments.reliability.measure', f'child:{kind}']
        done = subprocess.run(
            [*words, f'--millions={millions}', f'--folder={folder}'], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        peaks[f'{kind}_peak_gb'] = json.loads(done.stdout.splitlines()[-1])
    return {**peaks, 'restore_to_fresh': peaks['restore_peak_gb'] / peaks['fresh_peak_gb']}


def spread(values: list[float]) -> dict:
    low, _, high = statistics.quantiles(values, n=4)
    return {
        'median': statistics.median(values),
        'quartiles': (low, high),
        'min': min(values),
        'max': max(values),
    }


def main(argv: Sequence[str]) -> int:
    line = CommandLine(__doc__ or '', words='WHAT', example='digest --millions=100')
    line.choice('millions', ['100', '10'], 'parameters of the state')
    line.string('folder', 'DIR', 'where the checkpoints go; made and removed unless given')
    arguments = line.parse(argv)
    what, millions = arguments.words[0], int(arguments.millions)
    measures = {'digest': digest, 'stall': stall, 'memory': memory}
    children = {f'child:{kind}': kind for kind in ('fresh', 'save', 'restore')}
    if what not in (*measures, *children):
        raise UserError(
            f'{shortened(what)!r} is none of {", ".join(measures)}{nearest(what, measures)}'
        )
    runtime.prepare_process()
    if what in children:
        child(children[what], millions, Path(arguments.folder))
        return 0
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix='jaxdl-reliability-'))
    try:
        print(json.dumps(measures[what](millions, folder), indent=2))
    finally:
        if not arguments.folder:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
