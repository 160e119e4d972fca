"""How many steps may be under way at once, and what that costs a CPU's memory."""

import time
from collections.abc import Callable

import jax

# Enough to keep a device busy, few enough that a signal, a hang or a non-finite number is seen at once.
MOST = 2
# Of a step with larger temporaries, in bytes, a CPU has one under way. Such a step takes so long
# that the host's work between two of them does not count.
LARGE = 96 << 20
# Seconds: a CPU's backend says that a step is done a moment before it frees its temporaries.
PAUSE = 5e-4


class InFlight:
    """The limit for one compiled training step.

    On a CPU each step under way has temporaries of its own from the moment it is started, even
    while it waits for the one before.

    Attributes:
        most: steps that may be under way before the host waits for the oldest.
    """

    def __init__(self, step: Callable):
        analysis = getattr(step, 'memory_analysis', lambda: None)()  # not of pmap
        size = getattr(analysis, 'temp_size_in_bytes', 0)
        self.large = jax.default_backend() == 'cpu' and size > LARGE
        self.most = 0 if self.large else MOST

    def settle(self) -> None:
        """For after the results of a step have come, before the next one is started."""
        if self.large:
            time.sleep(PAUSE)
