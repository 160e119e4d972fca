"""Trials on this machine: one process each, on a slot of their own."""

import contextlib
import dataclasses
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from multiprocessing import connection
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.sweeps import child
from jaxdl.sweeps.slots import Slot
from jaxdl.sweeps.spec import Trial

VMSTAT = Path('/proc/vmstat')
# In the environment of every process of a sweep: the sweep's folder.
MARK = 'JAXDL_SWEEP'
# What multiprocessing says of a process whose fork server died before it could pass on the code.
LOST = 255

_FORKSERVER = multiprocessing.get_context('forkserver')
_FORKSERVER.set_forkserver_preload(['jaxdl.sweeps.preload'])


@dataclasses.dataclass
class Job:
    """One process: a trial, or several in one program.

    Attributes:
        trials: what it trains.
        place: where it runs, for the table.
        started: time.monotonic() of its start.
        stopping: why it was told to stop, or ''.
        seconds: how long its process lived, set when it has ended.
        code: its exit code then, negative for a signal; LOST: nobody knows, and it may still run.
        handle: what the launcher knows it by.
    """

    trials: list[Trial]
    place: str = ''
    started: float = 0.0
    stopping: str = ''
    seconds: float = 0.0
    code: int = 0
    handle: Any = None

    @property
    def name(self) -> str:
        return self.trials[0].id


class Checks:
    """Looks at trials in processes of their own, so that the sweep itself imports no config.

    Args:
        folder: the sweep's.
        env: variables of those processes, and of all trials.
    """

    def __init__(self, folder: Path, env: Mapping[str, str]):
        self.folder, self.env = folder, env

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """The environment in which the fork server starts, should it not be running."""
        before = dict(os.environ)
        os.environ.update({**self.env, MARK: str(self.folder)})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def check(self, trials: list[Trial]) -> list[str]:
        """What is wrong with each trial, '' for nothing; sets the fields that its config decides."""
        asked = [{'config': trial.config, 'words': trial.words()} for trial in trials]
        found, unknown = self._ask('check_trials', asked)
        if unknown:
            raise RuntimeError(f'the trials could not be checked: {unknown}')
        for trial, facts in zip(trials, found, strict=True):
            for name, value in facts.items():
                if name != 'error':
                    setattr(trial, name, value)
        return [facts.get('error', '') for facts in found]

    def metric_names(self, trial: Trial) -> tuple[list[str] | None, str]:
        """(the metrics that a run of this trial writes, ''), or (None, why that cannot be told).

        Raises:
            UserError: its config is wrong.
        """
        return self._ask('metric_names', trial.config, trial.words())

    def _ask(self, question: str, *args: Any) -> tuple[Any, str]:
        here, there = _FORKSERVER.Pipe(duplex=False)
        process = _FORKSERVER.Process(target=child.answer, args=(there, question, *args))
        with self.environment():
            process.start()
        there.close()
        try:
            value, mistake, unknown = here.recv()
        except EOFError:
            raise RuntimeError('the process that checks the trials was killed') from None
        finally:
            process.kill()
            process.join()
        if mistake:
            raise UserError(mistake)
        return value, unknown

    def close(self) -> None:
        """Nothing: the fork server ends with its last user."""


class Local(Checks):
    """Starts jobs on slots of this machine.

    Args:
        folder: the sweep's.
        slots: where jobs can run.
        fork: fork trials from a process that has imported everything; otherwise each is a fresh one.
        env: variables for all processes.
    """

    def __init__(self, folder: Path, slots: list[Slot], *, fork: bool, env: Mapping[str, str]):
        super().__init__(folder, env)
        self.slots, self.fork = slots, fork
        self.jobs: dict[str, Job] = {}
        self._taken: dict[str, Slot] = {}
        self._oom_kills: dict[str, int] = {}

    def adopt(self, trials: list[Trial]) -> list[Job]:
        """None: jobs on this machine do not outlive the sweep."""
        del trials
        return []

    # ---- running ----

    def free(self) -> int:
        return len(self.slots) - len(self.jobs)

    def start(self, jobs: list[Job]) -> None:
        for job in jobs:
            slot = next(s for s in self.slots if s not in self._taken.values())
            job.place, job.started = slot.name, time.monotonic()
            self.jobs[job.name], self._taken[job.name] = job, slot
            self._oom_kills[job.name] = oom_kills()
            job.handle = _FORKSERVER.Process(
                target=child.train,
                args=command(self.folder, job.trials),
                kwargs={
                    'env': dict(slot.env),
                    'cpus': slot.cpus,
                    'log': str(log_path(self.folder, job.trials[0])),
                    # Flags for deterministic programs must be set before jax is imported.
                    'fresh': not self.fork or any(trial.deterministic for trial in job.trials),
                },
            )
            with self.environment():
                try:
                    job.handle.start()
                except (EOFError, ConnectionError):  # the fork server died at this moment
                    job.handle = None

    def poll(self, timeout: float) -> list[Job]:
        """The jobs that ended, waiting at most `timeout` seconds for one."""
        lost = [job for job in self.jobs.values() if job.handle is None]
        waiting = {job.handle.sentinel: job for job in self.jobs.values() if job.handle}
        ready = connection.wait(list(waiting), 0 if lost else timeout)
        ended = [*lost, *(waiting[sentinel] for sentinel in ready)]
        for job in ended:
            del self.jobs[job.name], self._taken[job.name]
            job.seconds = round(time.monotonic() - job.started, 3)
            job.code = LOST if job.handle is None else job.handle.exitcode
            if job.handle is not None:
                kill_orphans(job.handle.pid)
            if job.code == -signal.SIGKILL and oom_kills() > self._oom_kills[job.name]:
                with open(log_path(self.folder, job.trials[0]), 'a') as log:
                    log.write('Out of memory: killed by the kernel\n')
        return ended

    def stop(self, job: Job, *, now: bool = False) -> None:
        """Tells a job to save and stop; `now` kills it; its worker processes follow when it ends."""
        if job.handle is not None and job.handle.is_alive():
            job.handle.kill() if now else job.handle.terminate()

    def close(self) -> None:
        """Tells the jobs that still run to save and stop, and waits for them."""
        for job in self.jobs.values():
            self.stop(job)
        while self.jobs:
            self.poll(1.0)


def kill_orphans(leader: int) -> None:
    """Kills the processes of a trial's group whose leader has ended, such as its data workers.

    While the group has members the kernel gives its number to no new process; a process that has
    this number is therefore somebody else's, and its group too.
    """
    try:
        os.kill(leader, 0)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
    except PermissionError:
        pass


def oom_kills() -> int:
    """How many processes the kernel has killed because memory ran out; they cannot say it themselves."""
    try:
        found = re.search(r'^oom_kill (\d+)', VMSTAT.read_text(), re.M)
    except OSError:
        return 0
    return int(found.group(1)) if found else 0


def trial_path(folder: Path, trial: Trial) -> Path:
    return folder / 'trials' / trial.id


def log_path(folder: Path, trial: Trial) -> Path:
    return folder / 'logs' / f'{trial.id}.txt'


def command(folder: Path, trials: list[Trial]) -> tuple[str, list[str]]:
    """(module, arguments) of the process that trains these trials."""
    if len(trials) == 1:
        trial = trials[0]
        workdir = f'--workdir={trial_path(folder, trial)}'
        return 'jaxdl', ['train', f'--config={trial.config}', workdir, *trial.words()]
    names = ','.join(trial.id for trial in trials)
    return 'jaxdl.sweeps.vectorized', [f'--workdir={folder}', f'--trials={names}']
