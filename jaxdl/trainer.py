"""THE loop: batch → step → metrics → log, with evaluation, checkpoints and an honest end.

The only module that knows every other. One iteration, in order, and never another order:
    1. fetch the next batch, place it on the mesh, start the step (nothing waits for the device)
    2. take in the metrics of the step two before, which are done by now
    3. at its steps: log, evaluate, save
    4. a signal: save and leave
"""

import collections
import dataclasses
import sys
from typing import Any

import jax
import numpy as np

from jaxdl import config as config_lib
from jaxdl import logs, parallel, samples
from jaxdl.checkpoint import Checkpoints
from jaxdl.config import Config
from jaxdl.data.pipeline import Order
from jaxdl.efficiency.clock import Clock
from jaxdl.errors import Diverged, Preempted, UserError
from jaxdl.evaluation import Evaluator
from jaxdl.feed import Feed
from jaxdl.interrupt import StopRequest, Watchdog
from jaxdl.program import Program
from jaxdl.step import FINITE, TrainState
from jaxdl.workdir import Workdir

# Steps that may be under way before the host looks at the oldest: enough to keep a device busy,
# few enough that a signal, a hang or a non-finite number is seen at once.
IN_FLIGHT = 2
# Training examples that a fresh model may look at.
INIT_ROWS = 512


@dataclasses.dataclass
class Result:
    """How a run ended.

    Attributes:
        steps: completed optimizer steps.
        metrics: the last metrics of each name, floats.
        workdir: the run's folder.
    """

    steps: int
    metrics: dict[str, float]
    workdir: Workdir


def train(config: Config, workdir: str, *, context: dict | None = None) -> Result:
    """Trains `config` in `workdir`, or goes on with the run that is there.

    Args:
        config: the run.
        workdir: its folder.
        context: what run.json shall also say (command, environment, 'started': time.monotonic()).

    Raises:
        UserError: config, data set or folder are wrong; nothing was changed.
        Diverged: the divergence policy ended the run.
        Preempted: a signal came; a checkpoint was saved.
    """
    context = dict(context or {})
    clock = Clock(context.pop('started', None))
    clock.move('other', 'import', clock.seconds['other'])
    config_lib.check(config)
    place = Workdir(workdir)
    if place.path.exists():
        place.check_config(config)
    chief = jax.process_index() == 0
    if chief:
        place.create()
    try:
        return _Run(config, place, clock, context).run()
    finally:
        place.release()


class _Run:
    """One call of `train`."""

    def __init__(self, config: Config, place: Workdir, clock: Clock, context: dict):
        self.config, self.place, self.clock = config, place, clock
        self.chief = jax.process_index() == 0
        with clock('setup'):
            self.mesh = parallel.make_mesh(config.mesh)
            parallel.check_batch('batch_size', config.batch_size, config.accumulate, self.mesh)
            with clock('data_setup'):
                self.feed = Feed(
                    config.data.train_source(),
                    config.batch_size,
                    self.mesh,
                    placement=config.placement,
                )
                sources = config.data.eval_sources()
            self._check_best(sources)
            if hasattr(config.data, 'check_with'):
                config.data.check_with(config.model, config.task)
            self.program = Program(config, self.mesh, self.feed.example)
            self.evaluator = Evaluator(self.program, sources)
            self.order = Order(len(self.feed.source), config.batch_size, config.seed)
            self.hyper = self.program.place_hyper()
            self.checkpoints = Checkpoints(place.checkpoints, config.checkpoint)
            self.saved_before = place.saved_step()
            place.check_config(config)
            if place.config.exists():
                self._keep_data()
        self.context = context
        self.metrics: dict[str, float] = {}
        self.pending: collections.deque = collections.deque()
        self.sums: np.ndarray | None = None
        self.counted = 0
        self.info: logs.RunInfo | None = None

    def _check_best(self, sources: dict) -> None:
        best = self.config.checkpoint.best
        if best and best.split('/')[1] not in sources:
            raise UserError(
                f'--config.checkpoint.best={best!r}: there is no evaluation set {best.split("/")[1]!r}; '
                f'the sets are {", ".join(sources) or "none"}'
            )

    # ---- the whole run ----

    def run(self) -> Result:
        config = self.config
        watchdog = Watchdog(config.hang_timeout, lambda reason: self._end('failed', reason))
        self.beat = watchdog.beat
        try:
            with StopRequest() as self.stop:
                state = self._first_state()
                if int(state.step) > config.steps:
                    raise UserError(
                        f'--config.steps={config.steps}: the run in {self.place.path} is already at '
                        f'step {int(state.step)}; give at least that many, or another --workdir'
                    )
                if int(state.step) == config.steps and self._complete(config.steps):
                    print(
                        f'already finished at step {config.steps} in {self.place.path}', flush=True
                    )
                    return Result(config.steps, self._last_row(), self.place)
                self._begin(state)
                self._open_logs(int(state.step))
                self._introduce(state)
                self._compile()
                while True:
                    try:
                        state = self._loop(state)
                        break
                    except _Rollback as bad:
                        state = self._roll_back(bad)
                watchdog.rest()
                return self._finish(state)
        except Preempted as error:
            self._end('preempted', str(error))
            raise
        except BaseException as error:
            self._end('failed', str(error) or type(error).__name__)
            raise
        finally:
            watchdog.close()
            for log in self._logs():
                log.close()
            self.checkpoints.close()

    def _first_state(self) -> TrainState:
        with self.clock('checkpoint'):
            if self.checkpoints.steps():
                step, state, extra = self.checkpoints.restore(self.program.abstract)
                self._recall(extra)
                print(f'resuming from step {step} in {self.place.path}', flush=True)
                return state
        if self.saved_before is not None:
            raise UserError(
                f'--workdir={self.place.path} holds a run that was saved at step {self.saved_before}, '
                f'but {self.place.checkpoints} holds no good checkpoint.\n'
                'Put one back (damaged ones are kept in damaged/), or give another --workdir to start anew'
            )
        return self._fresh_state()

    def _fresh_state(self) -> TrainState:
        with self.clock('init'):
            return self.program.init(self.feed.source.fetch(self.order.batch(0)[:INIT_ROWS]))

    def _complete(self, step: int) -> bool:
        return self._last_row().get('step') == step

    def _last_row(self) -> dict:
        return (logs.read_metrics(self.place.metrics) or [{}])[-1]

    def _begin(self, state: TrainState) -> None:
        """Writes config.json and run.json: from here on the folder holds this run."""
        if not self.chief:
            return
        config = config_lib.to_json(self.config)
        logs.write_json_atomic(self.place.config, config)
        self._keep_data()
        self.info = logs.RunInfo(
            self.place.run,
            from_step=int(state.step),
            parameters=logs.count_parameters(self.program.abstract.params),
            devices=[str(d.device_kind) for d in self.mesh.devices.flat],
            processes=jax.process_count(),
            mesh={axis: size for axis, size in self.mesh.shape.items() if size > 1},
            placement=self.feed.placement,
            saved=self.saved_before,
            **self.context,
        )

    def _keep_data(self) -> None:
        """Lets the data set save into the folder what the weights depend on, or compare it."""
        keep = getattr(self.config.data, 'keep', None)
        if self.chief and keep is not None:
            keep(self.place.path)

    def _end(self, status: str, reason: str) -> None:
        if self.info is not None:
            self.info.end(status, reason)

    def _recall(self, extra: dict) -> None:
        self.sums = np.asarray(extra['sums'], np.float64) if extra.get('sums') else None
        self.counted = int(extra.get('counted', 0))
        self.metrics = dict(extra.get('metrics', {}))

    def _compile(self) -> None:
        with self.clock('compile'):
            batch = self.feed.abstract(mask=False)
            self.train_step, self.packing = self.program.compile_train(batch, self.feed.resident)

    # ---- the loop ----

    def _loop(self, state: TrainState) -> TrainState:
        config, clock = self.config, self.clock
        start, offset = int(state.step), int(state.health.data_offset)
        self.skipped, self.in_a_row = int(state.health.skipped), int(state.health.in_a_row)
        self.rollbacks, self.offset = int(state.health.rollbacks), offset
        if self.sums is None or len(self.sums) != self.packing.size:
            self.sums, self.counted = np.zeros(self.packing.size, np.float64), 0
        calls = config.steps_per_call
        self.progress = logs.Progress(config.steps, start=start)
        self.pending.clear()
        self._mark(start)
        stream = self.feed.training(
            self.order, start + offset, config.steps + offset, ahead=config.prefetch, calls=calls
        )
        step = start
        try:
            while step < config.steps:
                if self.stop.name:
                    self._preempt(step, state)
                with clock('data_wait'):
                    rows = stream.next_rows()
                with clock('transfer'):
                    batch = stream.place(rows)
                if config.record_samples:
                    self._record(step, rows['id'])
                with clock('dispatch'):
                    state, packed = self.train_step(state, batch, self.feed.resident, self.hyper)
                    packed.copy_to_host_async()
                step += calls
                self.pending.append((step, packed, batch))
                self._take_in(IN_FLIGHT, state)
                evaluate = config.eval_every and step % config.eval_every == 0
                save = config.checkpoint.every and step % config.checkpoint.every == 0
                if step < config.steps and (evaluate or save):
                    self._take_in(0, state)
                    if evaluate:
                        self._evaluate(step, state)
                    if save:
                        self._save(step, state)
            self._take_in(0, state)
            return state
        finally:
            stream.close()
            self.progress.close()

    def _take_in(self, leave: int, state: TrainState) -> None:
        """Takes in the metrics of the oldest steps under way until only `leave` of them are."""
        while len(self.pending) > leave:
            step, packed, batch = self.pending.popleft()
            with self.clock('device'):
                vectors = np.asarray(packed, np.float64).reshape(-1, self.packing.size)
            self.beat()
            first = step - len(vectors) + 1
            for index, vector in enumerate(vectors):
                self._count(first + index, vector, batch, index, state)

    def _count(
        self, step: int, vector: np.ndarray, batch: dict, index: int, state: TrainState
    ) -> None:
        finite = self.packing.unpack(vector)[FINITE][0] == 1
        if finite:
            self.in_a_row = 0
            self.sums += vector
            self.counted += 1
        else:
            self.in_a_row += 1
            self.skipped += 1
            self._not_finite(step, batch, index, state)
        if step % self.config.log_every == 0:
            self._log(step)

    def _log(self, step: int) -> None:
        """Ends the interval: its means and its speed become the row of `step`."""
        means = self.packing.means(self.sums) if self.counted else {}
        means.pop(FINITE, None)
        derived = getattr(self.config.task, 'derived', None)
        if derived is not None and means:
            means |= derived({k: v for k, v in means.items() if isinstance(v, float)})
        row = {f'train/{name}': v for name, v in means.items() if isinstance(v, float)}
        if self.skipped:
            row['train/skipped'] = float(self.skipped)
        if self.rollbacks:
            row['train/rollbacks'] = float(self.rollbacks)
        seconds, steps = self._elapsed(), step - self._marked_step
        if steps > 0 and seconds > 0:
            row['perf/examples_per_s'] = steps * self.config.batch_size / seconds
            row['perf/step_time_ms'] = 1000 * seconds / steps
        row['perf/epoch'] = (step + self.offset) * self.config.batch_size / self.order.examples
        self._write(step, row)
        self.sums, self.counted = np.zeros(self.packing.size, np.float64), 0
        self._mark(step)

    def _elapsed(self) -> float:
        """Seconds of training since the mark: evaluation, saving and logging are not counted."""
        return self.clock.total() - self._marked_at - (self._aside() - self._marked_aside)

    def _aside(self) -> float:
        seconds = self.clock.read()
        return sum(
            seconds.get(name, 0.0) for name in ('evaluation', 'checkpoint', 'log', 'compile')
        )

    def _mark(self, step: int) -> None:
        self._marked_step = step
        self._marked_at, self._marked_aside = self.clock.total(), self._aside()

    def _evaluate(self, step: int, state: TrainState, *, final: bool = False) -> dict[str, Any]:
        with self.clock('compile'):
            self.evaluator.compile()
        with self.clock('evaluation'):
            found = self.evaluator.run(state, self.hyper, self.beat)
            generated = self.evaluator.generate(state, self.beat, final=final)
        row = {name: value for name, value in found.items() if isinstance(value, float)}
        if generated is not None:
            row |= {f'eval/{name}': value for name, value in generated.scores.items()}
        best = self.config.checkpoint.best
        if best and best not in row:
            known = sorted(row)
            raise UserError(
                f'--config.checkpoint.best={best!r} is no metric of this run; allowed: {", ".join(known)}'
            )
        self._write(step, row)
        if self.chief:
            names = getattr(self.feed.source, 'class_names', ())
            for name, value in found.items():
                if isinstance(value, np.ndarray) and value.ndim == 2:
                    self.tensorboard.image(step, name, logs.confusion_image(value, names))
            if generated is not None:
                for name, text in generated.texts.items():
                    self.tensorboard.text(step, f'eval/{name}', text)
                if generated.notes and self.info is not None:
                    self.info.update(scores=generated.notes)
        return row

    # ---- what goes wrong ----

    def _not_finite(self, step: int, batch: dict, index: int, state: TrainState) -> None:
        policy = self.config.divergence
        ids = self.order.batch(step - 1 + self.offset)
        shown = ', '.join(map(str, ids[:8])) + (f', … ({len(ids)} in all)' if len(ids) > 8 else '')
        message = f'step {step}: not finite; sample ids {shown}'
        if policy.policy == 'skip' and self.in_a_row <= policy.max_skips:
            self.progress.message(f'WARNING: {message}; update skipped ({self.in_a_row} in a row)')
            return
        # From here on the state stands still at the step before, so the step can be looked at.
        message = f'{message}; first non-finite: {self._blame(batch, index, state)}'
        if policy.policy == 'rollback' and self.rollbacks < policy.max_rollbacks:
            raise _Rollback(step, message)
        limit = {
            'stop': "policy 'stop'",
            'skip': f'{policy.max_skips} updates in a row were skipped',
            'rollback': f'{policy.max_rollbacks} roll-backs were used up',
        }[policy.policy]
        raise Diverged(f'the run diverged: {message} ({limit})')

    def _blame(self, batch: dict, index: int, state: TrainState) -> str:
        if self.config.compile == 'pmap':
            return 'not examined under pmap'
        if self.config.steps_per_call > 1:
            batch = {name: value[index] for name, value in batch.items()}
        found = self.program.blame(state, batch, self.feed.resident, self.hyper)
        return next((name for name, good in found if not good), 'an update of the optimizer')

    def _roll_back(self, bad: '_Rollback') -> TrainState:
        """The last checkpoint's state (or a fresh one), with the data moved past the bad step."""
        self.checkpoints.wait()
        self.pending.clear()
        with self.clock('checkpoint'):
            if self.checkpoints.steps():
                step, state, extra = self.checkpoints.restore(self.program.abstract)
                self._recall(extra)
            else:
                step, state = 0, self._fresh_state()
                self.sums = None
        offset = self.offset + bad.step - step
        count = self.rollbacks + 1
        print(
            f'WARNING: {bad.message}; back to step {step}, data moved on by {bad.step - step} '
            f'batches (roll-back {count} of {self.config.divergence.max_rollbacks})',
            file=sys.stderr,
            flush=True,
        )
        everywhere = parallel.replicated(self.mesh)
        health = state.health.replace(
            data_offset=parallel.put(np.int32(offset), everywhere),
            rollbacks=parallel.put(np.int32(count), everywhere),
        )
        if self.chief:
            for log in self._logs():
                log.truncate(step)
        return state.replace(health=health)

    def _preempt(self, step: int, state: TrainState) -> None:
        self._take_in(0, state)
        saved = self._save(step, state) and self.checkpoints.wait()
        if not saved:
            raise RuntimeError(f'{self.stop.name}: {self.checkpoints.failed}')
        raise Preempted(f'{self.stop.name} at step {step}; saved, the same command resumes')

    # ---- saving, finishing ----

    def _save(self, step: int, state: TrainState) -> bool:
        """Saves a state that is known to be finite: its steps' metrics were taken in before."""
        best = (
            self.metrics.get(self.config.checkpoint.best) if self.config.checkpoint.best else None
        )
        extra = {
            'sums': list(map(float, self.sums)) if self.counted else [],
            'counted': self.counted,
            'metrics': self.metrics,
        }
        with self.clock('log'):
            for log in self._logs():
                log.flush()
        with self.clock('checkpoint'):
            if step in self.checkpoints.steps():
                return True
            saved = self.checkpoints.save(step, state, extra=extra, best=best)
        if saved and self.info is not None:
            # Orbax ends the save before this one first, so a step noted here was once complete.
            self.info.update(step=step, saved=max(self.checkpoints.steps(), default=None))
        return saved

    def _finish(self, state: TrainState) -> Result:
        step = int(state.step)
        row = self._evaluate(step, state, final=True) if self.evaluator.feeds else {}
        self._write(step, self._account())
        saved = self._save(step, state)
        with self.clock('checkpoint'):
            saved = self.checkpoints.wait() and saved
        if not saved:
            raise OSError(f'the run reached step {step}, but {self.checkpoints.failed}')
        if self.info is not None:
            self.info.update(step=step, saved=step)
        self._end('finished', f'step {step}')
        return Result(step, {**self.metrics, **row}, self.place)

    def _account(self) -> dict[str, float]:
        seconds = self.clock.read()
        return {f'perf/time_{name}_s': value for name, value in sorted(seconds.items())}

    # ---- logs ----

    def _open_logs(self, step: int) -> None:
        if self.chief:
            self.file = logs.MetricsFile(self.place.metrics, last_step=step)
            self.tensorboard = logs.TensorBoard(self.place.tensorboard, last_step=step)
            if self.config.record_samples:
                self.samples = samples.SamplesFile(self.place.samples, last_step=step)

    def _logs(self) -> list[Any]:
        return [getattr(self, n) for n in ('file', 'tensorboard', 'samples') if hasattr(self, n)]

    def _record(self, step: int, ids: np.ndarray) -> None:
        if self.chief:
            for index, row in enumerate(ids.reshape(self.config.steps_per_call, -1)):
                self.samples.write(step + index + 1, row.tolist())

    def _write(self, step: int, row: dict[str, float]) -> None:
        self.metrics |= row
        if self.chief:
            with self.clock('log'):
                self.file.write(step, row)
                self.tensorboard.scalars(step, row)
                self.progress.update(step, row)

    def _introduce(self, state: TrainState) -> None:
        """At the start of a run: the table of parameters, and pictures of an augmented batch."""
        if not self.chief or int(state.step) > 0:
            return
        with self.clock('log'):
            print(logs.parameter_table(state.params), flush=True)
            preview = getattr(self.config.task, 'preview', None)
            if preview is not None and jax.process_count() == 1:
                rows = self.feed.source.fetch(self.order.batch(0)[:64])
                for name, images in self.program.preview(rows).items():
                    self.tensorboard.image(0, f'train/{name}', logs.image_grid(images))


class _Rollback(Exception):
    def __init__(self, step: int, message: str):
        super().__init__(message)
        self.step, self.message = step, message
