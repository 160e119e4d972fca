"""The steps between two lines of metrics: sums that become means, and the speed."""

from typing import Any

import numpy as np

from jaxdl.account.clock import Clock
from jaxdl.core.step import Packing

# Time in these is no training: the speed leaves it out.
ASIDE = ('evaluation', 'checkpoint', 'log', 'compile', 'profile')


class Interval:
    """What was measured since the last line.

    Attributes:
        sums: float64 [size], of the packed metrics of the steps that were finite.
        counted: how many those are.
    """

    def __init__(self, clock: Clock):
        self.clock = clock
        self.sums = np.zeros(0, np.float64)
        self.counted = 0
        self._step, self._seconds = 0, 0.0

    def save(self) -> dict[str, Any]:
        """JSON that `begin` takes, so that a resumed run reports the same means."""
        return {'sums': self.sums.tolist() if self.counted else [], 'counted': self.counted}

    def begin(self, step: int, size: int, saved: dict[str, Any] | None = None) -> None:
        """Starts at `step`, with the sums that a checkpoint held where they fit."""
        found = np.asarray((saved or {}).get('sums') or [], np.float64)
        if len(found) == size:
            self.sums, self.counted = found, int((saved or {})['counted'])
        else:
            self.sums, self.counted = np.zeros(size, np.float64), 0
        self._step, self._seconds = step, self._training()

    def add(self, vector: np.ndarray) -> None:
        self.sums = self.sums + vector
        self.counted += 1

    def end(self, step: int, packing: Packing, task: Any) -> tuple[dict[str, float], float]:
        """(the means, {} where nothing was finite; seconds per step), and begins the next."""
        means = packing.means(self.sums) if self.counted else {}
        scalars = {name: value for name, value in means.items() if isinstance(value, float)}
        if scalars:
            scalars |= task.derived(scalars)
        steps = step - self._step
        seconds = (self._training() - self._seconds) / steps if steps > 0 else 0.0
        self.begin(step, packing.size)
        return scalars, seconds

    def _training(self) -> float:
        seconds = self.clock.read()
        return self.clock.total() - sum(seconds.get(name, 0.0) for name in ASIDE)
