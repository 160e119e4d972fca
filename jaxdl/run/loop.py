"""The loop: batch → step → metrics → log, with evaluation, checkpoints and signals.

It trains one run, or several that share a program (`lane.py`). Each iteration, in order:
    1. fetches the next batch, places it on the mesh and starts the step, without waiting for it
    2. reads the metrics of the step two before, which is done by now
    3. logs, evaluates and saves if this is due
    4. saves and ends if a signal came
"""

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxdl.account import flops
from jaxdl.account.account import Work
from jaxdl.account.clock import Clock
from jaxdl.account.profiler import Profiler
from jaxdl.core import config as config_lib
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.compiled_step import CompiledStep
from jaxdl.core.config import Config
from jaxdl.core.evaluation import Evaluator, check_metric
from jaxdl.core.feed import Feed
from jaxdl.core.pipeline import CallIds
from jaxdl.core.program import Program, known_program
from jaxdl.core.ranges import bounds_of
from jaxdl.core.step import STOP, TrainState
from jaxdl.errors import Diverged, Preempted, UserError
from jaxdl.models import ops
from jaxdl.record.folder import Workdir
from jaxdl.record.parameters import count_parameters, parameter_table
from jaxdl.record.pictures import image_grid
from jaxdl.record.run_info import row_facts
from jaxdl.record.terminal import Progress
from jaxdl.record.writer import Result
from jaxdl.run import runtime
from jaxdl.run.lane import Lane
from jaxdl.run.processes import Peers, StopFlag
from jaxdl.run.signals import Interrupted, StopRequest, Watchdog
from jaxdl.run.start import go_back, start


def train(
    config: Config,
    workdir: str,
    *,
    context: dict | None = None,
    profile: tuple[int, int] | None = None,
) -> Result:
    """Trains `config` in `workdir`, or resumes the run that is there.

    Args:
        config: the run's config.
        workdir: the run's folder.
        context: further entries of run.json (command, environment, 'started': time.monotonic()).
        profile: the (start, stop) completed steps between which a trace is taken.

    Raises:
        UserError: config, data set or folder are wrong; nothing was changed.
        Diverged: the divergence policy ended the run.
        Preempted: a signal came; a checkpoint was saved.
    """
    (result,) = _train([config], [workdir], 0, context, profile)
    return result


def train_together(
    configs: Sequence[Config], workdirs: Sequence[str], *, context: dict | None = None
) -> list[Result]:
    """Trains several runs in one program, with the results of separate runs; raises as `train`.

    A run that diverges ends, as its run.json says; the others go on.
    """
    for config in configs:
        why = config_lib.why_alone(config)
        if why:
            raise UserError(f'this run cannot be trained together with others: {why}')
    if len({config_lib.program_key(config) for config in configs}) > 1:
        raise UserError(
            'these runs do not share a compiled program: they may differ only in the seed and in '
            'scalars, and a scalar that is 0 in one must be 0 in all'
        )
    if jax.process_count() > 1:
        raise UserError('several runs in one program need one process, not several')
    return _train(configs, workdirs, len(configs), context, None)


def _train(
    configs: Sequence[Config],
    workdirs: Sequence[str],
    lanes: int,
    context: dict | None,
    profile: tuple[int, int] | None,
) -> list[Result]:
    context = {'profile': profile, **(context or {})}
    clock = Clock(context.pop('started', None))
    clock.move('other', 'import', clock.seconds['other'])
    for config in configs:
        config_lib.check(config)
    peers, places = Peers(), [Workdir(workdir) for workdir in workdirs]
    try:
        # With several processes a signal must not end this one at once: all stop at the same step.
        leave = None if jax.process_count() > 1 else lambda reason: None
        with StopRequest(leave) as stop:
            for config, place in zip(configs, places, strict=True):
                if place.path.exists():
                    place.check_config(config)
            return Loop(configs, places, lanes, clock, context, stop, peers).run()
    except (Preempted, Diverged):
        peers.close()  # the other processes end in the same way by themselves
        raise
    except BaseException as error:
        clearer = peers.failed(error)
        if clearer is not error:
            raise clearer from error
        raise
    finally:
        for place in places:
            place.release()
        peers.close()


class Loop:
    """One call of `train` or `train_together`."""

    def __init__(
        self,
        configs: Sequence[Config],
        places: Sequence[Workdir],
        lanes: int,
        clock: Clock,
        context: dict,
        stop: StopRequest,
        peers: Peers,
    ):
        # The configs differ only in the seed and in scalars, so any of them describes the program.
        self.config = config = configs[0]
        self.clock, self.context, self.stop, self.peers = clock, context, stop, peers
        self.together = bool(lanes)
        self.chief = jax.process_index() == 0
        with clock('setup'):
            if self.together:  # several runs keep one device busy, so they are not split
                self.mesh = mesh_lib.make_mesh(config_lib.Mesh(), jax.devices()[:1])
            else:
                self.mesh = mesh_lib.make_mesh(config.mesh)
            mesh_lib.check_batch('batch_size', config.batch_size, config.accumulate, self.mesh)
            config.data.check_with(config.model, config.task)
            known = known_program(config, self.mesh, lanes=lanes)
            with clock('data_setup'):
                source, sources = config.data.train_source(), config.data.eval_sources()
                self.feed = Feed(
                    source,
                    config.batch_size,
                    self.mesh,
                    placement=config.placement,
                    ranges=bounds_of(config),
                )
            self.program = known or Program(config, self.mesh, self.feed.example, lanes=lanes)
            self.program.check_example(self.feed.example)
            self.evaluator = Evaluator(self.program, sources)
            for one in configs:
                for field in ('checkpoint.best', 'early_stop.metric'):
                    part, name = field.split('.')
                    metric = getattr(getattr(one, part), name)
                    check_metric(field, metric, self.evaluator.names())
            self.suspects = self.program.steps.suspects(self.program.abstract)
            for place in places if self.chief else ():
                place.create()
            self.lanes = [
                Lane(one, place, len(self.feed.source), clock)
                for one, place in zip(configs, places, strict=True)
            ]
            for lane in self.lanes:
                lane.place.check_config(lane.config)
                if lane.place.config.exists():
                    lane.record.keep_data(lane.config.data)
        self.pending: collections.deque = collections.deque()
        self.flag = StopFlag(self.mesh, config.steps_per_call)
        self.progress: Progress | None = None
        self.first_step_done = False  # whether `_after_first_step` was called

    # ---- start and end ----

    def run(self) -> list[Result]:
        config = self.config
        self.watchdog = Watchdog(config.hang_timeout, self._hung)
        self.profiler = Profiler(
            self.lanes[0].place.path / 'profile',
            self.context.pop('profile', None) if self.chief else None,
            lambda: self.train_step.text(),
        )
        self.peers.report = lambda reason: self._end('failed', reason)
        everyone = self.lanes
        try:
            self.peers.meet()
            states = {lane: start(lane, self.program, self.feed.source.fetch) for lane in everyone}
            for lane in everyone:
                self._check_whether_finished(lane)
            self.lanes = self.active
            if self.lanes:
                self._begin_all(states[self.lanes[0]])
                self._compile()
                self.state = self.program.join([states[lane] for lane in self.lanes])
                del states
                self.peers.meet()
                self._train()
            return [Result(lane.step, lane.metrics, lane.place) for lane in everyone]
        except Preempted as error:
            self._end('preempted', str(error))
            raise
        except Diverged:
            raise  # the lane has already recorded it in run.json
        except BaseException as error:
            self._end('failed', str(error) or type(error).__name__)
            raise
        finally:
            self.watchdog.close()
            self.profiler.close()
            for lane in everyone:
                lane.close()

    @property
    def active(self) -> list[Lane]:
        return [lane for lane in self.lanes if not lane.over]

    def _end(self, status: str, reason: str) -> None:
        for lane in self.active:
            lane.record.end(status, reason)

    def _hung(self, reason: str) -> None:
        self._end('failed', reason)
        self.peers.failed(RuntimeError(reason))

    def _check_whether_finished(self, lane: Lane) -> None:
        """Raises UserError where the run has more steps than the config."""
        steps = lane.config.steps
        if lane.step > steps:
            raise UserError(
                f'--config.steps={steps}: the run in {lane.place.path} is already at '
                f'step {lane.step}; give at least that many, or another --workdir'
            )
        row = lane.last_row()
        if lane.step == lane.steps == row.get('step') and not lane.unevaluated:
            lane.over, lane.metrics = 'finished', row
            if self.chief:
                print(f'already finished at step {lane.step} in {lane.place.path}', flush=True)
                if lane.place.status() != 'finished':  # it was killed after its last save
                    self._begin(lane)
                    lane.record.end('finished', lane.reason)

    def _begin(self, lane: Lane) -> None:
        lane.begin(
            parameters=count_parameters(self.program.abstract.params),
            devices=[str(d.device_kind) for d in self.mesh.devices.flat],
            processes=jax.process_count(),
            mesh={axis: size for axis, size in self.mesh.shape.items() if size > 1},
            placement=self.feed.placement,
            row=row_facts(self.program.example),
            classes=list(self.config.data.class_names()),
            **({'together': len(self.lanes)} if self.together else {}),
            **self.context,
        )

    def _begin_all(self, state: TrainState) -> None:
        self.program.lanes = len(self.lanes) if self.together else 0
        for lane in self.lanes:
            lane.account.set_share(1 / len(self.lanes))
            self._begin(lane)
            lane.record.open(lane.step)
        if self.stop.leave is not None:
            self.stop.leave = lambda reason: self._end('preempted', reason)
        with self.clock('log'):
            if self.together:
                print(f'{len(self.lanes)} runs in one program', flush=True)
            elif self.chief and self.lanes[0].step == 0:
                print(parameter_table(state.params), flush=True)

    def _compile(self) -> None:
        with self.clock('compile'):
            batch = {**self.feed.abstract(mask=False), **self.flag.abstract}
            step, self.packing = self.program.compile_train(batch, self.feed.resident)
            runtime.release_heap()  # before the first step allocates its temporaries
            self.train_step = CompiledStep(step, self.program.traces, self.program.batch)
            self.hyper = self.program.place_hyper([lane.hyper for lane in self.lanes])

    # ---- the loop ----

    def _train(self) -> None:
        """Trains until every lane is over; after a roll-back a new stream of batches begins."""
        if self.config.compile != 'pmap':  # pmap compiles in its first call, unwatched
            self.watchdog.beat()
        if self.chief:
            first = min(lane.step for lane in self.active)
            self.progress = Progress(self.config.steps, start=first)
        for lane in self.active:
            lane.begin_training(self.packing, self.suspects)
        self.stop.leave = None  # from here on there is something to save
        self.stop_agreed = False
        try:
            late = [lane for lane in self.active if lane.unevaluated]
            if late and late[0].step < self.config.steps:
                self._evaluate(late)
            self._finish()
            while self.active:
                self._steps()
                self._go_back()
        finally:
            self._close_progress()

    def _steps(self) -> None:
        """Trains until a lane must be rolled back, or all are over."""
        calls = self.config.steps_per_call
        starts = [(lane.order, lane.step + lane.offset) for lane in self.lanes]
        most = max(-(-(lane.steps - lane.step) // calls) for lane in self.active)
        self.ids = CallIds(starts, calls, self.together)
        stream = self.feed.training(
            self.ids, most, ahead=self.config.prefetch * calls, workers=self.config.workers
        )
        try:
            for batch in self._batches(stream, most):
                with self.clock('dispatch'):
                    self.state, packed = self.train_step(
                        self.state, batch, self.feed.resident, self.hyper
                    )
                    packed.copy_to_host_async()
                for lane in self.lanes:
                    lane.step += calls
                self.pending.append(([lane.step for lane in self.lanes], packed))
                self._events()
                if not self._sound(self.lanes) or any(lane.rollback for lane in self.active):
                    break
        finally:
            stream.close()

    def _batches(self, stream: Any, count: int) -> Iterator[dict[str, jax.Array]]:
        """Yields the batches on the mesh; saves and ends the run if a signal came."""
        for call in range(count):
            if self.stop_agreed or (self.stop.name and self.flag.alone):
                self._preempt()
            if self.profiler.due(self.active[0].step):
                self._profile()
            with self.clock('data_wait'):
                try:
                    rows = stream.next()
                except Exception as error:
                    raise self._source_failed(call, error) from error
            with self.clock('transfer'):
                batch = {**self.feed.place(rows), **self.flag.raised(bool(self.stop.name))}
            self._note_samples(call)
            yield batch

    def _events(self) -> None:
        """After each call: reads older metrics, evaluates, saves and ends lanes, where due."""
        self._read_metrics(self.train_step.most)
        if self.chief and not self.first_step_done:
            self._read_metrics(0)
            self._after_first_step()
        evaluate = [lane for lane in self.active if lane.due(lane.config.eval_every)]
        save = [lane for lane in self.active if lane.due(lane.config.checkpoint.every)]
        ended = any(lane.step >= lane.steps for lane in self.active)
        if not (evaluate or save or ended):
            return
        self._read_metrics(0)
        evaluate, save = (self._sound(lanes) for lanes in (evaluate, save))
        if evaluate:
            self._evaluate(evaluate)
        if save:
            self._save(save)
        self._finish()

    def _sound(self, lanes: Sequence[Lane]) -> list[Lane]:
        """The lanes that may be evaluated and saved: not over and not to be rolled back."""
        return [lane for lane in lanes if lane.sound]

    def _profile(self) -> None:
        """Starts or ends a trace, after all steps under way are done."""
        self._read_metrics(0)
        with self.clock('profile'), self.watchdog.paused():
            self._message(self.profiler.turn(self.active[0].step))

    def _note_samples(self, call: int) -> None:
        """Records the ids of the next steps' examples, for lanes with record_samples."""
        calls = self.config.steps_per_call
        if not any(lane.config.record_samples for lane in self.lanes):
            return
        ids = self.ids(call).reshape(len(self.lanes), calls, -1)
        for lane, rows in zip(self.lanes, ids, strict=True):
            if not lane.over:
                lane.record.sampled(lane.step + 1, rows)

    def _source_failed(self, call: int, error: Exception) -> Exception:
        """Saves the run and returns the error to raise when the examples of a call are missing."""
        self._read_metrics(0)
        left = self._sound(self.lanes)
        step, saved = max(lane.step for lane in left or self.lanes), ''
        # A single process saves first. With several, a save needs all of them, and the others do
        # not know of this error.
        if jax.process_count() == 1 and any(lane.step not in (0, lane.saved_step) for lane in left):
            if self._save(left) and all(lane.checkpoints.wait() for lane in left):
                saved = f'; saved at step {step}, the same command resumes there'
        ids = ', '.join(map(str, self.ids(call).reshape(-1)[:8]))
        message = f'the data source failed at step {step + 1} (sample ids {ids}, …)'
        if isinstance(error, UserError):
            return UserError(f'{message}: {error}{saved}')
        return RuntimeError(f'{message}: {type(error).__name__}: {error}{saved}')

    # ---- metrics ----

    def _read_metrics(self, leave: int) -> None:
        """Reads the metrics of the oldest calls until only `leave` calls are under way."""
        calls = self.config.steps_per_call
        while len(self.pending) > leave:
            steps, packed = self.pending.popleft()
            with self.clock('device'):
                vectors = np.asarray(packed, np.float64)
                vectors = vectors.reshape(len(self.lanes), calls, self.packing.size)
                self.train_step.settle()
            self.watchdog.beat()
            for index in range(calls):
                first = [last - calls + 1 + index for last in steps]
                self._count_step(first, vectors[:, index])

    def _count_step(self, steps: Sequence[int], vectors: np.ndarray) -> None:
        """Adds the metrics of one step of every lane, [lanes, size]."""
        rows: dict[Lane, tuple[int, dict[str, float]]] = {}
        for lane, step, vector in zip(self.lanes, steps, vectors, strict=True):
            if not lane.sound or step > lane.steps:
                continue
            lane.account.first_step()
            # Every process reads the same value in the same step, so all stop at the same step.
            asked = self.packing.unpack(vector).get(STOP)
            self.stop_agreed = self.stop_agreed or (asked is not None and bool(asked[0]))
            warning = lane.count(step, vector)
            if lane.diverged is not None and not self.together:
                raise lane.diverged
            if warning or lane.diverged is not None:
                name = f'{lane.place.path.name}: ' if self.together else ''
                self._message(f'{name}{warning or lane.diverged}')
            if lane.sound and step % lane.config.log_every == 0:
                rows[lane] = step, lane.log(step)
        self._write(rows)

    def _write(self, rows: dict[Lane, tuple[int, dict[str, float]]]) -> None:
        """Writes each lane's row; the terminal shows the mean of each metric over the lanes."""
        for lane, (step, row) in rows.items():
            lane.write(step, row)
        if self.progress is not None and rows:
            found = [row for _, row in rows.values()]
            names = [name for name in found[0] if all(name in row for row in found)]
            means = {name: sum(row[name] for row in found) / len(found) for name in names}
            with self.clock('log'):
                self.progress.update(max(step for step, _ in rows.values()), means)

    def _message(self, text: str) -> None:
        if self.progress is not None:
            self.progress.message(text)

    def _after_first_step(self) -> None:
        """Counts FLOPs and writes a fresh run's pictures, for which the first step does not wait."""
        self.first_step_done = True
        batch = {**self.feed.abstract(mask=False), **self.flag.abstract}
        with self.clock('compile'):  # no step runs now, so the peak FLOP/s can be measured
            jaxpr = self.program.train_jaxpr(batch, self.feed.resident)
            steps = self.config.steps_per_call * len(self.lanes)
            work = Work.of(flops.count_jaxpr(jaxpr), self.mesh.devices.flat, steps)
        for lane in self.lanes:
            lane.account.work = work
            lane.record.note(formulations=ops.used())
            fresh = lane.step == self.config.steps_per_call
            if not fresh or not self.config.task.defines('preview') or jax.process_count() > 1:
                continue
            with self.clock('log'):
                rows = self.feed.source.fetch(lane.order.batch(0)[:64])
                shown = jax.device_get(self.program.preview(rows, lane.hyper['seed']))
                for name, images in shown.items():
                    lane.record.image(0, f'train/{name}', image_grid(images))

    # ---- evaluation, saving, the end ----

    def _evaluate(self, lanes: Sequence[Lane], *, final: bool = False) -> None:
        """Evaluates all lanes, and records the results of those in `lanes`."""
        with self.clock('compile'), self.watchdog.paused():
            self.evaluator.compile()
        generates = self.config.task.defines('generate')
        try:
            with self.clock('evaluation'):
                found = self.evaluator.run(self.state, self.hyper, self._on_evaluation_progress)
                states = self.program.split(self.state) if generates else [self.state] * len(found)
                generated = {
                    lane: self.evaluator.generate(one, self._on_evaluation_progress, final=final)
                    for lane, one in zip(self.lanes, states, strict=True)
                    if lane in lanes
                }
        except Interrupted:
            for lane in lanes:
                lane.unevaluated = True
            self._preempt()
            raise
        rows: dict[Lane, tuple[int, dict[str, float]]] = {}
        for lane, values in zip(self.lanes, found, strict=True):
            if lane in generated:
                lane.unevaluated, lane.evaluated = False, lane.step
                written = generated[lane]
                row = {name: value for name, value in values.items() if isinstance(value, float)}
                if written is not None:
                    row |= {f'eval/{name}': value for name, value in written.scores.items()}
                rows[lane] = lane.step, row
                lane.record.results(lane.step, values, written, self.config.data.class_names())
        self._write(rows)
        for lane in () if final else rows:
            if why := lane.judge():
                name = f'{lane.place.path.name}: ' if self.together else ''
                self._message(f'{name}{why}')

    def _on_evaluation_progress(self) -> None:
        """Called during an evaluation; a signal interrupts it if the run has a single process."""
        self.watchdog.beat()
        if self.stop.name and self.flag.alone:
            raise Interrupted

    def _go_back(self) -> None:
        """Rolls back the lanes whose policy asks for it, each to its last checkpoint."""
        back = [lane for lane in self.active if lane.rollback is not None]
        if not back:
            return
        self._read_metrics(0)
        states = self.program.split(self.state)
        for index, lane in enumerate(self.lanes):
            if lane in back:
                states[index] = go_back(lane, self.program, self.feed.source.fetch)
                lane.begin_training(self.packing, self.suspects)
        self.state = self.program.join(states)
        if self.progress is not None:
            self.progress.close()
            self.progress = Progress(self.config.steps, start=min(lane.step for lane in back))

    def _preempt(self) -> None:
        self._read_metrics(0)
        name = self.stop.name or 'a signal to another process'
        lanes = self._sound(self.lanes)
        saved = self._save(lanes) and all([lane.checkpoints.wait() for lane in lanes])
        if not saved:
            failed = '; '.join(lane.checkpoints.failed for lane in lanes if lane.checkpoints.failed)
            raise RuntimeError(f'{name}: {failed}')
        step = max((lane.step for lane in lanes), default=self.lanes[0].step)
        raise Preempted(f'{name} at step {step}; saved, the same command resumes')

    def _save(self, lanes: Sequence[Lane]) -> bool:
        """Starts saving these lanes; False if one of the saves has already failed."""
        with self.clock('checkpoint'):
            states = self.program.split(self.state)
        chosen = [
            (lane, one) for lane, one in zip(self.lanes, states, strict=True) if lane in lanes
        ]
        return all([lane.save(one) for lane, one in chosen])

    def _finish(self) -> None:
        """Evaluates, saves and closes the lanes that have completed their last step."""
        ended = [lane for lane in self._sound(self.lanes) if lane.step >= lane.steps]
        if not ended:
            return
        if self.profiler.tracing:
            self._profile()
        # A run that was stopped by this evaluation is evaluated again only for what it generates.
        again = [
            lane
            for lane in ended
            if lane.evaluated != lane.step or self.config.task.defines('generate')
        ]
        if self.evaluator.feeds and again:
            self._evaluate(again, final=True)
        for lane, one in zip(self.lanes, self.program.split(self.state), strict=True):
            if lane in ended:
                lane.finish(one)
                if not self.together and self.chief:
                    sentence = lane.account.sentence(placement=self.feed.placement)
                    self._close_progress()
                    print(sentence, flush=True)

    def _close_progress(self) -> None:
        if self.progress is not None:
            self.progress.close()
            self.progress = None
