"""The functions that run in a process forked for a sweep: it trains a trial, or answers a question.

This module must not import jax, because the sweep's own process imports it as well.
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

# The process id of the fork server; jaxdl.sweeps.preload sets it there, and forks inherit it.
fork_server = 0


def end_with_parent(number: int) -> None:
    """Has the kernel send the signal `number` to this process when its parent dies in any way."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _leave_session(number: int) -> None:
    """Starts a new session, which Ctrl-C does not reach, but ends when the parent dies."""
    os.setsid()
    end_with_parent(number)
    if fork_server and os.getppid() != fork_server:
        os._exit(75)  # the parent died before `end_with_parent` was called


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
        argv: the program's arguments.
        env: variables to set before a device is opened; None removes one.
        cpus: the cores that it may use; empty: all.
        log: the file for its output.
        fresh: whether to exec a new process, which shares no state with the fork server.
    """
    _leave_session(signal.SIGTERM)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for old, new in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(old, new)
    try:  # if memory runs out, the kernel should kill a trial and not the sweep
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
    # Run as __main__, because data workers import the module of `__main__` again.
    runpy.run_module(module, run_name='__main__', alter_sys=True)


def answer(connection: Connection, question: str, *args) -> None:
    """Calls the function `question` of jaxdl.sweeps.check and sends its result or its error.

    The answer is (value, '', '') or (None, the user's mistake, another error).
    """
    _leave_session(signal.SIGKILL)
    os.dup2(2, 1)  # keeps what configs and libraries print out of the sweep's stdout
    from jaxdl.sweeps import check

    try:
        connection.send((getattr(check, question)(*args), '', ''))
    except UserError as error:
        connection.send((None, str(error), ''))
    except Exception as error:
        connection.send((None, '', f'{type(error).__name__}: {error}'))
