"""Trials as jobs of a Slurm cluster, submitted as job arrays.

The sweep runs on the node where it was called and watches the queue. The trials write to the same
folders as on one machine, which must be on a file system that the nodes share. If the sweep is
killed its jobs go on, and the next call takes them over. Each job runs jaxdl.sweeps.slurm_job.

    slurm/ARRAY.json      {"tasks": [[trial id, …], …]}, the trials of each job of an array
    slurm/ARRAY_N.json    {"code": exit code}, written by a job when it ends
    slurm/ARRAY_N.txt     what the job itself printed

The commands are in the script that Slurm keeps, and not in the folder, which others may be able to
change.
"""

import getpass
import hashlib
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from jaxdl.errors import UserError
from jaxdl.files import read_object, write_json
from jaxdl.sweeps.local import Checks, Job, command, log_path
from jaxdl.sweeps.slurm_job import call, show
from jaxdl.sweeps.spec import Trial

LOOK_EVERY = 5.0  # seconds between two queries of the queue
LARGEST_ARRAY = 1000  # Slurm's MaxArraySize is 1001 unless an administrator has changed it
SAVE_SECONDS = 30.0  # the least time between the signal to save and the end of a job
GONE = 2  # queries in a row in which a job is missing, without a result, before it counts as ended
# Options of sbatch that the sweep sets itself.
OWN = ('array', 'output', 'error', 'job-name', 'ntasks', 'signal', 'parsable', 'test-only', 'wrap')


class Slurm(Checks):
    """Submits jobs to Slurm and watches them.

    Args:
        folder: the sweep's folder.
        most: the largest number of jobs in the queue; None: no limit.
        partition: Slurm's partition; '': the cluster's default.
        hours: time limit of one job; a longer trial is requeued and continues.
        gpus: GPUs of a job.
        cpus: cores of a job.
        memory_gb: memory of a job; 0: the cluster's default.
        options: further options of sbatch, such as '--account=lab --qos=low'.
        grace: seconds before the time limit at which a trial is told to save.

    Raises:
        UserError: there is no Slurm here, or it refuses these options.
    """

    def __init__(
        self,
        folder: Path,
        *,
        most: int | None,
        partition: str,
        hours: float,
        gpus: int,
        cpus: int,
        memory_gb: float,
        options: str,
        grace: float,
    ):
        if shutil.which('sbatch') is None or shutil.which('srun') is None:
            raise UserError(
                '--launcher=slurm: sbatch and srun are not on this machine; call it on a login node '
                'of the cluster, or use --launcher=local'
            )
        super().__init__(folder, {'JAX_PLATFORMS': 'cpu'})  # the login node may have no GPU
        minutes, save = math.ceil(hours * 60), math.ceil(max(grace, SAVE_SECONDS))
        if 60 * minutes < save + 30:
            raise UserError(
                f'--hours={hours:g}: too short; trials are told to save {save} s before the end '
                '(grace of the sweep)'
            )
        self.most, self.cpus = most, cpus
        self.jobs: dict[str, Job] = {}
        self.name = _job_name(folder)
        self._missing: dict[str, int] = {}
        self._looked = 0.0
        self._options = [
            *(f'--job-name={self.name}', '--nodes=1', '--ntasks-per-node=1', '--requeue'),
            *(f'--time={minutes}', f'--signal=USR1@{save}', f'--cpus-per-task={cpus}'),
            *(f'--output={folder / "slurm"}/%A_%a.txt', '--open-mode=append'),
            *([f'--partition={partition}'] if partition else []),
            *([f'--gpus-per-node={gpus}'] if gpus else []),
            *([f'--mem={math.ceil(memory_gb * 1024)}M'] if memory_gb else []),
            *further_options(options),
        ]
        try:  # lets sbatch check the options without submitting anything
            self._sbatch('--test-only', script='#!/bin/sh\n')
        except UserError as error:
            raise UserError(
                f'{error}\nSee `sinfo` for the partitions, and --partition, --hours, '
                '--gpus_per_trial, --cpus_per_trial, --memory_gb, --slurm_options'
            ) from None

    def _sbatch(self, *words: str, script: str) -> str:
        done = subprocess.run(
            ['sbatch', *self._options, *words], input=script, capture_output=True, text=True
        )
        if done.returncode:
            said = ' '.join(done.stderr.split()).replace('sbatch: error: ', '')
            raise UserError(f'--launcher=slurm: sbatch refuses: {said}')
        return done.stdout

    # ---- submitting ----

    def free(self) -> int:
        return (self.most or sys.maxsize) - len(self.jobs)

    def start(self, jobs: list[Job]) -> None:
        (self.folder / 'slurm').mkdir(exist_ok=True)
        for first in range(0, len(jobs), LARGEST_ARRAY):
            part = jobs[first : first + LARGEST_ARRAY]
            array = f'--array=0-{len(part) - 1}'
            said = self._sbatch(array, '--parsable', script=self._script(part))
            number = said.strip().partition(';')[0]  # the name of a cluster may follow
            tasks = [[trial.id for trial in job.trials] for job in part]
            write_json(self.folder / 'slurm' / f'{number}.json', {'tasks': tasks})
            for index, job in enumerate(part):
                job.handle = f'{number}_{index}'
                job.place = f'slurm {job.handle}'
                self.jobs[job.name] = job

    def _script(self, jobs: list[Job]) -> str:
        """The script of a job array; each job starts the command of its own trials."""
        lines = ['#!/bin/bash', 'case $SLURM_ARRAY_TASK_ID in']
        for index, job in enumerate(jobs):
            module, argv = command(self.folder, job.trials)
            ids = ','.join(trial.id for trial in job.trials)
            words = [str(self.folder), ids, sys.executable, '-m', module, *argv]
            lines.append(f'{index}) set -- {shlex.join(words)} ;;')
        step = ['srun', '--unbuffered', f'--cpus-per-task={self.cpus}']
        start = shlex.join([*step, sys.executable, '-u', '-m', 'jaxdl.sweeps.slurm_job'])
        return '\n'.join([*lines, 'esac', f'{start} "$@"', ''])

    def adopt(self, trials: list[Trial]) -> list[Job]:
        """Takes over the jobs of an earlier call that are still in the queue."""
        by_id = {trial.id: trial for trial in trials}
        for number, (state, node) in self._queue().items():
            ids = self._submitted(number)
            if not ids or not all(name in by_id for name in ids):
                # The sweep was killed after submitting the job and before recording its trials.
                call('scancel', number)
                continue
            job = Job([by_id[name] for name in ids], handle=number)
            self._place(job, state, node)
            self.jobs[job.name] = job
        return list(self.jobs.values())

    def _submitted(self, number: str) -> list[str]:
        """The trials of a job of an earlier call; [] if they were not recorded.

        Raises:
            UserError: the file that records them is damaged.
        """
        array, _, index = number.partition('_')
        path = self.folder / 'slurm' / f'{array}.json'
        try:
            ids = read_object(path)['tasks'][int(index)]
            if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
                raise ValueError(f'task {index} is no list of trials')
            return ids
        except FileNotFoundError:
            return []
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f'{path} is damaged: {error}; end its jobs with `scancel {array}`, delete it, and call '
                'the sweep again'
            ) from None

    # ---- watching ----

    def poll(self, timeout: float) -> list[Job]:
        """The jobs that ended, waiting at most about `timeout` seconds for one."""
        end = time.monotonic() + timeout
        while True:
            found = self._results() + self._check_queue()
            if found or time.monotonic() >= end:
                return found
            time.sleep(min(0.2, timeout))

    def _results(self) -> list[Job]:
        found = []
        for name, job in list(self.jobs.items()):
            path = self.folder / 'slurm' / f'{job.handle}.json'
            try:
                code = read_object(path).get('code')
                if type(code) is not int:
                    raise ValueError(f'code is {code!r}')
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                self._say(job, f'{path} is damaged: {error}')
                code = 1
            found.append(self._end(name, code))
        return found

    def _end(self, name: str, code: int) -> Job:
        job = self.jobs.pop(name)
        job.seconds = time.monotonic() - job.started if job.started else 0.0
        job.code = code
        return job

    def _check_queue(self) -> list[Job]:
        """Queries the queue every LOOK_EVERY seconds; jobs missing without a result have ended."""
        if time.monotonic() - self._looked < LOOK_EVERY or not self.jobs:
            return []
        try:
            queue = self._queue()
        except (OSError, subprocess.SubprocessError):
            return []  # Slurm's controller does not answer now; the next query may succeed
        finally:
            self._looked = time.monotonic()
        found = []
        for name, job in list(self.jobs.items()):
            if job.handle in queue:
                self._missing.pop(name, None)
                self._place(job, *queue[job.handle])
                continue
            self._missing[name] = self._missing.get(name, 0) + 1
            if self._missing[name] >= GONE:
                self._missing.pop(name)
                words = show(job.handle).get('JobState', '').replace('_', ' ').lower() or 'gone'
                self._say(job, f'Slurm job {job.handle} ended: {words}')
                found.append(self._end(name, 75 if job.stopping else -int(signal.SIGKILL)))
        return found

    def _queue(self) -> dict[str, tuple[str, str]]:
        """{job id: (state, node)} of this sweep's jobs."""
        words = ['--noheader', '--array', f'--user={getpass.getuser()}', f'--name={self.name}']
        done = subprocess.run(
            ['squeue', *words, '--format=%i|%T|%N'],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        rows = [line.strip().split('|') for line in done.stdout.splitlines() if line.strip()]
        return {number: (state, node) for number, state, node in rows}

    def _place(self, job: Job, state: str, node: str) -> None:
        if state in ('RUNNING', 'COMPLETING') and node:
            job.place = f'{node} {job.handle}'
            job.started = job.started or time.monotonic()
        else:
            job.place, job.started = f'{state.lower()} {job.handle}', 0.0

    def _say(self, job: Job, words: str) -> None:
        with open(log_path(self.folder, job.trials[0]), 'a') as file:
            file.write(words.rstrip() + '\n')

    # ---- stopping ----

    def stop(self, job: Job, *, now: bool = False) -> None:
        """Tells a running job to save and stop, and cancels a waiting one; `now` kills it."""
        if now:
            call('scancel', job.handle)
            return
        call('scancel', '--state=PENDING', job.handle)
        call('scancel', '--signal=TERM', job.handle)


def _job_name(folder: Path) -> str:
    """A job name that no other sweep uses."""
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return f'jaxdl-{re.sub(r"[^A-Za-z0-9_.-]", "_", folder.name)[:40]}-{digest}'


def further_options(text: str) -> list[str]:
    """The words of '--account=lab --exclusive'.

    Raises:
        UserError: a word is not an option, or is one that the sweep sets itself.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f'--slurm_options={text}: {error}') from None
    for word in words:
        name = word.removeprefix('--').partition('=')[0]
        if not word.startswith('--') or not name:
            raise UserError(
                f"--slurm_options={text}: {word!r} is no option; write '--account=lab --qos=low'"
            )
        if any(own.startswith(name) for own in OWN):  # sbatch accepts abbreviated options
            raise UserError(f'--slurm_options={text}: --{name} is set by the sweep itself')
    return words
