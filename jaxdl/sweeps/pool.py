"""The scheduler: starts trials where there is room, and handles every way in which they can end.

How a job is started is the launcher's business (jaxdl.sweeps.local, jaxdl.sweeps.slurm). The
scheduler can be killed at any point, since its whole state is in the sweep's folder.
"""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Protocol

from jaxdl.errors import UserError
from jaxdl.record.metrics_file import read_metrics
from jaxdl.run.signals import STOP_SIGNALS
from jaxdl.sweeps import endings
from jaxdl.sweeps import store as stores
from jaxdl.sweeps.algebra import Point
from jaxdl.sweeps.local import LOST, Job, log_path, trial_path
from jaxdl.sweeps.results import Results, value_of
from jaxdl.sweeps.search import Study
from jaxdl.sweeps.spec import Sweep, Trial
from jaxdl.sweeps.store import Store

TICK = 1.0  # seconds between two checks of the running trials' metrics
LAST_LINES = 12


class Launcher(Protocol):
    """Starts, watches and stops jobs."""

    jobs: dict[str, Job]

    def adopt(self, trials: list[Trial]) -> list[Job]: ...
    def check(self, trials: list[Trial]) -> list[str]: ...
    def free(self) -> int: ...
    def start(self, jobs: list[Job]) -> None: ...
    def poll(self, timeout: float) -> list[Job]: ...
    def stop(self, job: Job, *, now: bool = False) -> None: ...
    def close(self) -> None: ...


class SweepView(Protocol):
    """Shows the state of the sweep."""

    def event(self, text: str) -> None: ...
    def show(self, pool: 'Pool') -> None: ...
    def close(self) -> None: ...


class Pool:
    """Runs the trials of one sweep.

    Args:
        store: the sweep's folder, open.
        sweep: the sweep.
        trials: the trials of a plain list; a search adds its own.
        launcher: starts jobs.
        display: shows the state of the sweep.
        study: the Optuna study of a search or of early stopping, else None.
        together: the largest number of trials in one program.
        on_search: called with all trials to save them, when a search has added some.
    """

    def __init__(
        self,
        store: Store,
        sweep: Sweep,
        trials: list[Trial],
        launcher: Launcher,
        display: SweepView,
        *,
        study: Study | None = None,
        together: int = 1,
        on_search: Callable[[list[Trial]], None] = lambda trials: None,
    ):
        self.store, self.sweep, self.trials = store, sweep, trials
        self.launcher, self.display, self.study = launcher, display, study
        self.together, self.on_search = together, on_search
        self.results = Results(store, sweep)
        self.summary: dict[str, Any] = {}
        self.queue: list[Trial] = []
        self.rows: dict[str, list[dict]] = {}
        self.signal = ''
        self.killed: set[str] = set()  # trials that did not save when the sweep was stopped
        self._asked_all = not self._searches
        self._sizes: dict[str, tuple[int, int]] = {}
        self._looked = 0.0
        self._kill_at: dict[str, float] = {}
        self._signs: dict[str, tuple[Any, float]] = {}  # job: (its signs of life, since when)

    @property
    def _searches(self) -> bool:
        return self.study is not None and self.study.search is not None

    # ---- the whole sweep ----

    def run(self) -> dict[str, Any]:
        """Runs until all trials are over or a signal came; returns the content of results.json."""
        if self.study is not None:
            for point in self.study.points():
                self._add_point(point)
        adopted = {t.id for job in self.launcher.adopt(self.trials) for t in job.trials}
        names = [t.id for t in self.trials if t.id not in adopted]
        running = [name for name in names if self.store.is_running(name)]
        self.store.wait_for(running, self.sweep.grace, self.display.event)
        self._queue_unfinished()
        old = {n: signal.signal(n, self._on_signal) for n in STOP_SIGNALS}
        try:
            self.summary = self.results.write(self.trials)
            while True:
                self._fill()
                if not self.launcher.jobs:
                    break
                for job in self.launcher.poll(0.2):
                    self._handle_end(job)
                if time.monotonic() - self._looked >= TICK:
                    self._check_running()
                if self.signal:
                    self._stop_all()
                self.display.show(self)
            self.summary = self.results.write(self.trials)
            self.display.show(self)
            return self.summary
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        del frame
        name = signal.Signals(number).name
        if self.signal:
            self.signal = f'{name} again'
        else:
            self.signal = name
            os.write(2, f'\n{name}: the trials save and stop; a second one kills them\n'.encode())

    def _queue_unfinished(self) -> None:
        """Queues the trials that are neither over nor still in a cluster's queue."""
        adopted = set()
        for job in self.launcher.jobs.values():
            job.stopping = self.store.state(job.name).get('stopping', '')
            adopted |= {trial.id for trial in job.trials}
        for trial in self.trials:
            if trial.id in adopted:
                continue
            state = self.store.state(trial.id)
            if self.store.has_finished(trial):
                if state['status'] != stores.FINISHED:
                    self._conclude(trial, stores.FINISHED)
                elif self.study is not None:
                    self._tell(trial)
                continue
            if state['status'] in stores.FINAL and state['status'] != stores.FINISHED:
                continue
            reason = state.get('stopping', '')
            if reason.startswith(stores.PRUNED):
                # It was pruned just before the sweep was killed, which could not record it.
                self._conclude(trial, stores.PRUNED, reason)
                continue
            if state['status'] != stores.PENDING or state['broken']:
                self.store.note(trial.id, status=stores.PENDING, reason='', broken=0)
            self.queue.append(trial)

    # ---- starting ----

    def _fill(self) -> None:
        jobs = []
        while not self.signal and self.launcher.free() > len(jobs):
            members = self._next()
            if not members:
                break
            jobs.append(Job(members))
        if jobs:
            for job in jobs:
                for trial in job.trials:
                    self._begin(trial, job)
            self.launcher.start(jobs)
            for job in jobs:
                for trial in job.trials:
                    self.store.note(trial.id, place=job.place)

    def _begin(self, trial: Trial, job: Job) -> None:
        attempts = self.store.state(trial.id)['attempts'] + 1
        log = log_path(self.store.path, job.trials[0])
        with open(log, 'a') as file:
            file.write(f'==== {trial.id} ({trial.label()}), attempt {attempts}\n')
        self.store.note(
            trial.id,
            status=stores.RUNNING,
            attempts=attempts,
            saved=self.store.saved(trial.id),
            log=log.name,
            log_from=log.stat().st_size,
            stopping='',
        )
        self.results.forget(trial.id)
        if self.study is not None:
            self.study.entry_of(trial)  # creates Optuna's trial, which it numbers by its start

    def _next(self) -> list[Trial]:
        """The trials of the next job."""
        while len(self.queue) < self.together and not self._asked_all:
            self._ask()
        if not self.queue:
            return []
        first = self.queue[0]
        members = [first]
        if self.together > 1 and self._may_share(first):
            others = [t for t in self.queue[1:] if t.group == first.group and self._may_share(t)]
            members += others[: self.together - 1]
        for trial in members:
            self.queue.remove(trial)
        return members

    def _may_share(self, trial: Trial) -> bool:
        """Whether a trial may share a program; after a failed attempt it is tried alone."""
        return not trial.alone and self.store.state(trial.id)['broken'] == 0

    # ---- the search ----

    def _ask(self) -> None:
        assert self.study is not None
        point = self.study.ask()
        if point is None:
            self._asked_all = True
        else:
            self.queue += self._add_point(point)

    def _add_point(self, point: Point) -> list[Trial]:
        """Adds the trials of the search's next point, one per seed."""
        number = 1 + max((trial.point for trial in self.trials), default=-1)
        added = self.sweep.trials_of(point, number, len(self.trials))
        for trial, error in zip(added, self.launcher.check(added), strict=True):
            if error:
                raise UserError(f'the search proposed {trial.label()}: {error}')
        self.trials += added
        self.on_search(self.trials)
        return added

    def _seeds_of(self, trial: Trial) -> list[Trial]:
        """All trials of the same point of a search; in a plain list only the trial itself."""
        return [t for t in self.trials if t.point == trial.point] if self._searches else [trial]

    def _tell(self, trial: Trial) -> None:
        """Tells Optuna the mean over the seeds once the last of them is over."""
        if self.study is None:
            return
        members = self._seeds_of(trial)
        states = [self.store.state(t.id)['status'] for t in members]
        if any(s in (stores.PENDING, stores.RUNNING) for s in states):
            return
        values = [self._value(t) for t in members]
        good = all(s == stores.FINISHED for s in states) and None not in values
        mean = sum(v for v in values if v is not None) / len(values) if good else None
        self.study.tell(trial, mean)

    # ---- endings ----

    def _handle_end(self, job: Job) -> None:
        self._kill_at.pop(job.name, None)
        self._signs.pop(job.name, None)
        if job.code == LOST:  # it was told to save and stop, and may still be running
            names = [trial.id for trial in job.trials]
            self.store.wait_for(names, self.sweep.grace, self.display.event)
        for trial in job.trials:
            before = self.store.state(trial.id).get('wall', 0.0)
            share = job.seconds / len(job.trials)
            self.store.note(trial.id, place=job.place, wall=round(before + share, 3))
            self._conclude_or_requeue(trial, job)
        self.summary = self.results.write(self.trials)

    def _conclude_or_requeue(self, trial: Trial, job: Job) -> None:
        code = job.code
        stopping = self.store.state(trial.id).get('stopping', '') or job.stopping
        alone = len(job.trials) == 1
        diverged = code == 3 if alone else self.store.run_info(trial.id).get('exit') == 3
        if self.store.has_finished(trial):
            self._conclude(trial, stores.FINISHED)
        elif stopping.startswith(stores.PRUNED):
            self._conclude(trial, stores.PRUNED, stopping)
        elif diverged:
            self._conclude(
                trial, stores.DIVERGED, endings.last_words(self.store, trial, 'diverged')
            )
        elif stopping == 'sweep':
            self._requeue(trial, 'stopped with the sweep')
        elif code == 2:
            self._conclude(trial, stores.MISTAKE, endings.last_words(self.store, trial, 'error'))
        else:
            self._handle_failure(trial, job, stopping)

    def _handle_failure(self, trial: Trial, job: Job, stopping: str) -> None:
        code = job.code
        tail = endings.tail(self.store, trial)
        lines = '\n'.join(tail.splitlines()[-LAST_LINES:])
        short_of_memory = endings.short_of_memory(tail) and code != 75
        if len(job.trials) > 1:
            if short_of_memory and trial is job.trials[0]:
                self.together = max(1, len(job.trials) // 2)
                self.display.event(
                    f'{len(job.trials)} trials in one program need too much memory; trying {self.together}'
                )
            self.store.note(trial.id, broken=0 if short_of_memory or code == 75 else 1)
            self._requeue(trial, f'its program ended with {endings.exit_name(code)}')
            return
        if short_of_memory:
            self._conclude(
                trial, stores.MEMORY, f'out of memory ({endings.exit_name(code)})\n{lines}'
            )
            return
        state = self.store.state(trial.id)
        progressed = self.store.saved(trial.id) > state.get('saved', -1)
        broken = 0 if progressed else state['broken'] + 1
        if progressed and code == 75:
            self._requeue(trial, 'stopped by a signal after saving')
            return
        reason = stopping or {0: 'it ended before its last step', 75: 'stopped by a signal'}.get(
            code, endings.exit_name(code)
        )
        if broken > self.sweep.retries:
            self._conclude(trial, stores.FAILED, f'{reason}\n{lines}')
            return
        self.store.note(trial.id, broken=broken)
        self._requeue(trial, reason)
        if broken:
            self.display.event(
                f'{trial.id} broke ({reason}); trying again ({broken} of {self.sweep.retries})'
            )

    def _requeue(self, trial: Trial, reason: str) -> None:
        self.store.note(trial.id, status=stores.PENDING, reason=reason, stopping='')
        self.queue.append(trial)

    def _conclude(self, trial: Trial, status: str, reason: str = '') -> None:
        if status == stores.FINISHED and self._value(trial) is None:
            reason = f'it wrote no {self.sweep.metric}, or not a number'
        self.store.note(trial.id, status=status, reason=reason, broken=0, stopping='')
        value = self._value(trial)
        shown = f' {self.sweep.metric} {value:.4g}' if value is not None else ''
        first = reason.splitlines()[0] if reason else ''
        self.display.event(
            f'{trial.id} {status}{shown} ({trial.label()}){": " + first if first else ""}'
        )
        if self._searches and status == stores.PRUNED:
            self._drop_seeds(trial)
        self._tell(trial)

    def _drop_seeds(self, trial: Trial) -> None:
        """Prunes the other seeds of a point after its first seed was pruned."""
        for other in self._seeds_of(trial):
            if other in self.queue:
                self.queue.remove(other)
                self._conclude(other, stores.PRUNED, f'pruned with {trial.id}')
            job = self.launcher.jobs.get(other.id)
            if job is not None and other is not trial and not job.stopping:
                self._stop(job, f'pruned with {trial.id}')

    # ---- looking at what runs ----

    def _check_running(self) -> None:
        self._looked = time.monotonic()
        for job in list(self.launcher.jobs.values()):
            for trial in job.trials:
                if self._refresh(trial):
                    self._stop_early(trial, job)
            self._check_hang(job)
            if time.monotonic() > self._kill_at.get(job.name, math.inf):
                self._kill(job)

    def _refresh(self, trial: Trial) -> bool:
        """Reads a trial's metrics if the file has changed; returns whether it has."""
        path = trial_path(self.store.path, trial) / 'metrics.jsonl'
        try:
            stat = path.stat()
        except OSError:
            return False
        if self._sizes.get(trial.id) == (stat.st_size, stat.st_mtime_ns):
            return False
        self._sizes[trial.id] = (stat.st_size, stat.st_mtime_ns)
        try:
            self.rows[trial.id] = read_metrics(path)
        except UserError:
            pass  # a line is broken; the run repairs its file when it resumes
        return True

    def _rows(self, trial: Trial) -> list[dict]:
        self._refresh(trial)
        return self.rows.get(trial.id, [])

    def _value(self, trial: Trial) -> float | None:
        return value_of(self.sweep, self._rows(trial))[0]

    def _stop_early(self, trial: Trial, job: Job) -> None:
        """Stops a running trial early if the study says so."""
        if self.study is None or self.sweep.stopping is None or job.stopping:
            return
        # Only the first seed of a point is reported to Optuna, and decides for all of them.
        rows = self.rows.get(trial.id, [])
        if trial is self._seeds_of(trial)[0] and self.study.report(trial, rows):
            by = type(self.sweep.stopping).__name__
            self._stop(job, f'pruned at step {rows[-1]["step"]} by {by}')

    def _check_hang(self, job: Job) -> None:
        """Stops a job whose files have not changed for too long, by the monotonic clock."""
        limit = self.sweep.hang_timeout
        if not limit or job.stopping:
            return
        # `started` is 0 while a job waits in a cluster's queue.
        signs: list[Any] = [job.started, *(self._sizes.get(trial.id) for trial in job.trials)]
        for path in (
            log_path(self.store.path, job.trials[0]),
            trial_path(self.store.path, job.trials[0]) / 'run.json',
        ):
            with contextlib.suppress(OSError):
                signs.append(path.stat().st_mtime_ns)
        known, since = self._signs.get(job.name, (None, 0.0))
        if not job.started or signs != known:
            self._signs[job.name] = signs, time.monotonic()
        elif time.monotonic() - since > limit:
            why = f'hung: no sign of life for {limit:g} s'
            self._stop(job, why, grace=min(30.0, self.sweep.grace))

    def _stop(self, job: Job, why: str, grace: float | None = None) -> None:
        # Recorded before the job is stopped, so that after a kill of the sweep the next call knows
        # why the trial ended.
        job.stopping = why
        for trial in job.trials:
            self.store.note(trial.id, stopping=why)
        self._kill_at[job.name] = time.monotonic() + (self.sweep.grace if grace is None else grace)
        self.launcher.stop(job)

    def _stop_all(self) -> None:
        again = self.signal.endswith('again')
        for job in self.launcher.jobs.values():
            if not job.stopping:
                self._stop(job, 'sweep')
            elif again and job.name in self._kill_at:
                self._kill(job)

    def _kill(self, job: Job) -> None:
        self._kill_at.pop(job.name)
        if job.stopping == 'sweep':
            self.killed |= {trial.id for trial in job.trials}
        self.launcher.stop(job, now=True)
