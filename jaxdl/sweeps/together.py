"""Several runs of one compiled program, trained at once by vmap over their states.

The runs differ in their seed and in scalars (learning rate, weight decay, …). One step takes the
states [runs, …], the hyper-parameters [runs] and each run's own batch [runs, batch, …]; each run
has the data order, the random numbers, the logs and the checkpoints that it would have alone.
"""

import collections
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.account.clock import Clock
from jaxdl.core import config as config_lib
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Config
from jaxdl.core.evaluation import Evaluator
from jaxdl.core.feed import Feed
from jaxdl.core.inflight import InFlight
from jaxdl.core.pipeline import Prefetch
from jaxdl.core.program import Program
from jaxdl.core.ranges import bounds_of
from jaxdl.core.step import COUNT, Packing, TrainState
from jaxdl.errors import Preempted, UserError
from jaxdl.record import metrics_file as logs
from jaxdl.run import nonfinite
from jaxdl.run.loop import INIT_ROWS
from jaxdl.run.signals import StopRequest, Watchdog
from jaxdl.sweeps import check
from jaxdl.sweeps.lane import Lane


def train_together(
    configs: Sequence[Config], workdirs: Sequence[str], *, context: dict | None = None
) -> None:
    """Trains runs that share a compiled program, or goes on with them; finished ones are skipped.

    A run that diverges ends alone; the others go on.

    Raises:
        UserError: a config, the data or a folder is wrong, or the programs differ.
        Preempted: a signal came; all runs were saved.
    """
    groups = [check.group_of(config) for config in configs]
    if len(set(groups)) > 1:
        raise UserError(
            'these runs do not share a compiled program: they may differ only in the seed and in '
            'scalars, and a scalar that is 0 in one must be 0 in all'
        )
    for config in configs:
        why = check.why_alone(config)
        if why:
            raise UserError(f'this run cannot be trained together with others: {why}')
    context = dict(context or {})
    started = context.pop('started', time.monotonic())
    together = Together(configs, workdirs, context, started)
    try:
        together.run()
    finally:
        together.close()


class Together:
    """Several runs and the program that trains them."""

    def __init__(
        self, configs: Sequence[Config], workdirs: Sequence[str], context: dict, started: float
    ):
        self.clock = Clock(started)
        self.config, self.context = configs[0], context
        config = self.config
        self.lanes: list[Lane] = []
        with self.clock('setup'):
            self.mesh = mesh_lib.make_mesh(config_lib.Mesh(), jax.devices()[:1])
            self.feed = Feed(
                config.data.train_source(),
                config.batch_size,
                self.mesh,
                placement=config.placement,
                ranges=bounds_of(config),
            )
            self.program = Program(config, self.mesh, self.feed.example)
            self.evaluator = Evaluator(self.program, config.data.eval_sources())
            for config, workdir in zip(configs, workdirs, strict=True):
                self.lanes.append(Lane(config, workdir, len(self.feed.source)))

    def close(self) -> None:
        for lane in self.lanes:
            lane.close()

    def run(self) -> None:
        def hung(reason: str) -> None:
            for lane in self.lanes:
                if not lane.over:
                    lane.end('failed', reason)

        watchdog = Watchdog(self.config.hang_timeout, hung)
        try:
            with StopRequest() as stop:
                for lanes, step, states in self._groups():
                    _Run(self, lanes, step, states, stop, watchdog).run()
        finally:
            watchdog.close()

    # ---- where the runs stand ----

    def _groups(self) -> list[tuple[list[Lane], int, list[TrainState]]]:
        """[(runs, their common step, their states)]: one group unless they have no step in common."""
        left = [lane for lane in self.lanes if not lane.has_finished()]
        found = []
        with self.clock('checkpoint'):
            if left and not any(lane.checkpoints.steps() for lane in left):
                found.append((left, 0, self._fresh(left)))
                return found
            while left:
                newest = max(left, key=lambda lane: max(lane.checkpoints.steps(), default=0))
                lanes, step, states = self._common(left, newest)
                found.append((lanes, step, states))
                left = [lane for lane in left if lane not in lanes]
        return found

    def _common(self, lanes: list[Lane], leader: Lane) -> tuple[list[Lane], int, list[TrainState]]:
        """The runs that can start where `leader` can, at the step that most of them have."""
        every = [lane for lane in lanes if lane.checkpoints.steps()]
        steps = sorted(leader.checkpoints.steps(), reverse=True)
        steps.sort(key=lambda step: -sum(step in lane.checkpoints.steps() for lane in every))
        for step in steps:
            members = [lane for lane in every if step in lane.checkpoints.steps()]
            tried = [(lane, lane.restore(step, self.program.abstract)) for lane in members]
            good = [(lane, state) for lane, state in tried if state is not None]
            if leader in [lane for lane, _ in good]:
                return [lane for lane, _ in good], step, [state for _, state in good]
        alone = [leader] if steps else [lane for lane in lanes if not lane.checkpoints.steps()]
        return alone, 0, self._fresh(alone)

    def _fresh(self, lanes: list[Lane]) -> list[TrainState]:
        # Not vmapped, so that a run starts from the very same numbers as alone; traced once.
        jitted = jax.jit(self.program._plain.init, out_shardings=self.program.shardings)
        init, states = self.program._scoped(jitted), []
        for lane in lanes:
            rows = self.feed.source.fetch(lane.order.batch(0)[:INIT_ROWS])
            states.append(init(rows, lane.hyper))
        return states


class _Run:
    """One pass over the steps for runs that stand at the same step."""

    def __init__(
        self,
        together: Together,
        lanes: list[Lane],
        step: int,
        states: list[TrainState],
        stop: StopRequest,
        watchdog: Watchdog,
    ):
        self.config, self.mesh, self.feed = together.config, together.mesh, together.feed
        self.program, self.evaluator = together.program, together.evaluator
        self.clock, self.context = together.clock, together.context
        self.lanes, self.start, self.stop, self.watchdog = lanes, step, stop, watchdog
        self.state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        hypers = [lane.hyper for lane in lanes]
        self.hyper = jax.tree.map(lambda *values: jnp.stack(values), *hypers)
        self.parameters = states[0].params
        self.pending: collections.deque = collections.deque()

    def run(self) -> None:
        print(f'{len(self.lanes)} runs in one program, from step {self.start}', flush=True)
        with self.clock('compile'):
            self._compile()
        for lane in self.lanes:
            lane.begin(
                self.start,
                self.packing,
                parameters=logs.count_parameters(self.parameters),
                devices=[str(d.device_kind) for d in self.mesh.devices.flat],
                placement=self.feed.placement,
                together=len(self.lanes),
                saved=self.start or None,
                **self.context,
            )
        del self.parameters
        self.progress = logs.Progress(self.config.steps, start=self.start)
        try:
            self._loop()
            if self.active:
                self._finish()
        except Preempted as error:
            self._end('preempted', str(error))
            raise
        except BaseException as error:
            self._end('failed', str(error) or type(error).__name__)
            raise
        finally:
            self.progress.close()

    @property
    def active(self) -> list[Lane]:
        return [lane for lane in self.lanes if not lane.over]

    def _end(self, status: str, reason: str) -> None:
        for lane in self.active:
            lane.end(status, reason)

    # ---- the program ----

    def _compile(self) -> None:
        program, count = self.program, len(self.lanes)
        everywhere = mesh_lib.replicated(self.mesh)

        def many(tree, place):
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=place), tree
            )

        state, hyper = many(program.abstract, everywhere), many(program.hyper, everywhere)
        shardings = jax.tree.map(lambda x: x.sharding, state)
        batch = self.feed.abstract(mask=False)
        self.packing = program.packing(program._plain.train_metrics, batch, self.feed.resident)
        compile_step = program._scoped(mesh_lib.compile_step)
        self.train_step = compile_step(
            jax.vmap(program.steps.train_step(self.packing), in_axes=(0, 0, None, 0)),
            (
                state,
                many(batch, mesh_lib.batch_sharding(self.mesh, leading=1)),
                _abstract(self.feed.resident),
                hyper,
            ),
            (shardings, everywhere),
            donate=True,
            mesh=self.mesh,
        )
        self.in_flight = InFlight(self.train_step)
        self.eval_steps: dict[str, tuple[Callable, Packing]] = {}
        for name, feed in self.evaluator.feeds.items():
            batch = feed.abstract(mask=True)
            packing = program.packing(program._plain.eval_metrics, batch, feed.resident)
            step = compile_step(
                jax.vmap(program.steps.eval_step(packing), in_axes=(0, None, None, 0)),
                (state, batch, _abstract(feed.resident), hyper),
                everywhere,
                donate=False,
                mesh=self.mesh,
            )
            self.eval_steps[name] = (step, packing)

    # ---- the loop ----

    def _loop(self) -> None:
        config, clock = self.config, self.clock
        place = mesh_lib.batch_sharding(self.mesh, leading=1)

        def produce(index: int) -> dict[str, np.ndarray]:
            rows = [self.feed.load(lane.order.batch(index + lane.offset)) for lane in self.lanes]
            return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

        self._mark(self.start)
        fetch = Prefetch(produce, self.start, config.steps, config.prefetch)
        try:
            for step in range(self.start + 1, config.steps + 1):
                if self.stop.name:
                    self._preempt(step - 1)
                with clock('data_wait'):
                    rows = fetch.next()
                with clock('transfer'):
                    batch = jax.device_put(rows, place)
                with clock('dispatch'):
                    self.state, packed = self.train_step(
                        self.state, batch, self.feed.resident, self.hyper
                    )
                    packed.copy_to_host_async()
                self.pending.append((step, packed))
                self._take_in(self.in_flight.most)
                evaluate = config.eval_every and step % config.eval_every == 0
                save = config.checkpoint.every and step % config.checkpoint.every == 0
                if step < config.steps and (evaluate or save):
                    self._take_in(0)
                    if evaluate:
                        self._evaluate(step)
                    if save:
                        self._save(step)
                if not self.active:
                    return
            self._take_in(0)
        finally:
            fetch.close()

    def _take_in(self, leave: int) -> None:
        while len(self.pending) > leave:
            step, packed = self.pending.popleft()
            with self.clock('device'):
                vectors = np.asarray(packed, np.float64)
                self.in_flight.settle()
            self.watchdog.beat()
            for index, lane in enumerate(self.lanes):
                if not lane.over and not lane.count(vectors[index]):
                    self._diverge(step, index, vectors[index])
            if step % self.config.log_every == 0:
                self._log(step)

    def _log(self, step: int) -> None:
        seconds, steps = self._elapsed(), step - self._marked_step
        with self.clock('log'):
            rows = [lane.log(step, seconds / steps if steps else 0.0) for lane in self.active]
            self._show(step, rows)
        self._mark(step)

    def _show(self, step: int, rows: list[dict[str, float]]) -> None:
        """The runs' mean of each metric."""
        names = rows[0] if rows else {}
        means = {n: sum(row.get(n, 0.0) for row in rows) / len(rows) for n in names}
        self.progress.update(step, means)

    def _aside(self) -> float:
        seconds = self.clock.read()
        return sum(
            seconds.get(name, 0.0) for name in ('evaluation', 'checkpoint', 'log', 'compile')
        )

    def _elapsed(self) -> float:
        return self.clock.total() - self._marked_at - (self._aside() - self._marked_aside)

    def _mark(self, step: int) -> None:
        self._marked_step = step
        self._marked_at, self._marked_aside = self.clock.total(), self._aside()

    def _evaluate(self, step: int) -> None:
        found: list[dict[str, float]] = [{} for _ in self.lanes]
        with self.clock('evaluation'):
            for name, feed in self.evaluator.feeds.items():
                run_step, packing = self.eval_steps[name]
                total = np.zeros((len(self.lanes), packing.size), np.float64)
                waiting = []
                for batch in feed.evaluation(ahead=self.config.prefetch):
                    waiting.append(run_step(self.state, batch, feed.resident, self.hyper))
                    if len(waiting) > 2:
                        total += np.asarray(waiting.pop(0), np.float64)
                        self.watchdog.beat()
                for packed in waiting:
                    total += np.asarray(packed, np.float64)
                for index in range(len(self.lanes)):
                    found[index] |= self._means(name, packing, total[index])
        rows = []
        with self.clock('log'):
            for lane, row in zip(self.lanes, found, strict=True):
                if not lane.over:
                    lane.write(step, row)
                    rows.append(row)
            self._show(step, rows)

    def _means(self, name: str, packing: Packing, total: np.ndarray) -> dict[str, float]:
        """The row of one evaluation set, as jaxdl.core.evaluation makes it."""
        means = packing.means(total)
        means |= self.config.task.derived({k: v for k, v in means.items() if isinstance(v, float)})
        row = {f'eval/{name}/{key}': v for key, v in means.items() if isinstance(v, float)}
        return {**row, f'eval/{name}/examples': float(packing.unpack(total)[COUNT][0])}

    def _diverge(self, step: int, index: int, vector: np.ndarray) -> None:
        """Ends one run; its state stands still since the step before."""
        lane = self.lanes[index]
        found = nonfinite.describe(
            step,
            self.packing.unpack(vector),
            self.program.steps.suspects(self.program.abstract),
            lane.order.batch(step - 1 + lane.offset),
        )
        message = f"the run diverged: {found} (policy '{lane.config.divergence.policy}')"
        lane.write(step, {'train/skipped': float(lane.skipped)})
        lane.over = 'diverged'
        lane.end('failed', message, exit=3)
        self.progress.message(f'{lane.place.path.name}: {message}')

    # ---- saving ----

    def _save(self, step: int) -> bool:
        place = mesh_lib.replicated(self.mesh)
        good = True
        with self.clock('checkpoint'):
            # One transfer for all runs; a slice per leaf and run would be as many programs.
            host = jax.device_get(self.state)
            for index, lane in enumerate(self.lanes):
                if not lane.over:
                    mine = jax.tree.map(lambda x, i=index: np.array(x[i]), host)
                    good = lane.save(step, jax.device_put(mine, place), self._share()) and good
        return good

    def _share(self) -> dict[str, float]:
        """Each run's share of the time that this process has spent."""
        seconds = self.clock.read()
        return {name: value / len(self.lanes) for name, value in seconds.items() if value > 0}

    def _preempt(self, step: int) -> None:
        self._take_in(0)
        saved = self._save(step)
        for lane in self.active:
            saved = lane.checkpoints.wait() and saved
        if not saved:
            reasons = [lane.checkpoints.failed for lane in self.active if lane.checkpoints.failed]
            raise RuntimeError(f'{self.stop.name}: {"; ".join(reasons)}')
        raise Preempted(f'{self.stop.name} at step {step}; saved, the same command resumes')

    def _finish(self) -> None:
        step = self.config.steps
        self.watchdog.rest()
        if self.evaluator.feeds:
            self._evaluate(step)
        for lane in self.active:
            lane.write_time(step, self._share())
        self._save(step)
        with self.clock('checkpoint'):
            for lane in self.active:
                lane.finish(step)


def _abstract(tree: Any) -> Any:

    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
