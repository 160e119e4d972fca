"""Measures how fast a config's data is read, and how fast the training step consumes it.

Each stage runs alone, as fast as it can: read (from disk), decode, transform (into arrays), batch
(all of these as the run does them, in its threads), stream (batches prepared ahead by the run's
placement and workers), transfer (to the devices). `step` is the training step on one batch that is
already on the device: the rate that the data must reach. A set has only some of these stages.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxdl.core.flags import CommandLine
from jaxdl.run import runtime

Count = tuple[int, int]  # records and bytes of one call


def main(argv: Sequence[str]) -> None:
    runtime.prepare_process()
    line = CommandLine(__doc__ or '', example='--config=resnet50 --config.workers=8 --seconds=5')
    line.config()
    line.number('seconds', 'how long each stage runs', default=2.0)
    line.boolean('step', 'compile and run the training step too', default=True)
    given = line.parse(argv)
    config, seconds = given.config, given.seconds
    runtime.open_devices()

    rows, bench = [], Bench(config)
    print(bench.describe(), flush=True)
    print(f'{"stage":<10} {"records/s":>12} {"MB/s":>9} {"ms/batch":>9}', flush=True)
    for name, call in bench.stages(given.step):
        rows.append((name, *measure(call, seconds)))
        records, size = rows[-1][1:]
        each = 1e3 * config.batch_size / records
        moved = f'{size / 1e6:9.1f}' if size else ' ' * 9
        print(f'{name:<10} {records:>12,.0f} {moved} {each:>9.2f}', flush=True)
    bench.close()
    print(verdict({name: records for name, records, _ in rows}), flush=True)


def measure(call: Callable[[], Count], seconds: float) -> tuple[float, float]:
    """(records, bytes) per second, from calling `call` for `seconds` after one call to warm up."""
    call()
    records = size = calls = 0
    begin = time.perf_counter()
    while calls < 2 or time.perf_counter() - begin < seconds:
        more, bytes_ = call()
        records, size, calls = records + more, size + bytes_, calls + 1
    elapsed = time.perf_counter() - begin
    return records / elapsed, size / elapsed


def verdict(rates: dict[str, float]) -> str:
    """One line that says whether the data keeps up with the step."""
    if 'step' not in rates:
        return ''
    delivered = min(rates['stream'], rates['transfer'])
    need = rates['step']
    if delivered >= need:
        return f'the data comes {delivered / need:.1f}× as fast as the step takes it'
    slowest = min(('stream', 'transfer'), key=lambda name: rates[name])
    share = 100 * (1 - delivered / need)
    return (
        f'input-bound: {slowest} delivers {delivered:,.0f} of the {need:,.0f} records/s that the '
        f'step could take; it would wait {share:.0f} % of the time'
    )


class Bench:
    """The stages of one config; each is a function that does the work of the stage once."""

    def __init__(self, config: Any):
        from jaxdl.core import mesh as mesh_lib  # slow to import, so only after the flags are read
        from jaxdl.core.feed import Feed
        from jaxdl.core.pipeline import Order

        self.config = config
        self.mesh = mesh_lib.make_mesh(config.mesh)
        self.feed = Feed(
            config.data.train_source(), config.batch_size, self.mesh, placement=config.placement
        )
        self.order = Order(len(self.feed.source), config.batch_size, config.seed)
        self.ids = self.order.batch(0)
        self._next = 0
        self._stream: Any = None

    def describe(self) -> str:
        row = sum(value.nbytes for value in self.feed.example.values())
        return (
            f'{len(self.feed.source):,} records of {row:,} bytes, batches of '
            f'{self.config.batch_size}, placement {self.feed.placement}'
        )

    def stages(self, with_step: bool) -> Iterator[tuple[str, Callable[[], Count]]]:
        import jax

        source = self.feed.source
        yield from source.stages(self.ids)

        def batch() -> Count:
            self._next += 1
            return _count(source.fetch(self.order.batch(self._next)))

        yield 'batch', batch
        from jaxdl.core.pipeline import CallIds

        self._stream = self.feed.training(
            CallIds([(self.order, 0)]),
            2**40,
            ahead=self.config.prefetch,
            workers=self.config.workers,
        )
        yield 'stream', lambda: _count(self._stream.next())
        rows = self._stream.next()

        def transfer() -> Count:
            jax.block_until_ready(self.feed.place(rows))
            return _count(rows)

        yield 'transfer', transfer
        self.close()
        if with_step:
            yield 'step', self._step(rows)

    def _step(self, rows: Any) -> Callable[[], Count]:
        import jax

        from jaxdl.core.program import Program

        program = Program(self.config, self.mesh, self.feed.example)
        self.config.steps_per_call = 1
        step, _ = program.compile_train(self.feed.abstract(mask=False), self.feed.resident)
        state = [program.init(self.feed.source.fetch(self.ids))]
        hyper, placed = program.place_hyper(), self.feed.place(rows)

        def call() -> Count:
            state[0], packed = step(state[0], placed, self.feed.resident, hyper)
            jax.block_until_ready(packed)
            return self.config.batch_size, 0

        return call

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _count(rows: dict[str, Any]) -> Count:
    return len(next(iter(rows.values()))), sum(value.nbytes for value in rows.values())
