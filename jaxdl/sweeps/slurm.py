"""Trials as jobs of a Slurm cluster, submitted by submitit as job arrays.

The sweep runs on the node where it was called and watches the queue; the trials write to the same
folders as on one machine, which must be on a file system that the nodes share. If the sweep is
killed its jobs go on, and the next call takes them over.

On the node a job starts the trial and waits for it. When Slurm asks it to end (time limit or
preemption) the trial saves, and the job puts itself back into the queue.
"""

import dataclasses
import getpass
import hashlib
import json
import math
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.sweeps.local import Checks, Exit, Job, command, log_path
from jaxdl.sweeps.spec import Trial

LOOK_EVERY = 5.0  # seconds between two questions to the queue
LARGEST_ARRAY = 1000  # Slurm's MaxArraySize is 1001 unless an administrator has changed it
SIGNAL = 'USR1'  # sent by Slurm before a job's time is over
SAVE_SECONDS = 30.0  # least time between that signal and the end
GONE = 2  # looks in a row at which a job is neither in the queue nor has left a result

ROOT = Path(__file__).resolve().parent.parent.parent


class Slurm(Checks):
    """Submits jobs to Slurm and watches them.

    Args:
        folder: the sweep's.
        most: jobs in the queue at a time; None for all.
        partition: Slurm's partition, '' for the cluster's default.
        hours: time limit of one job; a trial that needs longer is requeued and goes on.
        gpus: GPUs of a job.
        cpus: cores of a job.
        memory_gb: memory of a job; 0 for the cluster's default.
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
        _check_resources(hours, gpus, cpus, memory_gb, grace)
        self.folder, self.most = folder, most
        self.jobs: dict[str, Job] = {}
        self.name = _job_name(folder)
        self._missing: dict[str, int] = {}
        self._looked = 0.0
        self._executor = _executor(folder / 'slurm')
        self._executor.update_parameters(
            job_name=self.name,
            time=math.ceil(hours * 60),
            cpus_per_task=cpus,
            signal_delay_s=math.ceil(max(grace, SAVE_SECONDS)),
            array_parallelism=LARGEST_ARRAY,
            additional_parameters={
                'requeue': True,
                'signal': f'{SIGNAL}@{math.ceil(max(grace, SAVE_SECONDS))}',
                **_options(options),
            },
            **({'partition': partition} if partition else {}),
            **({'gpus_per_node': gpus} if gpus else {}),
            **({'mem': _memory(memory_gb)} if memory_gb else {}),
        )
        self._ask_sbatch()
        super().__init__(folder, {'JAX_PLATFORMS': 'cpu'})  # the checks need no GPU of the login node

    def _ask_sbatch(self) -> None:
        """Lets sbatch look at the options without submitting anything."""
        script = self._executor._make_submission_file_text('true', 'check')
        done = subprocess.run(
            ['sbatch', '--test-only'], input=script, capture_output=True, text=True
        )
        if done.returncode:
            words = ' '.join(done.stderr.split()).replace('sbatch: error: ', '')
            raise UserError(
                f'--launcher=slurm: sbatch refuses these options: {words}\n'
                'See `sinfo` for the partitions, and --partition, --hours, --gpus_per_trial, '
                '--cpus_per_trial, --memory_gb, --slurm_options'
            )

    # ---- submitting ----

    def free(self) -> int:
        return (self.most or sys.maxsize) - len(self.jobs)

    def start(self, jobs: list[Job]) -> None:
        for first in range(0, len(jobs), LARGEST_ARRAY):
            part = jobs[first : first + LARGEST_ARRAY]
            handles = []
            try:
                with self._executor.batch():
                    for job in part:
                        handles.append(self._executor.submit(Task.of(self.folder, job.trials)))
            except Exception as error:
                raise UserError(
                    f'sbatch refused the jobs: {" ".join(str(error).split())}'
                ) from None
            for job, handle in zip(part, handles, strict=True):
                job.handle, job.place = handle, f'slurm {handle.job_id}'
                self.jobs[job.name] = job

    def adopt(self, trials: list[Trial]) -> list[Job]:
        """The jobs of an earlier call that are still in the queue; they are watched from now on."""
        by_id = {trial.id: trial for trial in trials}
        for number, (state, node) in self._queue().items():
            task = _submitted(self.folder / 'slurm', number)
            if task is None or not all(name in by_id for name in task.ids):
                # It was killed between submitting and writing down what the job is to do.
                _call('scancel', number)
                continue
            job = Job([by_id[name] for name in task.ids], handle=_job(self.folder, number))
            self._place(job, state, node)
            self.jobs[job.name] = job
        return list(self.jobs.values())

    # ---- watching ----

    def poll(self, timeout: float) -> list[Exit]:
        """The jobs that ended, waiting at most about `timeout` seconds for one."""
        end = time.monotonic() + timeout
        while True:
            found = self._results() + self._look()
            if found or time.monotonic() >= end:
                return found
            time.sleep(min(0.2, timeout))

    def _results(self) -> list[Exit]:
        found = []
        for name, job in list(self.jobs.items()):
            if not job.handle.paths.result_pickle.exists():
                continue
            try:
                outcome, result = pickle.loads(job.handle.paths.result_pickle.read_bytes())
            except (OSError, EOFError, pickle.UnpicklingError):
                continue  # not all of it is there yet
            if outcome != 'success':
                self._say(job, str(result))
            found.append(self._end(name, result if outcome == 'success' else 1))
        return found

    def _end(self, name: str, code: int) -> Exit:
        job = self.jobs.pop(name)
        job.seconds = time.monotonic() - job.started if job.started else 0.0
        return Exit(job, code)

    def _look(self) -> list[Exit]:
        """Asks the queue, not too often; jobs that are gone without a result have ended too."""
        if time.monotonic() - self._looked < LOOK_EVERY or not self.jobs:
            return []
        try:
            queue = self._queue()
        except (OSError, subprocess.SubprocessError):
            return []  # the controller does not answer; it will
        finally:
            self._looked = time.monotonic()
        found = []
        for name, job in list(self.jobs.items()):
            number = job.handle.job_id
            if number in queue:
                self._missing.pop(name, None)
                self._place(job, *queue[number])
                continue
            self._missing[name] = self._missing.get(name, 0) + 1
            if self._missing[name] >= GONE:
                self._missing.pop(name)
                found.append(self._end(name, self._code(job)))
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
        number = job.handle.job_id
        if state in ('RUNNING', 'COMPLETING') and node:
            job.place = f'{node} {number}'
            job.started = job.started or time.monotonic()
        else:
            job.place, job.started = f'{state.lower()} {number}', 0.0

    def _code(self, job: Job) -> int:
        """How a job ended that left no result, by Slurm's own word."""
        number = job.handle.job_id
        state = _show(number).get('JobState', '')
        words = state.replace('_', ' ').lower() or 'gone'
        self._say(job, f'Slurm job {number} ended: {words}')
        return 75 if job.stopping else -int(signal.SIGKILL)

    def _say(self, job: Job, words: str) -> None:
        with open(log_path(self.folder, job.trials[0]), 'a') as file:
            file.write(words.rstrip() + '\n')

    # ---- stopping ----

    def stop(self, job: Job, *, now: bool = False) -> None:
        """Tells a job to save and stop, or cancels it if it waits; `now` kills it."""
        number = job.handle.job_id
        if now:
            _call('scancel', number)
            return
        _call('scancel', '--state=PENDING', number)
        _call('scancel', '--signal=TERM', number)


@dataclasses.dataclass
class Task:
    """What a job does on its node.

    Attributes:
        folder: the sweep's.
        ids: the trials that it trains.
        words: the command.
        log: where the command's output goes.
    """

    folder: str
    ids: tuple[str, ...]
    words: tuple[str, ...]
    log: str

    @classmethod
    def of(cls, folder: Path, trials: Sequence[Trial]) -> 'Task':
        module, argv = command(folder, list(trials))
        program = [str(ROOT / 'train.py')] if module == 'train' else ['-m', module]
        ids = tuple(trial.id for trial in trials)
        log = str(log_path(folder, trials[0]))
        return cls(str(folder), ids, (sys.executable, *program, *argv), log)

    def __call__(self) -> int:
        """The exit code of the command; does not return if the job was put back into the queue."""
        asked: list[int] = []
        # Slurm signals all processes of the job, so the trial hears these as well.
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, lambda number, frame: asked.append(number))
        signal.signal(signal.SIGUSR2, lambda number, frame: None)  # it asks the trial for a profile
        if self._told_to_stop():
            return 75
        before = self._saved()
        with open(self.log, 'a') as log:
            log.write(f'{self._where()}\n')
            log.flush()
            process = subprocess.Popen(
                self.words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            code = process.wait()
            preempted = bool(asked) or (code == 75 and self._saved() > before)
            if code not in (0, 2, 3) and preempted and not self._unwanted():
                log.write(f'Slurm job {_own_id()}: told to stop, goes back into the queue\n')
                log.flush()
                self._requeue()
        return code

    def _unwanted(self) -> bool:
        """Whether the sweep has stopped the trials, or somebody has cancelled the job."""
        if self._told_to_stop():
            return True
        job = _show(_own_id())
        return job.get('JobState') in ('CANCELLED', 'COMPLETING') and not _preempted(job)

    def _requeue(self) -> None:
        """Puts the job back into the queue; returns only if it will not be there."""
        for _ in range(3):
            if _call('scontrol', 'requeue', _own_id()):
                break
            time.sleep(2)
        else:
            if not _preempted(_show(_own_id())):
                return
        time.sleep(600)  # Slurm ends this process; what it preempts it may requeue itself

    def _where(self) -> str:
        environ = os.environ
        words = [f'Slurm job {_own_id()} on {environ.get("SLURMD_NODENAME", "?")}']
        if environ.get('CUDA_VISIBLE_DEVICES'):
            words.append(f'GPU {environ["CUDA_VISIBLE_DEVICES"]}')
        if environ.get('SLURM_RESTART_COUNT', '0') != '0':
            words.append(f'restart {environ["SLURM_RESTART_COUNT"]}')
        return ', '.join(words)

    def _told_to_stop(self) -> bool:
        """Whether the sweep itself has told these trials to stop."""
        for name in self.ids:
            try:
                state = json.loads((Path(self.folder) / 'state' / f'{name}.json').read_text())
            except (OSError, ValueError):
                continue
            if state.get('stopping'):
                return True
        return False

    def _saved(self) -> int:
        """The newest step that any of the trials has saved."""
        steps = [-1]
        for name in self.ids:
            try:
                found = os.listdir(Path(self.folder) / 'trials' / name / 'checkpoints')
            except OSError:
                continue
            steps += [int(entry) for entry in found if entry.isdigit()]
        return max(steps)


def _show(number: str) -> dict[str, str]:
    """What Slurm says about a job, such as JobState; {} if it does not say."""
    words = ['scontrol', '--oneliner', 'show', 'job', number]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(re.findall(r'(\w+)=(\S*)', done.stdout))


def _preempted(job: Mapping[str, str]) -> bool:
    """Whether a job has to make room for another one."""
    return job.get('PreemptTime', 'None') not in ('None', 'N/A', 'Unknown', '')


def _own_id() -> str:
    """The id of the job that this process is part of."""
    array = os.environ.get('SLURM_ARRAY_JOB_ID')
    index = os.environ.get('SLURM_ARRAY_TASK_ID')
    return f'{array}_{index}' if array and index else os.environ.get('SLURM_JOB_ID', '')


def _executor(folder: Path) -> Any:
    import submitit

    return submitit.SlurmExecutor(folder=folder)


def _job(folder: Path, number: str) -> Any:
    import submitit

    return submitit.SlurmJob(folder=folder / 'slurm', job_id=number)


def _submitted(folder: Path, number: str) -> Task | None:
    """What a job of an earlier call was to do."""
    try:
        with open(folder / f'{number}_submitted.pkl', 'rb') as file:
            task = pickle.load(file).function
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError):
        return None
    return task if isinstance(task, Task) else None


def _call(*words: str) -> bool:
    """Whether the command did what it should."""
    try:
        return subprocess.run(words, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _job_name(folder: Path) -> str:
    """A name that the jobs of this sweep have, and no others."""
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return f'jaxdl-{re.sub(r"[^A-Za-z0-9_.-]", "_", folder.name)[:40]}-{digest}'


def _options(text: str) -> Mapping[str, Any]:
    """'--account=lab --exclusive' as submitit takes it."""
    found: dict[str, Any] = {}
    for word in shlex.split(text):
        name, equals, value = word.removeprefix('--').partition('=')
        if not word.startswith('--') or not name:
            raise UserError(
                f"--slurm_options={text}: {word!r} is no option; write '--account=lab --qos=low'"
            )
        if name in ('array', 'output', 'error', 'job-name', 'ntasks', 'signal'):
            raise UserError(f'--slurm_options={text}: --{name} is set by the sweep itself')
        found[name] = value if equals else True
    return found


def _memory(gigabytes: float) -> str:
    return f'{math.ceil(gigabytes * 1024)}M'


def _check_resources(hours: float, gpus: int, cpus: int, memory_gb: float, grace: float) -> None:
    seconds = math.ceil(hours * 60) * 60
    if seconds < max(grace, SAVE_SECONDS) + 30:
        raise UserError(
            f'--hours={hours:g}: too short; trials are told to save '
            f'{max(grace, SAVE_SECONDS):g} s before the end (grace of the sweep)'
        )
    for name, value, least in (
        ('gpus_per_trial', gpus, 0),
        ('cpus_per_trial', cpus, 1),
        ('memory_gb', memory_gb, 0),
    ):
        if value < least:
            raise UserError(f'--{name}={value:g}: must be at least {least}')
