"""Signals that ask a process to stop, and a watchdog for a run that hangs.

The system writes every signal into a pipe at once, and a thread reads the pipe. A handler alone
would not do: Python calls it in the main thread, which may be inside the compiler for minutes.
"""

import atexit
import contextlib
import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupted(Exception):
    """A signal interrupted work that can be done again after the resume."""


class StopRequest:
    """Remembers that SIGTERM, SIGINT or SIGUSR1 came; a second signal ends the process at once (1).

    Args:
        leave: not None as long as there is nothing to save. Then the first signal already ends the
            process (75), after a call of this function with the reason. That holds for commands,
            which call `listen`, and not for programs that call `train` themselves.
    """

    def __init__(self, leave: Callable[[str], None] | None = None):
        self.name = ''
        self.leave = leave
        self._old: dict = {}

    def __enter__(self) -> 'StopRequest':
        if threading.current_thread() is threading.main_thread():
            if not _requests:
                _open_pipe()
            _requests.append(self)
            for number in STOP_SIGNALS:
                self._old[number] = signal.signal(number, _on_signal)
        return self

    def __exit__(self, *_):
        if self in _requests:
            for number, handler in self._old.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            _requests.remove(self)
            if not _requests:
                _close_pipe()

    def hear(self, number: int) -> None:
        """Handles a signal; may be called in any thread."""
        name = signal.Signals(number).name
        if self.name:
            _end(1, 'second signal: stopping at once, without another save')
        self.name = name
        if self.leave is not None and _listening:
            reason = f'{name}: there was nothing to save; the same command starts again'
            self.leave(reason)
            _end(75, f'preempted: {reason}')
        _say(f'{name}: finishing the step and saving; a second signal stops at once')


# ---- the process --------------------------------------------------------------------------------

_requests: list[StopRequest] = []  # the last one handles the signals
_pipe: tuple[int, int] = (-1, -1)
_lock = threading.RLock()
_listening = False
_exit_code: int | None = None  # set when the command is over


def block() -> None:
    """Makes stop signals wait until `listen`, even across an exec; a command calls this first."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def listen() -> None:
    """From here on a stop signal ends this process with 75, unless a StopRequest says otherwise."""
    global _listening
    _listening = True
    # Python restores the default handlers at its very end, and a late signal would kill the process.
    atexit.register(_ignore)
    StopRequest(leave=lambda reason: None).__enter__()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def listen_again() -> None:
    """Installs the handlers again after a library has replaced them, as jax.distributed does."""
    if _requests:
        for number in STOP_SIGNALS:
            signal.signal(number, _on_signal)


def command_is_over(code: int) -> None:
    """From here on a stop signal ends the process with the command's exit code."""
    global _exit_code
    _exit_code = code


def _open_pipe() -> None:
    global _pipe
    _pipe = os.pipe()
    for end in _pipe:
        os.set_blocking(end, False)
    signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=_pipe[:1], name='signals', daemon=True).start()


def _close_pipe() -> None:
    signal.set_wakeup_fd(-1)
    os.close(_pipe[1])  # the thread then reads the end of the pipe and closes the other side


def _watch(pipe: int) -> None:
    while select.select([pipe], [], []) and _read(pipe):
        pass
    os.close(pipe)


def _on_signal(number: int, frame: object) -> None:
    """The handler in the main thread: handles what the thread has not yet read from the pipe."""
    del number, frame
    _read(_pipe[0])


def _read(pipe: int) -> bool:
    """Handles the signals that wait in the pipe; False at the end of the pipe."""
    with _lock:
        try:
            numbers = os.read(pipe, 4096)
        except BlockingIOError:  # the other thread has already read it
            return True
        for number in numbers:
            # The pipe also receives signals that have other handlers.
            if signal.getsignal(number) is _on_signal:
                if _exit_code is not None:
                    os._exit(_exit_code)
                _requests[-1].hear(number)
        return bool(numbers)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f'\n{text}\n'.encode())


def _end(code: int, text: str) -> None:
    _say(text)
    os._exit(code)


def _ignore() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _before_fork() -> None:
    # Until the new process has its own handlers, its signals would go into this process's pipe.
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _in_fork() -> None:
    """Restores the default handlers in a forked process, which has no thread to read the pipe."""
    global _lock, _listening
    _lock, _listening = threading.RLock(), False
    if _requests:
        signal.set_wakeup_fd(-1)
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is _on_signal:
                signal.signal(number, signal.SIG_DFL)
        for end in _pipe:
            os.close(end)
        _requests.clear()
    _after_fork()


_forking = threading.local()
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_fork)


class Watchdog:
    """Prints all stacks and ends the process when nothing calls `beat` for `seconds`.

    Args:
        seconds: the limit; 0 switches the watchdog off.
        report: called with the reason before the process ends with exit code 1.
    """

    def __init__(self, seconds: float, report: Callable[[str], None]):
        self.seconds, self.report = seconds, report
        self._last: float | None = None
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name='watchdog', daemon=True).start()

    def beat(self) -> None:
        self._last = time.monotonic()

    def rest(self) -> None:
        """Stops watching until the next beat."""
        self._last = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not watch inside this context, for work such as compiling that may take long."""
        self.rest()
        try:
            yield
        finally:
            self.beat()

    def close(self) -> None:
        self._closed.set()

    def _watch(self):
        while not self._closed.wait(min(self.seconds / 4, 5.0)):
            last = self._last
            if last is not None and time.monotonic() - last > self.seconds:
                reason = (
                    f'no step for {self.seconds:g} s (config.hang_timeout); all stacks are above'
                )
                faulthandler.dump_traceback(all_threads=True)
                print(f'ERROR: {reason}', file=sys.stderr, flush=True)
                try:
                    self.report(reason)
                finally:
                    os._exit(1)
