"""What reliability costs: python -m experiments.reliability.measure digest|stall|memory [--millions=100]

digest  seconds of a save of a state of so many parameters, and of the digest in it
stall   what an asynchronous save adds to the training that goes on meanwhile, in steps
memory  peak memory of a process that restores, against one that starts fresh

The state is a Transformer's with AdamW (three float32 numbers a parameter), the data is text of the
standard library; folders are made under --folder and removed.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxdl import runtime

WIDTHS = {10: (384, 6, 6), 100: (1024, 8, 8)}  # millions of parameters: width, layers, heads


def parts(millions: int):
    """(program, feed, order, compiled step) of a run on this machine's devices."""
    import argparse as text

    from jaxdl import parallel
    from jaxdl.config import Config
    from jaxdl.data.packing import Packed
    from jaxdl.data.pipeline import Order
    from jaxdl.data.text import Text
    from jaxdl.feed import Feed
    from jaxdl.models.transformer import modern
    from jaxdl.optim import AdamW
    from jaxdl.program import Program
    from jaxdl.tasks.language_model import LanguageModel

    width, layers, heads = WIDTHS[millions]
    config = Config(
        model=modern(vocab=260, width=width, layers=layers, heads=heads),
        task=LanguageModel(),
        data=Text(train=str(text.__file__), length=64, packing=Packed(context=8)),
        optimizer=AdamW(learning_rate=1e-4),
        steps=100,
        batch_size=4,
    )
    mesh = parallel.make_mesh(config.mesh)
    feed = Feed(config.data.train_source(), config.batch_size, mesh)
    program = Program(config, mesh, feed.example)
    return program, feed, Order(len(feed.source), config.batch_size, 0)


def fresh(program, feed, order):
    return program.init(feed.source.fetch(order.batch(0)))


def parameters(program) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params))


def store_in(folder: Path):
    from jaxdl.checkpoint import Checkpoints
    from jaxdl.config import Checkpoint

    return Checkpoints(folder / 'checkpoints', Checkpoint(keep=1))


def digest(millions: int, folder: Path, repeats: int = 4) -> dict:
    import jax

    from jaxdl import checkpoint

    program, feed, order = parts(millions)
    state, store = fresh(program, feed, order), store_in(folder)
    jax.block_until_ready((state, checkpoint._digest(state)))
    saves, digests, cpu = [], [], [0.0, 0.0]
    for step in range(1, repeats + 1):
        began, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(checkpoint._digest(state))
        digests.append(time.perf_counter() - began)
        cpu[0] += time.process_time() - busy
        began, busy = time.perf_counter(), time.process_time()
        assert store.save(step, state, extra={}) and store.wait()
        saves.append(time.perf_counter() - began)
        cpu[1] += time.process_time() - busy
    store.close()
    return {
        'parameters': parameters(program),
        'state_gb': sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9,
        'save_s': spread(saves[1:]),
        'digest_s': spread(digests[1:]),
        'digest_cpu_s': cpu[0] / repeats,
        'save_cpu_s': cpu[1] / repeats,
        'share_of_cpu_time': cpu[0] / cpu[1],
        'share': statistics.median(digests[1:]) / statistics.median(saves[1:]),
    }


def stall(millions: int, folder: Path, steps: int = 12, repeats: int = 3) -> dict:
    import jax
    import numpy as np

    program, feed, order = parts(millions)
    step, _ = program.compile_train(feed.abstract(mask=False), feed.resident)
    state, store, hyper = fresh(program, feed, order), store_in(folder), program.place_hyper()
    batch = feed.place(feed.load(order.batch(0)))

    def run(state, save: int | None) -> tuple:
        """The state, and the seconds of each step; before the first one a save is started."""
        times = []
        for index in range(steps):
            began = time.perf_counter()
            if index == 0 and save is not None:
                assert store.save(save, state, extra={})
            state, packed = step(state, batch, feed.resident, hyper)
            np.asarray(packed)
            times.append(time.perf_counter() - began)
        return state, times

    state, _ = run(state, None)  # warm
    added, plain, calls = [], [], []
    for repeat in range(1, repeats + 1):
        state, without = run(state, None)
        state, times = run(state, repeat)
        began = time.perf_counter()
        assert store.wait()
        calls.append(time.perf_counter() - began)
        plain.append(statistics.median(without))
        added.append((sum(times) - sum(without)) / statistics.median(without))
    store.close()
    jax.block_until_ready(state)
    return {
        'parameters': parameters(program),
        'step_s': spread(plain),
        'added_steps': spread(added),
        'still_writing_after_s': spread(calls),
        'steps_watched': steps,
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
            assert store.save(1, state, extra={}) and store.wait()
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
    return {'median': statistics.median(values), 'min': min(values), 'max': max(values)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('what', help='digest, stall or memory')
    parser.add_argument('--millions', type=int, default=100, choices=sorted(WIDTHS))
    parser.add_argument('--folder', help='where the checkpoints go; made and removed by default')
    arguments = parser.parse_args()
    runtime.prepare_process()
    if arguments.what.startswith('child:'):
        child(arguments.what.partition(':')[2], arguments.millions, Path(arguments.folder))
        return 0
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix='jaxdl-reliability-'))
    try:
        measure = {'digest': digest, 'stall': stall, 'memory': memory}[arguments.what]
        print(json.dumps(measure(arguments.millions, folder), indent=2))
    finally:
        if not arguments.folder:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
