"""The last output of a trial's process, and the meaning of its exit code."""

import os
import re
import signal

from jaxdl.sweeps.local import LOST
from jaxdl.sweeps.spec import Trial
from jaxdl.sweeps.store import Store

LAST_BYTES = 16384

# Messages of XLA, CUDA, glibc, Python and Slurm when memory runs out.
_NO_MEMORY = re.compile(
    r'RESOURCE_EXHAUSTED|[Oo]ut of memory|CUDA_ERROR_OUT_OF_MEMORY|std::bad_alloc|MemoryError'
    r'|[Cc]annot allocate memory|oom.kill',
)


def tail(store: Store, trial: Trial) -> str:
    """The end of the last attempt's output, without empty lines."""
    state = store.state(trial.id)
    try:
        with open(store.path / 'logs' / state['log'], 'rb') as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(state['log_from'], size - LAST_BYTES))
            lines = file.read().decode(errors='replace').splitlines()
    except (OSError, KeyError, ValueError):
        return ''
    return '\n'.join(line.rstrip() for line in lines if line.strip())


def last_words(store: Store, trial: Trial, kind: str) -> str:
    """The message of an exit 2 ('error') or 3 ('diverged')."""
    found = re.findall(rf'^{kind}: (.*)', tail(store, trial), re.M)
    return found[-1] if found else str(store.run_info(trial.id).get('reason', '')) or kind


def short_of_memory(words: str) -> bool:
    """Whether this is the output of a process that ran out of memory."""
    return bool(_NO_MEMORY.search(words))


def exit_name(code: int) -> str:
    """'exit code 1', or 'killed by SIGKILL' for -9."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        return f'killed by {name}'
    return f'exit code {code}' + (', or its fork server died' if code == LOST else '')
