"""Trials on this machine: one process each, on a slot of their own."""

import dataclasses
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.sweeps.slots import Slot
from jaxdl.sweeps.spec import Trial

VMSTAT = Path('/proc/vmstat')


@dataclasses.dataclass
class Job:
    """One process: a trial, or several in one program.

    Attributes:
        trials: what it trains.
        place: where it runs, for the table.
        started: time.monotonic() of its start.
        stopping: why it was told to stop, or ''.
        seconds: how long its process lived, set when it has ended.
        handle: what the launcher knows it by.
    """

    trials: list[Trial]
    place: str = ''
    started: float = 0.0
    stopping: str = ''
    seconds: float = 0.0
    handle: Any = None

    @property
    def name(self) -> str:
        return self.trials[0].id


@dataclasses.dataclass
class Exit:
    """How a job ended: exit code, negative for a signal; None: lost, it has to be looked at."""

    job: Job
    code: int | None


class ServerGone(Exception):
    """The process that trials are forked from died."""


class Server:
    """The other end of jaxdl.sweeps.server."""

    def __init__(self, env: Mapping[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'jaxdl.sweeps.server'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **env},
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._write, self._read = self.process.stdin, self.process.stdout
        self._buffer = b''
        self._waiting: list[dict] = []

    def send(self, message: dict) -> None:
        try:
            self._write.write((json.dumps(message) + '\n').encode())
            self._write.flush()
        except OSError:
            raise ServerGone from None

    def receive(self, timeout: float) -> list[dict]:
        """The messages that come within `timeout`; returns at the first ones."""
        found, self._waiting = self._waiting, []
        if found:
            timeout = 0
        ready, _, _ = select.select([self._read], [], [], timeout)
        if ready:
            data = os.read(self._read.fileno(), 1 << 20)
            if not data:
                if found:
                    return found
                raise ServerGone
            *lines, self._buffer = (self._buffer + data).split(b'\n')
            found += [json.loads(line) for line in lines]
        return found

    def ask(self, message: dict, *answers: str) -> dict:
        """Sends a question and waits for the message with one of the keys `answers`."""
        self.send(message)
        others = []
        while True:
            for reply in self.receive(1.0):
                if any(key in reply for key in answers):
                    self._waiting = others + self._waiting
                    return reply
                others.append(reply)

    def close(self) -> None:
        """Ends it; trials that still run are told to stop, and waited for."""
        try:
            self._write.close()
        except OSError:
            pass
        self.process.wait()
        self._read.close()


class Checks:
    """Looks at trials in a process of their own, so that the sweep itself imports no config.

    Args:
        env: variables of that process.
    """

    def __init__(self, env: Mapping[str, str]):
        self.server = Server(env)
        self.forks = True

    def check(self, trials: list[Trial]) -> list[dict]:
        """What check.check_trials says about these trials."""
        asked = [{'config': trial.config, 'words': trial.words()} for trial in trials]
        try:
            reply = self.server.ask({'do': 'check', 'trials': asked}, 'checked')
        except ServerGone:
            raise UserError('the check of the trials died; its last words are above') from None
        self.forks = self.forks and reply['forks']
        return reply['checked']

    def metric_names(self, trial: Trial) -> dict:
        """{'names'}, {'error'} or {'unknown'}: the metrics a run of this trial writes."""
        message = {'do': 'names', 'config': trial.config, 'words': trial.words()}
        try:
            return self.server.ask(message, 'names', 'error', 'unknown')
        except ServerGone:
            raise UserError('the check of the metric died; its last words are above') from None

    def close(self) -> None:
        self.server.close()


class Local(Checks):
    """Starts jobs on slots of this machine.

    Args:
        folder: the sweep's.
        slots: where jobs can run.
        fork: fork trials from the server; otherwise each is a fresh process.
        env: variables for all processes.
    """

    def __init__(self, folder: Path, slots: list[Slot], *, fork: bool, env: Mapping[str, str]):
        super().__init__(env)
        self.folder, self.slots, self.fork = folder, slots, fork
        self._env = dict(env)
        self.jobs: dict[str, Job] = {}
        self._taken: dict[str, Slot] = {}

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
            module, argv = command(self.folder, job.trials)
            job.place, job.started = slot.name, time.monotonic()
            job.handle = {'oom_kills': oom_kills()}
            self.jobs[job.name], self._taken[job.name] = job, slot
            message = {
                'do': 'start',
                'id': job.name,
                'module': module,
                'argv': argv,
                'env': dict(slot.env),
                'cpus': list(slot.cpus),
                'log': str(log_path(self.folder, job.trials[0])),
                'fork': self.fork and self.forks,
            }
            try:
                self.server.send(message)
            except ServerGone:
                pass  # poll notices, and gives the job back

    def poll(self, timeout: float) -> list[Exit]:
        """The jobs that ended, waiting at most `timeout` seconds for one."""
        try:
            messages = self.server.receive(timeout)
        except ServerGone:
            lost = [Exit(job, None) for job in self.jobs.values()]
            self.jobs.clear()
            self._taken.clear()
            self.server.close()
            self.server = Server(self._env)
            # Configs are imported anew by the first check; trials that fork load their own.
            return lost
        found = []
        for message in messages:
            if 'exited' in message and message['exited'] in self.jobs:
                del self._taken[message['exited']]
                job = self.jobs.pop(message['exited'])
                job.seconds = message['seconds']
                if message['code'] == -signal.SIGKILL and oom_kills() > job.handle['oom_kills']:
                    with open(log_path(self.folder, job.trials[0]), 'a') as log:
                        log.write('Out of memory: killed by the kernel\n')
                found.append(Exit(job, message['code']))
        return found

    def stop(self, job: Job, *, now: bool = False) -> None:
        """Tells a job to save and stop; `now` kills it with all its workers."""
        number = signal.SIGKILL if now else signal.SIGTERM
        try:
            self.server.send({'do': 'signal', 'id': job.name, 'number': int(number), 'group': now})
        except ServerGone:
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
        return 'train', [f'--config={trial.config}', workdir, *trial.words()]
    names = ','.join(trial.id for trial in trials)
    return 'jaxdl.sweeps.vectorized', [f'--workdir={folder}', f'--trials={names}']
