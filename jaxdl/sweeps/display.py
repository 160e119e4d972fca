"""Shows the state of a sweep: a live table on a terminal, a line for every event elsewhere."""

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from jaxdl.record.terminal import Output, columns, duration, live
from jaxdl.sweeps import store as stores
from jaxdl.sweeps.spec import Trial, short, shown

if TYPE_CHECKING:
    from jaxdl.sweeps.pool import Pool

REDRAW = 0.5  # seconds
LINE_EVERY = 60.0  # seconds between two lines of progress where there is no terminal


class Display:
    """Writes to `out`, and redraws in place if that is a terminal; errors do not end the sweep."""

    def __init__(self, out: TextIO | None = None):
        self.out = Output(out or sys.stdout)
        self.started = time.monotonic()
        self._live = live(self.out, keep=False) if self.out.isatty() else None
        self._last = self.started if self._live is None else 0.0

    def event(self, text: str) -> None:
        """Prints one line that stays."""
        if self._live is None:
            self.out.write(f'{text}\n')
        else:
            self._live.console.print(text)

    def show(self, pool: 'Pool') -> None:
        """Draws the state of the sweep, at most every REDRAW or LINE_EVERY seconds."""
        now = time.monotonic()
        if now - self._last < (LINE_EVERY if self._live is None else REDRAW):
            return
        self._last = now
        lines = table(pool, now - self.started)
        if self._live is None:
            self.out.write(f'{lines[0]}\n')
        else:
            from rich.text import Text

            text = Text('\n'.join(lines), no_wrap=True, overflow='ellipsis')
            self._live.update(text, refresh=True)

    def close(self) -> None:
        """Removes the table from the screen."""
        if self._live is not None:
            self._live.stop()


def table(pool: 'Pool', elapsed: float) -> list[str]:
    """The lines of the table: first a summary, then one for each running trial."""
    states = [pool.store.state(trial.id) for trial in pool.trials]
    counts: dict[str, int] = {}
    for state in states:
        counts[state['status']] = counts.get(state['status'], 0) + 1
    over = sum(n for name, n in counts.items() if name not in (stores.PENDING, stores.RUNNING))
    parts = [f'{over}/{expected(pool)} trials over']
    parts += [f'{n} {name}' for name, n in sorted(counts.items()) if name != stores.FINISHED]
    best = pool.summary.get('best')
    if best:
        parts.append(
            f'best {pool.sweep.metric} {best["mean"]:.4g} ({points_label(best["varied"])})'
        )
    parts.append(f'{duration(elapsed)} elapsed')
    left = time_left(pool)
    if left is not None:
        parts.append(f'about {duration(left)} left')
    lines = [' · '.join(parts)]
    running = [(job, trial) for job in pool.launcher.jobs.values() for trial in job.trials]
    rows = [['where', 'trial', 'state', 'step', 'now', 'best', 'left', '']]
    rows += [_row(pool, job, trial) for job, trial in running]
    if running:
        lines += [f'  {line}' for line in columns(rows, right=(3, 4, 5, 6))]
    return lines


def _row(pool: 'Pool', job: Any, trial: Trial) -> list[str]:
    """A running trial: place, id, state, step, newest and best metric, time left, overrides."""
    rows = pool.rows.get(trial.id, [])
    step = rows[-1]['step'] if rows else 0
    values = [
        row[pool.sweep.metric]
        for row in rows
        if isinstance(row.get(pool.sweep.metric), int | float)
    ]
    best = (max if pool.sweep.mode == 'max' else min)(values, default=None)
    state = 'stopping' if job.stopping else 'running' if rows else 'starting'
    left = seconds_left(rows, trial.steps)
    return [
        job.place,
        trial.id,
        state if job.started else 'waiting',
        f'{step}/{trial.steps}',
        '' if not values else f'{values[-1]:.4g}',
        '' if best is None else f'{best:.4g}',
        '' if left is None else duration(left),
        trial.label() + (f' ({job.stopping})' if job.stopping else ''),
    ]


def seconds_left(rows: list[dict[str, Any]], steps: int) -> float | None:
    """Seconds until a run's last step at the speed of its last rows; None if not yet known."""
    timed = [row for row in rows if isinstance(row.get('time'), int | float)][-20:]
    if len(timed) < 2 or timed[-1]['step'] <= timed[0]['step']:
        return None
    pace = (timed[-1]['time'] - timed[0]['time']) / (timed[-1]['step'] - timed[0]['step'])
    return max(0.0, pace * (steps - timed[-1]['step']))


def expected(pool: 'Pool') -> int:
    """The number of trials that the sweep will have."""
    search = pool.study.search if pool.study is not None else None
    return max(len(pool.trials), search.points * len(pool.sweep.seed_list()) if search else 0)


def time_left(pool: 'Pool') -> float | None:
    """Seconds until the sweep ends, from its finished trials; None before the first."""
    seconds = [
        entry['wall'] or entry['seconds']
        for entry in pool.summary.get('trials', [])
        if entry['status'] == stores.FINISHED and (entry['wall'] or entry['seconds'])
    ]
    if not seconds:
        return None
    each = sum(seconds) / len(seconds)
    over = sum(
        pool.store.state(t.id)['status'] not in (stores.PENDING, stores.RUNNING)
        for t in pool.trials
    )
    left = (expected(pool) - over) * each
    for job in pool.launcher.jobs.values():
        if job.started:
            left -= min(each * len(job.trials), time.monotonic() - job.started)
    at_once = len(pool.launcher.jobs) + max(0, pool.launcher.free())
    return max(0.0, left) / max(1, min(at_once, expected(pool) - over))


def points_label(varied: dict[str, Any]) -> str:
    return (
        ', '.join(f'{short(field)}={shown(field, value)}' for field, value in varied.items())
        or 'base'
    )


def listing(trials: list[Trial]) -> list[str]:
    """A table of the trials with their overrides."""
    fields = list(dict.fromkeys(field for trial in trials for field in trial.varied))
    seeds = any(trial.seed is not None for trial in trials)
    names = [short(f) if [short(g) for g in fields].count(short(f)) == 1 else f for f in fields]
    rows = [['trial', *names, *(['seed'] if seeds else []), 'program']]
    groups = list(dict.fromkeys(trial.group for trial in trials))
    for trial in trials:
        values = [shown(f, trial.varied[f]) if f in trial.varied else '·' for f in fields]
        seed = [str(trial.seed)] if seeds else []
        rows.append([trial.id, *values, *seed, str(groups.index(trial.group) + 1)])
    head, *lines = columns(rows, right=range(len(rows[0])))
    return [head, '-' * len(head), *lines]
