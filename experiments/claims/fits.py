"""The arithmetic of the claims: Amdahl's law, the roofline, joules from sampled power, windows."""

import dataclasses
import math
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Amdahl:
    """A call takes `fixed` seconds whatever the batch, and `each` seconds more for each example.

    A batch of n then trains n·(fixed + each)/(fixed + each·n) times as many examples a second as a
    batch of 1, which is Amdahl's law (AFIPS 1967) with the shared part fixed/(fixed + each).
    """

    fixed: float
    each: float

    @property
    def shared(self) -> float:
        """The share of a single example's time that all examples of a batch have in common."""
        return self.fixed / (self.fixed + self.each)

    @property
    def limit(self) -> float:
        """The speed-up that no batch exceeds; infinite where nothing was seen to grow with it."""
        return (self.fixed + self.each) / self.each if self.each else math.inf

    @property
    def knee(self) -> float:
        """The batch that reaches half of `limit`; 0 where no time is shared."""
        return self.fixed / self.each if self.each else math.inf

    def speed_up(self, batch: float) -> float:
        return batch * (self.fixed + self.each) / (self.fixed + self.each * batch)


def fit_amdahl(batches: Sequence[float], seconds: Sequence[float]) -> Amdahl:
    """The line through the seconds of a call, by least squares of the relative errors; none below 0.

    Raises:
        ValueError: fewer than two different batches, or times that are not positive.
    """
    if len(set(batches)) < 2 or min(seconds) <= 0:
        raise ValueError('a fit needs two different batches and times above 0')
    # Weighted normal equations of seconds ≈ fixed + each·batch with the weights 1/seconds².
    weights = [1 / s**2 for s in seconds]
    s0 = sum(weights)
    s1 = sum(w * n for w, n in zip(weights, batches, strict=True))
    s2 = sum(w * n * n for w, n in zip(weights, batches, strict=True))
    t0 = sum(w * s for w, s in zip(weights, seconds, strict=True))
    t1 = sum(w * n * s for w, n, s in zip(weights, batches, seconds, strict=True))
    each = (s0 * t1 - s1 * t0) / (s0 * s2 - s1 * s1)
    fixed = (t0 - each * s1) / s0
    if fixed < 0:
        fixed, each = 0.0, t1 / s2
    elif each < 0:
        fixed, each = t0 / s0, 0.0
    return Amdahl(fixed, each)


def parallel_share(speed_up: float, workers: int) -> float:
    """Amdahl's share that `workers` divide among themselves, from their speed-up; within 0 … 1."""
    if workers < 2:
        raise ValueError(f'workers={workers}: must be at least 2')
    return min(1.0, max(0.0, (1 - 1 / speed_up) / (1 - 1 / workers)))


def roofline(intensity: float, peak: float, bandwidth: float) -> float:
    """The highest FLOP/s at `intensity` FLOPs a byte: Williams et al., CACM 52(4), 2009."""
    return min(peak, intensity * bandwidth)


def integrated(times: Sequence[float], watts: Sequence[float]) -> float:
    """Joules between the first and the last sample of the power, by trapezoids."""
    pairs = zip(times, times[1:], watts, watts[1:], strict=False)
    return sum((b - a) * (p + q) / 2 for a, b, p, q in pairs)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard deviation of one of them); the second is 0 for a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def window(
    joules: float, seconds: float, *, steps: int, batch: int, flops: float, idle_watts: float
) -> dict[str, float]:
    """What a window of `steps` steps of `batch` examples and `flops` each cost.

    `active` joules are those above what the idle device would have used in the same time.
    """
    active = max(0.0, joules - idle_watts * seconds)
    return {
        'joules': joules,
        'idle_joules': joules - active,
        'watts': joules / seconds,
        'joules_per_step': joules / steps,
        'joules_per_example': joules / (steps * batch),
        'examples_per_joule': steps * batch / joules,
        'flop_per_joule': steps * flops / joules,
    }


def grams_of_carbon(joules: float | None, grams_per_kwh: float | None) -> float | None:
    """Grams of CO₂ of measured joules by a stated factor; None where either is missing."""
    if joules is None or grams_per_kwh is None:
        return None
    return joules / 3.6e6 * grams_per_kwh


def at_peak(flops: float, peak: float, watts: float) -> tuple[float, float]:
    """(seconds, joules) of `flops` at the published peak and rated power: bounds of a card."""
    seconds = flops / peak
    return seconds, seconds * watts


def largest(at_few: int, few: float, at_more: int, more: float, room: float) -> int:
    """How many equal layers fit into `room` bytes, from the bytes with two numbers of layers."""
    layer = (more - few) / (at_more - at_few)
    return max(0, math.floor(at_few + (room - few) / layer))
