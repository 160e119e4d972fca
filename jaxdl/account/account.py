"""What a run costs: where its wall time went, the FLOP/s it reached, the energy it took.

The account covers the whole run: seconds and joules are saved in each checkpoint and restored with
it. The time of a killed session after its last checkpoint counts as lost.
"""

import dataclasses
import datetime
import time
from collections.abc import Iterable, Mapping
from typing import Any

from jaxdl.account import peak
from jaxdl.account.clock import Clock
from jaxdl.account.energy import Meter
from jaxdl.account.flops import Flops

# The parts of a step, as the host sees them.
LOOP = ('data_wait', 'transfer', 'dispatch', 'device', 'other')
# Buckets that count as lost after a roll-back. Start-up, compilation and saving are needed anyway.
WORK = (*LOOP, 'log', 'evaluation')


@dataclasses.dataclass
class Work:
    """The work of a step.

    Attributes:
        flops: FLOPs of its products on all devices together, without recomputed ones.
        peak: highest FLOP/s of all devices together, or None if unknown.
        measured: whether the peak was measured on this machine and not published.
    """

    flops: float
    peak: float | None
    measured: bool = False

    @classmethod
    def of(cls, count: Flops, devices: Iterable[Any], steps: int = 1) -> 'Work':
        """From the `count` of a program that runs `steps` on `devices`.

        Raises:
            UserError: JAXDL_PEAK_FLOPS is not a positive number.
        """
        devices = list(devices)
        found = peak.of(devices[0], count.by_dtype)
        if found is None:
            return cls(count.model / steps, None)
        flops = found.flops * (1 if found.shared else len(devices))
        return cls(count.model / steps, flops, found.measured)


class Account:
    """The seconds, FLOPs and joules of one run.

    Attributes:
        work: the work of a step, once it is known.
        lost: seconds of killed sessions after their last checkpoint.

    Args:
        clock: the clock of this process.
        meter: measures energy, or None.
        batch_size: examples of a step.
        run: run.json of the previous session, or {}.
        last_row: the newest row of the previous session, or {}.

    If several runs share the process, `set_share` gives this run's part of its seconds and joules.
    """

    def __init__(
        self,
        clock: Clock,
        meter: Meter | None,
        *,
        batch_size: int,
        run: Mapping[str, Any] | None = None,
        last_row: Mapping[str, Any] | None = None,
    ):
        self.clock, self.meter, self.batch_size = clock, meter, batch_size
        self.work: Work | None = None
        self.lost = 0.0
        self._run, self._last_row = run or {}, last_row or {}
        self._earlier: dict[str, float] = {}
        self._started: float | None = None
        self._step, self._waited = -1, 0.0
        self._share = 1.0
        self._moved: dict[str, float] = {}  # seconds that roll-backs moved to 'lost'
        self.keep()

    def set_share(self, share: float) -> None:
        self._share = share
        if self.meter is not None:
            self.meter.share = share

    def _own(self) -> dict[str, float]:
        """This run's share of the seconds of this process."""
        found = {name: self._share * value for name, value in self.clock.read().items()}
        for name, value in self._moved.items():
            found[name] = found.get(name, 0.0) + value
        return found

    # ---- across sessions ----

    def begin(self, extra: Mapping[str, Any] | None) -> None:
        """Continues the account `extra` of the restored checkpoint, or begins a new one.

        The time of the previous session between that checkpoint and its last line of metrics counts
        as lost; the time after that line is not known.
        """
        saved: Mapping[str, Any] = extra or {}
        self._earlier = dict(saved.get('seconds', {}))
        self.lost = _number(self._run.get('lost_seconds'))
        since = max(_number(saved.get('time')), _unix(self._run.get('started')))
        if self._run and since:
            self.lost += max(0.0, _number(self._last_row.get('time')) - since)
        if self.meter is not None:
            self.meter.go_on(self._joules_before(saved.get('joules', {})) if self._run else None)

    def _joules_before(self, saved: Mapping[str, Any]) -> dict[str, float]:
        """Joules of earlier sessions, including those used after the checkpoint."""
        found = {name: _number(value) for name, value in saved.items()}
        for name in ('gpu', 'cpu'):
            later = self._last_row.get(f'energy/{name}_joules')
            if isinstance(later, int | float):
                found[name] = max(found.get(name, 0.0), float(later))
        return found

    def extra(self) -> dict[str, Any]:
        """The account as JSON, for a checkpoint."""
        seconds = {k: v for k, v in self.seconds().items() if k != 'lost'}
        lost = self._own().get('lost', 0.0) + self._earlier.get('lost', 0.0)
        found: dict[str, Any] = {'seconds': {**seconds, 'lost': lost}, 'time': time.time()}
        if self.meter is not None:
            found['joules'] = self.meter.joules()
        return found

    def keep(self) -> None:
        """Called after a save: a later `undo` does not count the work so far as lost."""
        self._kept = self._own()

    def undo(self) -> None:
        """Called at a roll-back: counts the work since `keep` as lost."""
        now = self._own()
        for name in WORK:
            seconds = now.get(name, 0.0) - self._kept.get(name, 0.0)
            self._moved[name] = self._moved.get(name, 0.0) - seconds
            self._moved['lost'] = self._moved.get('lost', 0.0) + seconds
        self.keep()

    def seconds(self) -> dict[str, float]:
        """The wall time of the whole run per bucket; the sum is the whole wall time."""
        found = dict(self._earlier)
        for name, value in self._own().items():
            found[name] = found.get(name, 0.0) + value
        found['lost'] = found.get('lost', 0.0) + self.lost
        return {name: value for name, value in found.items() if value > 0}

    # ---- speed ----

    def first_step(self) -> None:
        """Called after each step; the first step of this process ends its start-up."""
        if self._started is None:
            self._started = self.clock.total()

    def speed(self, step: int, seconds: float) -> dict[str, float]:
        """The speed metrics of the interval that ends at `step`; its steps took `seconds` each."""
        row: dict[str, float] = {}
        waited = self.clock.read().get('data_wait', 0.0)
        if seconds > 0:
            row['perf/examples_per_s'] = self.batch_size / seconds
            row['perf/step_time_ms'] = 1000 * seconds
            steps = step - self._step
            if 0 <= self._step < step:
                row['perf/data_wait'] = (waited - self._waited) / (steps * seconds)
            if self.work is not None and self.work.flops:
                row['perf/flops_per_s'] = self.work.flops / seconds
                if self.work.peak:
                    row['perf/mfu'] = row['perf/flops_per_s'] / self.work.peak
                    if row['perf/mfu'] > 1 and self.work.measured:
                        peak.forget()
        self._step, self._waited = step, waited
        if self._started:
            row['perf/first_step_s'], self._started = self._started, 0.0
        if self.meter is not None:
            row |= self.meter.metrics()
        return row

    # ---- the end ----

    def metrics(self) -> dict[str, float]:
        """`perf/time_<bucket>_s` for every bucket, their sum `perf/wall_s`, and the energy."""
        seconds = self.seconds()
        row = {f'perf/time_{name}_s': value for name, value in sorted(seconds.items())}
        row['perf/wall_s'] = sum(seconds.values())
        if self.meter is not None:
            row |= self.meter.metrics()
        return row

    def facts(self) -> dict[str, Any]:
        """Entries of run.json: the time lost so far, and what measures the energy."""
        found: dict[str, Any] = {'lost_seconds': round(self.lost, 3)}
        if self.meter is not None:
            found['energy'] = self.meter.describe()
        return found

    def close(self) -> None:
        if self.meter is not None:
            self.meter.close()

    def sentence(self, *, placement: str) -> str:
        """One line: the largest shares of the wall time, what limited the run, what to try."""
        seconds = self.seconds()
        whole = max(sum(seconds.values()), 1e-9)
        largest = sorted(seconds.items(), key=lambda item: -item[1])
        shares = [
            f'{name.replace("_", " ")} {100 * value / whole:.0f} %' for name, value in largest
        ]
        shown = ', '.join(share for share in shares[:5] if not share.endswith(' 0 %'))
        verdict = advice(seconds, placement=placement)
        return f'{whole:.1f} s: {shown}; {verdict}'


def advice(seconds: Mapping[str, float], *, placement: str) -> str:
    """What limited a run with these seconds per bucket, and what to try.

    Shares are relative to the wall time if start-up, evaluation, saving or lost work dominate, and
    otherwise to the time of the training steps.
    """
    whole = max(sum(seconds.values()), 1e-9)
    loop = max(sum(seconds.get(name, 0.0) for name in LOOP), 1e-9)

    def share(name: str, of: float) -> float:
        return 100 * seconds.get(name, 0.0) / of

    waiting = share('data_wait', loop)
    if waiting >= 5:
        if placement == 'stream':
            fix = 'try a larger prefetch, more CPU cores, or keep the set decoded in memory'
        elif placement == 'host':
            fix = 'try placement=device'
        else:
            fix = 'the data order is made too slowly; try a larger prefetch'
        return f'input-bound: {waiting:.0f} % of the training time waiting for data; {fix}'
    if share('transfer', loop) >= 10:
        return (
            f'transfer-bound: {share("transfer", loop):.0f} % of the training time sending batches; '
            'try placement=device, or smaller types in the data set'
        )
    if share('lost', whole) >= 10:
        return f'{share("lost", whole):.0f} % was lost after interruptions; try a smaller checkpoint.every'
    if share('evaluation', whole) >= 30:
        return f'evaluation took {share("evaluation", whole):.0f} %; try a larger eval_every'
    if share('checkpoint', whole) >= 15:
        return f'saving took {share("checkpoint", whole):.0f} %; try a larger checkpoint.every'
    if share('log', whole) >= 10:
        return f'logging took {share("log", whole):.0f} %; try a larger log_every'
    if share('dispatch', loop) >= 30:
        return (
            f'dispatch-bound: {share("dispatch", loop):.0f} % of the training time starting steps; '
            'try a larger batch_size, or on a GPU steps_per_call=8'
        )
    started = sum(
        share(name, whole) for name in ('import', 'setup', 'data_setup', 'init', 'compile')
    )
    if started >= 50:
        return f'start-up took {started:.0f} %; a longer run is bound by the device'
    return 'bound by the device: the data was always there in time'


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _unix(text: Any) -> float:
    """Seconds since 1970 of a time in ISO format; 0 if it is not one."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return 0.0
