"""Signals that ask a process to stop, and a watchdog for a run that hangs.

The system writes every signal into a pipe at the moment it comes, and a thread reads that: the main
thread, in which Python would call a handler, may be inside a compiler for minutes.
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
    """A signal broke off what was under way and can be done again."""


class StopRequest:
    """Remembers that SIGTERM, SIGINT or SIGUSR1 came; a second signal ends the process at once (1).

    Args:
        leave: as long as this is not None there is nothing to save: in a process that listens (a
            command's, not one that calls `train` itself) the first signal already ends it (75),
            after calling this with the reason.
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
        """A signal came; called in any thread."""
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

_requests: list[StopRequest] = []  # the last one hears the signals
_pipe: tuple[int, int] = (-1, -1)
_lock = threading.RLock()
_listening = False
_exit_code: int | None = None  # of a command that is over


def block() -> None:
    """Lets stop signals wait until `listen`, even through an exec: the first act of a command."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def listen() -> None:
    """From here on a stop signal ends this process with 75, unless a StopRequest says otherwise."""
    global _listening
    _listening = True
    atexit.register(_ignore)  # called last; the interpreter would give the signals back unheard
    StopRequest(leave=lambda reason: None).__enter__()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def listen_again() -> None:
    """Takes the signals back from a library that took them, as jax.distributed does."""
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
    os.close(_pipe[1])  # its thread reads the end, and closes the other


def _watch(pipe: int) -> None:
    while select.select([pipe], [], []) and _read(pipe):
        pass
    os.close(pipe)


def _on_signal(number: int, frame: object) -> None:
    """The handler in the main thread: whatever it does next, the signal was heard before."""
    del number, frame
    _read(_pipe[0])


def _read(pipe: int) -> bool:
    """Hears the signals that wait in the pipe; False at its end."""
    with _lock:
        try:
            numbers = os.read(pipe, 4096)
        except BlockingIOError:  # the other thread was first
            return True
        for number in numbers:
            # The signals of other handlers come here too.
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
    # Until it has handlers of its own, the new process would write into this one's pipe.
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _in_fork() -> None:
    """The new process has none of the threads: signals end it, as they do other programs."""
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
        seconds: 0 switches it off.
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
        """Does not watch inside: compiling, for example, may take long."""
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
