"""What a process does that was forked for a sweep: it trains a trial, or answers a question.

Imports no jax: the sweep's own process imports this module to name its functions.
"""

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from jaxdl.errors import UserError

_PR_SET_PDEATHSIG = 1

# The process that forked this one; set there by jaxdl.sweeps.preload.
fork_server = 0


def end_with_parent(number: int) -> None:
    """Has the kernel send the signal `number` to this process when its parent dies, also by kill -9."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _leave_the_sweep(number: int) -> None:
    """Leaves the sweep's session, whose terminal sends Ctrl-C to all in it, but not its fate."""
    os.setsid()
    end_with_parent(number)
    if fork_server and os.getppid() != fork_server:
        os._exit(75)  # the parent had died before it was watched


def train(
    module: str,
    argv: Sequence[str],
    *,
    env: dict[str, str | None],
    cpus: Sequence[int],
    log: str,
    fresh: bool,
) -> None:
    """Runs a module as the program of this process, as `python -m MODULE` does.

    Args:
        module: the program.
        argv: its arguments.
        env: variables to set before a device is opened; None removes one.
        cpus: the cores it may use; empty: all.
        log: where its output goes.
        fresh: replace this process by a new one that shares no state with the fork server.
    """
    _leave_the_sweep(signal.SIGTERM)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for old, new in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(old, new)
    try:  # short of memory the kernel shall end a trial, not the sweep
        Path('/proc/self/oom_score_adj').write_text('500')
    except OSError:
        pass
    for name, value in env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if cpus:
        os.sched_setaffinity(0, cpus)
    program = [sys.executable, '-m', module, *argv]
    if fresh:
        os.execv(sys.executable, program)
    sys.argv = [module, *argv]
    sys.orig_argv = program  # run.json's `command`
    # alter_sys: the worker processes of the data import what `__main__` is here.
    runpy.run_module(module, run_name='__main__', alter_sys=True)


def answer(connection: Connection, question: str, *args) -> None:
    """Sends back what the function `question` of jaxdl.sweeps.check returns, or why it cannot.

    The answer is (value, '', '') or (None, the user's mistake, another error).
    """
    _leave_the_sweep(signal.SIGKILL)
    os.dup2(2, 1)  # what configs and libraries print is not what the sweep prints
    from jaxdl.sweeps import check

    try:
        connection.send((getattr(check, question)(*args), '', ''))
    except UserError as error:
        connection.send((None, str(error), ''))
    except Exception as error:
        connection.send((None, '', f'{type(error).__name__}: {error}'))
