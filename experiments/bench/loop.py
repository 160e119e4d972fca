"""jaxdl's loop beside a bare Python loop over the same compiled step on a batch that is already there.

    python -m experiments.bench.loop [--config=configs/digits_cnn.py] [--steps=600] [--rounds=5]

Prints the loop's time a step over the bare loop's, per round: median, least, greatest; and the share
of the time in which the loop waited for data.
"""

import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

from jaxdl.core.flags import CommandLine
from jaxdl.errors import run
from jaxdl.run import runtime


def main(argv: Sequence[str]) -> None:
    """Parses the command line, measures, prints and writes."""
    line = CommandLine(__doc__ or '', example='--steps=600')
    line.string('config', 'NAME', 'a config', default='configs/digits_cnn.py')
    line.integer('steps', 'of each loop', default=600, least=8)
    line.integer('rounds', 'turns of each loop', default=5, least=1)
    line.string('out', 'FILE.json', 'what was measured goes there too')
    options = line.parse(argv)
    runtime.prepare_process()
    bare, loop = [], []
    step, args = _compiled(options)
    for _ in range(options.rounds):
        bare.append(_bare(step, args, options.steps))
        loop.append(_loop(options))
    ratios = [ours['ms'] / theirs for ours, theirs in zip(loop, bare, strict=True)]
    row = {
        'bare_ms': statistics.median(bare),
        'loop_ms': statistics.median(one['ms'] for one in loop),
        'ratio': statistics.median(ratios),
        'range': [min(ratios), max(ratios)],
        'data_wait': statistics.median(one['data_wait'] for one in loop),
    }
    low, high = row['range']
    print(
        f'{options.config}: bare loop {row["bare_ms"]:.3f} ms a step, jaxdl {row["loop_ms"]:.3f}, '
        f'ratio {row["ratio"]:.3f} ({low:.3f}–{high:.3f}), data wait {100 * row["data_wait"]:.2f} %'
    )
    if options.out:
        with open(options.out, 'w') as file:
            json.dump({**vars(options), **row}, file, indent=1)


def _config(options):
    from jaxdl.core import flags
    from jaxdl.core.config import Checkpoint

    config = flags.load_config(options.config)
    config.steps, config.eval_every = options.steps, 0
    config.log_every, config.checkpoint = options.steps // 4, Checkpoint()
    return config


def _compiled(options):
    from jaxdl.core import mesh as mesh_lib
    from jaxdl.core.feed import Feed
    from jaxdl.core.pipeline import Order
    from jaxdl.core.program import Program

    config = _config(options)
    mesh = mesh_lib.make_mesh(config.mesh)
    feed = Feed(config.data.train_source(), config.batch_size, mesh, placement='device')
    program = Program(config, mesh, feed.example)
    step, _ = program.compile_train(feed.abstract(mask=False), feed.resident)
    ids = Order(len(feed.source), config.batch_size, 0).batch(0)
    batch = feed.place(feed.load(ids))
    return step, (program, feed, batch, feed.source.fetch(ids), program.place_hyper())


def _bare(step, args, steps: int) -> float:
    """Milliseconds a step."""
    import jax

    program, feed, batch, rows, hyper = args
    state = program.init(rows)
    for _ in range(20):
        state, packed = step(state, batch, feed.resident, hyper)
    jax.block_until_ready(packed)
    begin = time.perf_counter()
    for _ in range(steps):
        state, packed = step(state, batch, feed.resident, hyper)
    jax.block_until_ready((state, packed))
    return 1e3 * (time.perf_counter() - begin) / steps


def _loop(options) -> dict[str, float]:
    """The medians of a run's own metrics after its first interval."""
    from jaxdl.record.metrics_file import read_metrics
    from jaxdl.run import loop as trainer

    quiet = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, quiet:
        result = trainer.train(_config(options), folder + '/run')
        rows = read_metrics(result.workdir.metrics)[1:]
    return {
        'ms': statistics.median(row['perf/step_time_ms'] for row in rows),
        'data_wait': statistics.median(row.get('perf/data_wait', 0.0) for row in rows),
    }


if __name__ == '__main__':
    runtime.restart_with_tuned_heap()
    sys.exit(run(main))
