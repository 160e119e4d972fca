"""The program of a Slurm job of a sweep: it runs a training command on its node and waits for it.

    python -m jaxdl.sweeps.slurm_job SWEEP_FOLDER TRIAL_ID,… COMMAND …

When Slurm asks it to end (time limit or preemption) the command saves, and the job puts itself back
into the queue. Its exit code goes into slurm/JOB.json of the sweep's folder.
"""

import os
import re
import signal
import subprocess
import sys
import time

from jaxdl.errors import UserError
from jaxdl.files import write_json
from jaxdl.sweeps.store import Store


def main(argv: list[str]) -> int:
    """Runs the command and writes its exit code; does not return if the job was requeued."""
    store, ids, words = Store(argv[1]), argv[2].split(','), argv[3:]
    code = _run(store, ids, words)
    write_json(store.path / 'slurm' / f'{own_id()}.json', {'code': code})
    return 0


def _run(store: Store, ids: list[str], words: list[str]) -> int:
    """Runs the command and returns its exit code."""
    asked: list[int] = []
    # Slurm signals all processes of the job, so the command receives these as well.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    signal.signal(signal.SIGUSR2, lambda number, frame: None)  # only the run answers it: a profile
    if _told_to_stop(store, ids):
        return 75
    before = max(map(store.saved, ids))
    with open(store.path / 'logs' / f'{ids[0]}.txt', 'a') as log:
        print(_where(), file=log, flush=True)
        code = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        ).wait()
        preempted = bool(asked) or (code == 75 and max(map(store.saved, ids)) > before)
        if code not in (0, 2, 3) and preempted and not _is_unwanted(store, ids):
            print(f'Slurm job {own_id()}: told to stop, goes back into the queue', file=log)
            log.flush()
            _requeue()
    return code


def _told_to_stop(store: Store, ids: list[str]) -> bool:
    """Whether the sweep itself has told these trials to stop."""
    states = Store(store.path)  # a new Store, since a Store does not read a file twice
    try:
        return any(states.state(name).get('stopping') for name in ids)
    except UserError:
        return False


def _is_unwanted(store: Store, ids: list[str]) -> bool:
    """Whether the sweep has stopped the trials, or a user has cancelled the job."""
    job = show(own_id())
    cancelled = job.get('JobState') in ('CANCELLED', 'COMPLETING') and not _is_preempted(job)
    return cancelled or _told_to_stop(store, ids)


def _is_preempted(job: dict[str, str]) -> bool:
    """Whether Slurm has preempted the job for another one."""
    return job.get('PreemptTime', 'None') not in ('None', 'N/A', 'Unknown', '')


def _requeue() -> None:
    """Puts the job back into the queue; returns only if that failed."""
    for _ in range(3):
        if call('scontrol', 'requeue', own_id()):
            break
        time.sleep(2)
    else:
        if not _is_preempted(show(own_id())):
            return
    time.sleep(600)  # until Slurm ends this process; preempted jobs may be requeued by Slurm itself


def _where() -> str:
    environ = os.environ
    words = [f'Slurm job {own_id()} on {environ.get("SLURMD_NODENAME", "?")}']
    if environ.get('CUDA_VISIBLE_DEVICES'):
        words.append(f'GPU {environ["CUDA_VISIBLE_DEVICES"]}')
    if environ.get('SLURM_RESTART_COUNT', '0') != '0':
        words.append(f'restart {environ["SLURM_RESTART_COUNT"]}')
    return ', '.join(words)


def own_id() -> str:
    """The id of the job that this process is part of."""
    array = os.environ.get('SLURM_ARRAY_JOB_ID')
    index = os.environ.get('SLURM_ARRAY_TASK_ID')
    return f'{array}_{index}' if array and index else os.environ.get('SLURM_JOB_ID', '')


def show(number: str) -> dict[str, str]:
    """Slurm's facts about a job, such as JobState; {} if it does not answer."""
    words = ['scontrol', '--oneliner', 'show', 'job', number]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(re.findall(r'(\w+)=(\S*)', done.stdout))


def call(*words: str) -> bool:
    """Runs a command of Slurm and returns whether it succeeded."""
    try:
        return subprocess.run(words, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


if __name__ == '__main__':
    sys.exit(main(sys.argv))
