"""Where a run's wall time went: buckets that do not overlap and add up to the wall time."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Assigns every second since `start` to exactly one bucket.

    `with clock('eval'):` adds the time inside to 'eval', without the time of inner blocks. Time
    outside all blocks belongs to 'other'.

    Args:
        start: time.monotonic() at the beginning.
    """

    def __init__(self, start: float | None = None):
        now = time.monotonic()
        self.start = now if start is None else start
        self.seconds: dict[str, float] = {'other': now - self.start}
        self._stack = ['other']
        self._since = now

    def _turn(self) -> None:
        now = time.monotonic()
        name = self._stack[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def move(self, source: str, target: str, seconds: float) -> None:
        """Moves `seconds` from the bucket `source` to `target`."""
        self._turn()
        seconds = min(seconds, self.seconds.get(source, 0.0))
        self.seconds[source] = self.seconds.get(source, 0.0) - seconds
        self.seconds[target] = self.seconds.get(target, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """Seconds per bucket up to now."""
        self._turn()
        return dict(self.seconds)

    def total(self) -> float:
        return time.monotonic() - self.start
