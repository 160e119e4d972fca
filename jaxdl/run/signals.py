"""Signals that ask a run to stop, and a watchdog for a run that hangs."""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupted(Exception):
    """A signal broke off what was under way and can be done again."""


class StopRequest:
    """Remembers that SIGTERM, SIGINT or SIGUSR1 came; a second signal exits at once (75)."""

    def __init__(self):
        self.name = ''
        self._old: dict = {}

    def __enter__(self) -> 'StopRequest':
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            # None: it was installed in C (jax.distributed does), and Python cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number, frame):
        del frame
        if self.name:
            os.write(2, b'\nsecond signal: stopping at once, without another save\n')
            os._exit(75)
        self.name = signal.Signals(number).name
        message = f'\n{self.name}: finishing the step and saving; a second signal stops at once\n'
        os.write(2, message.encode())


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

    @contextmanager
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
