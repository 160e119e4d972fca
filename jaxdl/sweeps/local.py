"""Runs trials on this machine, each in its own process and on its own slot."""

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
# The environment variable with the sweep's folder, set in every process of the sweep.
MARK = 'JAXDL_SWEEP'
# The exit code that multiprocessing reports if the fork server died before it could pass the code.
LOST = 255

_FORKSERVER = multiprocessing.get_context('forkserver')
_FORKSERVER.set_forkserver_preload(['jaxdl.sweeps.preload'])


@dataclasses.dataclass
class Job:
    """A process that trains one trial, or several in one program.

    Attributes:
        trials: the trials.
        place: where it runs, for the table.
        started: time.monotonic() of its start.
        stopping: why it was told to stop, or ''.
        seconds: how long the process ran, set when it has ended.
        code: its exit code, negative for a signal; LOST: unknown, and it may still run.
        handle: the launcher's handle of the process.
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
    """Checks trials in separate processes, so that the sweep itself imports no config.

    Args:
        folder: the sweep's folder.
        env: variables of these processes and of all trials.
    """

    def __init__(self, folder: Path, env: Mapping[str, str]):
        self.folder, self.env = folder, env

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """Sets the environment for starting a process, since that may start the fork server."""
        before = dict(os.environ)
        os.environ.update({**self.env, MARK: str(self.folder)})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def check(self, trials: list[Trial]) -> list[str]:
        """The error of each trial, or ''; sets the fields of the trial that its config decides."""
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
        """(the metrics that a run of this trial writes, ''), or (None, why they are unknown).

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
        """Does nothing, since the fork server ends by itself with the sweep."""


class Local(Checks):
    """Starts jobs on slots of this machine.

    Args:
        folder: the sweep's folder.
        slots: the places where jobs can run.
        fork: whether trials are forked from a process that has imported jax, or start fresh.
        env: variables for all processes.
    """

    def __init__(self, folder: Path, slots: list[Slot], *, fork: bool, env: Mapping[str, str]):
        super().__init__(folder, env)
        self.slots, self.fork = slots, fork
        self.jobs: dict[str, Job] = {}
        self._taken: dict[str, Slot] = {}
        self._oom_kills: dict[str, int] = {}

    def adopt(self, trials: list[Trial]) -> list[Job]:
        """Returns [], since jobs on this machine do not outlive the sweep."""
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
                    # The flags for deterministic programs must be set before jax is imported.
                    'fresh': not self.fork or any(trial.deterministic for trial in job.trials),
                },
            )
            with self.environment():
                try:
                    job.handle.start()
                except (EOFError, ConnectionError):  # the fork server has just died
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
        """Tells a job to save and stop; `now` kills it. `poll` then kills its data workers."""
        if job.handle is not None and job.handle.is_alive():
            job.handle.kill() if now else job.handle.terminate()

    def close(self) -> None:
        """Tells all running jobs to save and stop, and waits for them."""
        for job in self.jobs.values():
            self.stop(job)
        while self.jobs:
            self.poll(1.0)


def kill_orphans(leader: int) -> None:
    """Kills what remains of a trial's process group after its leader ended, such as data workers.

    The kernel does not reuse the number while the group has members. So if a process has it now,
    the group is empty, and the number belongs to another program.
    """
    try:
        os.kill(leader, 0)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
    except PermissionError:
        pass


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory; they cannot report it."""
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
