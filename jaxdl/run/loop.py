"""THE loop: batch → step → metrics → log, with evaluation, checkpoints and an honest end.

The only module that knows every other. One iteration, in order, and never another order:
    1. fetch the next batch, place it on the mesh, start the step (nothing waits for the device)
    2. take in the metrics of the step two before, which are done by now (inflight.py)
    3. at its steps: log, evaluate, save
    4. a signal: save and leave
"""

import collections
from typing import Any

import jax
import numpy as np

from jaxdl.account import flops
from jaxdl.account.account import Account, Work
from jaxdl.account.clock import Clock
from jaxdl.account.energy import Meter, local_gpus
from jaxdl.account.profiler import Profiler
from jaxdl.core import config as config_lib
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Config
from jaxdl.core.evaluation import Evaluator, check_best
from jaxdl.core.feed import Feed, Stream
from jaxdl.core.inflight import InFlight
from jaxdl.core.pipeline import Order
from jaxdl.core.program import Program
from jaxdl.core.recompile import OneProgram
from jaxdl.core.step import FINITE, STOP, TrainState
from jaxdl.errors import Diverged, NotSaved, Preempted, UserError
from jaxdl.record import metrics_file as logs
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.record.folder import Workdir
from jaxdl.record.writer import Record, Result
from jaxdl.run import nonfinite, runtime
from jaxdl.run.interval import Interval
from jaxdl.run.processes import Peers, StopFlag
from jaxdl.run.signals import Interrupted, StopRequest, Watchdog
from jaxdl.run.start import States

# Training examples that a fresh model may look at.
INIT_ROWS = 512


def train(
    config: Config,
    workdir: str,
    *,
    context: dict | None = None,
    profile: tuple[int, int] | None = None,
) -> Result:
    """Trains `config` in `workdir`, or goes on with the run that is there.

    Args:
        config: the run.
        workdir: its folder.
        context: what run.json shall also say (command, environment, 'started': time.monotonic()).
        profile: completed steps between which a trace is taken, (start, stop).

    Raises:
        UserError: config, data set or folder are wrong; nothing was changed.
        Diverged: the divergence policy ended the run.
        Preempted: a signal came; a checkpoint was saved.
    """
    context = {'profile': profile, **(context or {})}
    clock = Clock(context.pop('started', None))
    clock.move('other', 'import', clock.seconds['other'])
    config_lib.check(config)
    peers, place = Peers(), Workdir(workdir)
    try:
        with StopRequest() as stop:
            if place.path.exists():
                place.check_config(config)
            if jax.process_index() == 0:
                place.create()
            result = _Run(config, place, clock, context, stop, peers).run()
    except (Preempted, Diverged):
        peers.close()  # these end all processes alike
        raise
    except BaseException as error:
        clearer = peers.failed(error)
        if clearer is not error:
            raise clearer from error
        raise
    finally:
        place.release()
    peers.close()
    return result


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        config: Config,
        place: Workdir,
        clock: Clock,
        context: dict,
        stop: StopRequest,
        peers: Peers,
    ):
        self.config, self.place, self.clock = config, place, clock
        self.stop, self.peers = stop, peers
        self.chief = jax.process_index() == 0
        self.record = Record(place, chief=self.chief, sample_ids=config.record_samples)
        with clock('setup'):
            self.mesh = mesh_lib.make_mesh(config.mesh)
            mesh_lib.check_batch('batch_size', config.batch_size, config.accumulate, self.mesh)
            with clock('data_setup'):
                self.feed = Feed(
                    config.data.train_source(),
                    config.batch_size,
                    self.mesh,
                    placement=config.placement,
                )
                sources = config.data.eval_sources()
            config.data.check_with(config.model, config.task)
            self.program = Program(config, self.mesh, self.feed.example)
            self.evaluator = Evaluator(self.program, sources)
            check_best(config.checkpoint.best, self.evaluator.names())
            self.suspects = self.program.steps.suspects(self.program.abstract)
            self.order = Order(len(self.feed.source), config.batch_size, config.seed)
            self.hyper = self.program.place_hyper()
            self.checkpoints = Checkpoints(place.checkpoints, config.checkpoint)
            self.states = States(
                self.program, self.checkpoints, place, self._rows_to_look_at, clock
            )
            place.check_config(config)
            if place.config.exists():
                self.record.keep_data(config.data)
        self.context = context
        self.metrics: dict[str, float] = {}
        self.pending: collections.deque = collections.deque()
        self.interval = Interval(clock)
        self.account = Account(
            clock,
            Meter(local_devices=local_gpus()),
            batch_size=config.batch_size,
            run=place.read_run(),
            last_row=self._last_row(),
        )
        self.recalled: dict = {}  # what the checkpoint held beside the state
        self.saved_step: int | None = None  # what was saved or restored last
        self.unevaluated = False  # a signal broke the evaluation of this step off
        self.evaluated = -1  # the newest step that was evaluated
        self.flag = StopFlag(self.mesh, config.steps_per_call)

    # ---- the whole run ----

    def run(self) -> Result:
        config = self.config
        self.watchdog = Watchdog(config.hang_timeout, self._hung)
        self.profiler = Profiler(
            self.place.path / 'profile',
            self.context.pop('profile', None) if self.chief else None,
            lambda: self.train_step.text(),
        )
        self.peers.report = lambda reason: self.record.end('failed', reason)
        try:
            self.peers.meet()
            state, extra = self.states.first()
            self._recall(state, extra)
            self.account.begin((extra or {}).get('account'))
            if int(state.step) > config.steps:
                raise UserError(
                    f'--config.steps={config.steps}: the run in {self.place.path} is already at '
                    f'step {int(state.step)}; give at least that many, or another --workdir'
                )
            if int(state.step) == config.steps == self._last_row().get('step') and (
                not self.unevaluated
            ):
                return self._already_finished(state)
            self._begin(state)
            self.record.open(int(state.step))
            if self.chief and int(state.step) == 0:
                with self.clock('log'):
                    print(logs.parameter_table(state.params), flush=True)
            self._compile()
            self.peers.meet()
            while True:
                try:
                    state = self._loop(state)
                    break
                except nonfinite.Rollback as bad:
                    state = self._roll_back(bad)
            return self._finish(state)
        except Preempted as error:
            self.record.end('preempted', str(error))
            raise
        except BaseException as error:
            self.record.end('failed', str(error) or type(error).__name__)
            raise
        finally:
            self.watchdog.close()
            self.account.close()
            self.profiler.close()
            self.record.close()
            self.checkpoints.close()

    def _hung(self, reason: str) -> None:
        self.record.end('failed', reason)
        self.peers.failed(RuntimeError(reason))

    def _rows_to_look_at(self) -> dict[str, np.ndarray]:
        return self.feed.source.fetch(self.order.batch(0)[:INIT_ROWS])

    def _already_finished(self, state: TrainState) -> Result:
        step = int(state.step)
        if self.chief:
            print(f'already finished at step {step} in {self.place.path}', flush=True)
            if self.place.status() != 'finished':  # killed after the last save
                self._begin(state)
                self.record.end('finished', f'step {step}')
        return Result(step, self._last_row(), self.place)

    def _last_row(self) -> dict:
        return (logs.read_metrics(self.place.metrics) or [{}])[-1]

    def _begin(self, state: TrainState) -> None:
        """Writes config.json and run.json: from here on the folder holds this run."""
        self.record.begin(
            self.config,
            from_step=int(state.step),
            parameters=logs.count_parameters(self.program.abstract.params),
            devices=[str(d.device_kind) for d in self.mesh.devices.flat],
            processes=jax.process_count(),
            mesh={axis: size for axis, size in self.mesh.shape.items() if size > 1},
            placement=self.feed.placement,
            saved=self.states.saved_before if self.saved_step is None else self.saved_step,
            **self.account.facts(),
            **self.context,
        )

    def _recall(self, state: TrainState, extra: dict | None) -> None:
        """Takes over what a checkpoint held beside the state; None: there was none."""
        self.saved_step = None if extra is None else int(state.step)
        self.recalled = extra or {}
        self.unevaluated = bool(self.recalled.get('unevaluated'))
        self.metrics = dict(self.recalled.get('metrics', self.metrics))

    def _compile(self) -> None:
        with self.clock('compile'):
            batch = {**self.feed.abstract(mask=False), **self.flag.abstract}
            step, self.packing = self.program.compile_train(batch, self.feed.resident)
            runtime.release_heap()  # what compiling took, before the step takes its temporaries
            self.in_flight = InFlight(step)
            self.train_step = OneProgram(
                step, self.program.traces, batch, self.config.steps_per_call
            )

    # ---- the loop ----

    def _loop(self, state: TrainState) -> TrainState:
        config, clock = self.config, self.clock
        start, offset = int(state.step), int(state.health.data_offset)
        self.skipped, self.in_a_row = int(state.health.skipped), int(state.health.in_a_row)
        self.rollbacks, self.offset = int(state.health.rollbacks), offset
        calls = config.steps_per_call
        self.record.start_progress(config.steps, start=start)
        self.pending.clear()
        self.stop_agreed = False
        if config.compile != 'pmap':  # which compiles at its first call
            self.watchdog.beat()
        self.interval.begin(start, self.packing.size, self.recalled)
        if self.unevaluated and start < config.steps:
            self._evaluate(start, state)
        stream = self.feed.training(
            self.order,
            start + offset,
            config.steps + offset,
            ahead=config.prefetch,
            calls=calls,
            workers=config.workers,
        )
        step = start
        try:
            while step < config.steps:
                if self.stop_agreed or (self.stop.name and self.flag.alone):
                    self._preempt(step, state)
                if self.profiler.due(step):
                    self._profile(step)
                with clock('data_wait'):
                    rows = self._next_rows(stream, step, state)
                with clock('transfer'):
                    batch = {**stream.place(rows), **self.flag.raised(bool(self.stop.name))}
                self._note_samples(step, rows['id'])
                with clock('dispatch'):
                    state, packed = self.train_step(state, batch, self.feed.resident, self.hyper)
                    packed.copy_to_host_async()
                step += calls
                self.pending.append((step, packed))
                self._take_in(self.in_flight.most)
                if self.chief and self.account.work is None:
                    self._take_in(0)
                    self._catch_up(first=start == 0)
                evaluate = config.eval_every and step % config.eval_every == 0
                save = config.checkpoint.every and step % config.checkpoint.every == 0
                if step < config.steps and (evaluate or save):
                    self._take_in(0)
                    if evaluate:
                        self._evaluate(step, state)
                    if save:
                        self._save(step, state)
            self._take_in(0)
            if self.profiler.tracing:
                self._profile(step)
            return state
        finally:
            stream.close()
            self.record.stop_progress()

    def _profile(self, step: int) -> None:
        """Starts or ends a trace, with nothing under way."""
        self._take_in(0)
        with self.clock('profile'), self.watchdog.paused():
            self.record.message(self.profiler.turn(step))

    def _note_samples(self, step: int, ids: np.ndarray) -> None:
        """Writes down what the next steps are trained on; `ids` are this process's rows."""
        calls = self.config.steps_per_call
        if not self.flag.alone:
            first = step + self.offset
            ids = np.stack([self.order.batch(index) for index in range(first, first + calls)])
        self.record.sampled(step + 1, ids.reshape(calls, -1))

    def _next_rows(self, stream: Stream, step: int, state: TrainState) -> dict[str, np.ndarray]:
        try:
            return stream.next_rows()
        except Exception as error:
            self._take_in(0)
            saved = ''
            # Alone, nothing is lost: with several processes the others do not know and cannot save.
            if jax.process_count() == 1 and step != self.saved_step and step > 0:
                if self._save(step, state) and self.checkpoints.wait():
                    saved = f'; saved at step {step}, the same command resumes there'
            ids = ', '.join(map(str, self.order.batch(step + self.offset)[:8]))
            message = f'the data source failed at step {step + 1} (sample ids {ids}, …)'
            kind = '' if isinstance(error, UserError) else f'{type(error).__name__}: '
            failure = UserError if isinstance(error, UserError) else RuntimeError
            raise failure(f'{message}: {kind}{error}{saved}') from error

    def _take_in(self, leave: int) -> None:
        """Takes in the metrics of the oldest steps under way until only `leave` of them are."""
        while len(self.pending) > leave:
            step, packed = self.pending.popleft()
            with self.clock('device'):
                vectors = np.asarray(packed, np.float64).reshape(-1, self.packing.size)
                self.in_flight.settle()
            self.watchdog.beat()
            self.account.first_step()
            first = step - len(vectors) + 1
            for index, vector in enumerate(vectors):
                self._count(first + index, vector)

    def _count(self, step: int, vector: np.ndarray) -> None:
        metrics = self.packing.unpack(vector)
        # All processes see this in the same step, so all stop at the same one.
        self.stop_agreed = self.stop_agreed or (STOP in metrics and bool(metrics[STOP][0]))
        if metrics[FINITE][0] == 1:
            self.in_a_row = 0
            self.interval.add(vector)
        else:
            self.in_a_row += 1
            self.skipped += 1
            ids = self.order.batch(step - 1 + self.offset)
            message = nonfinite.describe(step, metrics, self.suspects, ids)
            try:
                warning = nonfinite.judge(
                    self.config.divergence,
                    step,
                    message,
                    in_a_row=self.in_a_row,
                    rollbacks=self.rollbacks,
                )
            except Diverged:
                self._write(step, {'train/skipped': float(self.skipped)})
                raise
            self.record.message(warning)
        if step % self.config.log_every == 0:
            self._log(step)

    def _log(self, step: int) -> None:
        """Ends the interval: its means and its speed become the row of `step`."""
        means, seconds = self.interval.end(step, self.packing, self.config.task)
        row = {f'train/{name}': value for name, value in means.items()}
        if self.skipped:
            row['train/skipped'] = float(self.skipped)
        if self.rollbacks:
            row['train/rollbacks'] = float(self.rollbacks)
        row |= self.account.speed(step, seconds)
        row['perf/epoch'] = (step + self.offset) * self.config.batch_size / self.order.examples
        self._write(step, row)

    def _evaluate(self, step: int, state: TrainState, *, final: bool = False) -> dict[str, Any]:
        with self.clock('compile'), self.watchdog.paused():
            self.evaluator.compile()
        try:
            with self.clock('evaluation'):
                found = self.evaluator.run(state, self.hyper, self._heard)
                generated = self.evaluator.generate(state, self._heard, final=final)
        except Interrupted:
            self.unevaluated = True
            self._preempt(step, state)
            raise
        self.unevaluated, self.evaluated = False, step
        row = {name: value for name, value in found.items() if isinstance(value, float)}
        if generated is not None:
            row |= {f'eval/{name}': value for name, value in generated.scores.items()}
        self._write(step, row)
        self.record.results(step, found, generated, self.config.data.class_names())
        return row

    # ---- what goes wrong ----

    def _heard(self) -> None:
        """The evaluation goes on; a signal breaks it off where no other process takes part."""
        self.watchdog.beat()
        if self.stop.name and self.flag.alone:
            raise Interrupted

    def _roll_back(self, bad: nonfinite.Rollback) -> TrainState:
        """The last checkpoint's state (or a fresh one), with the data moved past the bad step."""
        self.pending.clear()
        self.account.undo()
        state, extra = self.states.back(bad, offset=self.offset, count=self.rollbacks + 1)
        self._recall(state, extra)
        self.unevaluated = False  # it was evaluated since then
        self.record.truncate(int(state.step))
        return state

    def _preempt(self, step: int, state: TrainState) -> None:
        self._take_in(0)
        name = self.stop.name or 'a signal to another process'
        saved = self._save(step, state) and self.checkpoints.wait()
        if not saved:
            raise RuntimeError(f'{name}: {self.checkpoints.failed}')
        raise Preempted(f'{name} at step {step}; saved, the same command resumes')

    # ---- saving, finishing ----

    def _save(self, step: int, state: TrainState) -> bool:
        """Saves a state that is known to be finite: its steps' metrics were taken in before."""
        # The value of an older step would let a later, worse state count as the best.
        best = self.metrics.get(self.config.checkpoint.best) if self.evaluated == step else None
        extra = {
            **self.interval.save(),
            'metrics': self.metrics,
            'unevaluated': self.unevaluated,
            'account': self.account.extra(),
        }
        if step < self.config.steps:
            self._write(step, self.account.metrics())
        with self.clock('log'):
            self.record.flush()
        with self.clock('checkpoint'):
            if step == self.saved_step:
                return True
            saved = self.checkpoints.save(step, state, extra=extra, best=best)
            self.saved_step = step if saved else self.saved_step
        if saved:
            self.account.keep()
            # Orbax ends the save before this one first, so a step noted here was once complete.
            self.record.note(step=step, saved=max(self.checkpoints.steps(), default=None))
        return saved

    def _finish(self, state: TrainState) -> Result:
        step = int(state.step)
        row = self._evaluate(step, state, final=True) if self.evaluator.feeds else {}
        saved = self._save(step, state)
        with self.clock('checkpoint'):
            saved = self.checkpoints.wait() and saved
        if not saved:
            raise NotSaved(f'the run reached step {step}, but {self.checkpoints.failed}')
        self.record.note(step=step, saved=step)
        self._write(step, self.account.metrics())
        self.record.end('finished', f'step {step}')
        if self.chief:
            print(self.account.sentence(placement=self.feed.placement), flush=True)
        return Result(step, {**self.metrics, **row}, self.place)

    # ---- logs ----

    def _write(self, step: int, row: dict[str, float]) -> None:
        self.metrics |= row
        with self.clock('log'):
            self.record.write(step, row)

    def _catch_up(self, *, first: bool) -> None:
        """What the first step need not wait for: the count of FLOPs, pictures of a fresh run's batch."""
        config = self.config
        batch = {**self.feed.abstract(mask=False), **self.flag.abstract}
        with self.clock('compile'):  # with nothing under way: the peak may be measured here
            jaxpr = self.program.train_jaxpr(batch, self.feed.resident)
            self.account.work = Work.of(
                flops.count_jaxpr(jaxpr), self.mesh.devices.flat, config.steps_per_call
            )
        if not first or not config.task.defines('preview') or jax.process_count() > 1:
            return
        with self.clock('log'):
            rows = self.feed.source.fetch(self.order.batch(0)[:64])
            for name, images in self.program.preview(rows).items():
                self.record.image(0, f'train/{name}', logs.image_grid(images))
