"""A sweep's folder: what is planned, what became of each trial, who owns it.

    sweep.json     what the sweep is and all its trials
    trials/ID/     an ordinary run each
    logs/ID.txt    what its processes printed, all attempts
    state/ID.json  what became of it
    optuna.journal the search and early stopping
    results.json, results.csv

Every file is replaced as a whole, so the sweep can be killed at any point. The run's own run.json
is the truth about whether it finished; a state only adds what a run cannot know.
"""

import dataclasses
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.record import metrics_file as logs
from jaxdl.sweeps.spec import Search, Sweep, Trial

# How a trial stands. Those in FINAL are over; the rest of the ended ones get new attempts when
# the sweep is called again.
PENDING, RUNNING, FINISHED = 'pending', 'running', 'finished'
PRUNED, DIVERGED, FAILED, MEMORY, MISTAKE = (
    'pruned',
    'diverged',
    'failed',
    'out_of_memory',
    'mistake',
)
FINAL = (FINISHED, PRUNED, DIVERGED)


class Store:
    """The files of one sweep.

    Args:
        path: its folder; it need not exist.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).absolute()
        self.plan_file = self.path / 'sweep.json'
        self.journal = self.path / 'optuna.journal'
        self._states: dict[str, dict[str, Any]] = {}
        self._lock: Any = None

    def open(self) -> None:
        """Makes the folder and takes its lock.

        Raises:
            UserError: another process runs this sweep, or the folder holds something else.
        """
        if self.path.exists() and not self.plan_file.exists():
            others = [
                p.name for p in self.path.iterdir() if p.name not in ('.lock', 'optuna.journal')
            ]
            if others:
                raise UserError(
                    f'--workdir={self.path} is not empty and holds no sweep (it has '
                    f'{", ".join(sorted(others)[:3])}); give a new or empty folder'
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / '.lock', 'a+')
        except OSError as error:
            raise UserError(
                f'--workdir={self.path}: {error.strerror or error}; give a folder that can be written'
            ) from None
        if not _try_lock(lock):
            lock.seek(0)
            owner = lock.read().strip() or 'unknown'
            lock.close()
            raise UserError(
                f'--workdir={self.path}: process {owner} is running this sweep; '
                'wait for it, stop it, or give another --workdir'
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # ---- the plan ----

    def plan(self) -> dict[str, Any] | None:
        """What sweep.json holds, or None.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return json.loads(self.plan_file.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f'{self.plan_file} cannot be read: {error}') from None

    def trials(self) -> list[Trial]:
        """The trials of sweep.json."""
        plan = self.plan() or {'trials': []}
        return [_trial(entry) for entry in plan['trials']]

    def save_plan(
        self, file: str, sweep: Sweep, trials: Iterable[Trial], identities: dict[str, str]
    ) -> None:
        """Writes sweep.json."""
        logs.write_json_atomic(
            self.plan_file,
            {
                'file': file,
                **describe(sweep),
                'trials': [
                    {**dataclasses.asdict(t), 'identity': identities.get(t.id, '')} for t in trials
                ],
            },
        )
        # After the plan, so that a folder with anything in it always holds one.
        for name in ('trials', 'logs', 'state'):
            (self.path / name).mkdir(exist_ok=True)

    def adopt(self, sweep: Sweep, trials: list[Trial], checked: dict[tuple, dict]) -> list[Trial]:
        """Gives `trials` the ids they have in this folder; new ones get the next numbers.

        Raises:
            UserError: the folder holds another sweep.
        """
        plan = self.plan()
        if plan is None:
            return trials
        where = f'--workdir={self.path} holds another sweep ({plan["file"]})'
        advice = 'Give another --workdir, or the same sweep to resume'
        ours = describe(sweep)
        for name in (
            ('search',) if ours['search'] is None else ('search', 'metric', 'mode', 'seeds')
        ):
            if plan[name] != ours[name]:
                raise UserError(
                    f'{where}: {name} is {_short(plan[name])} there, {_short(ours[name])} now.\n{advice}'
                )
        there = {_trial(entry).key(): entry for entry in plan['trials']}
        if ours['search'] is None:
            here = {trial.key() for trial in trials}
            gone = [entry for key, entry in there.items() if key not in here]
            if gone:
                raise UserError(
                    f'{where}: {len(gone)} of its {len(there)} trials are not in this one, for '
                    f'example {gone[0]["id"]} ({_trial(gone[0]).label()}).\n{advice}'
                )
        following = 1 + max((int(entry['id']) for entry in plan['trials']), default=-1)
        for trial in trials:
            entry = there.get(trial.key())
            if entry is None:
                trial.id, following = f'{following:04d}', following + 1
            else:
                trial.id = entry['id']
                now = checked[trial.key()].get('identity')
                if entry['identity'] and now and entry['identity'] != now:
                    raise UserError(
                        f'{where}: the config of trial {trial.id} ({trial.label()}) has changed since; '
                        f'compare with {self.path / "trials" / trial.id / "config.json"}.\n{advice}'
                    )
        return trials

    # ---- states ----

    def state(self, name: str) -> dict[str, Any]:
        """What became of a trial: status, reason, attempts, broken, seconds …"""
        if name not in self._states:
            try:
                self._states[name] = json.loads((self.path / 'state' / f'{name}.json').read_text())
            except (OSError, ValueError):
                self._states[name] = {'status': PENDING, 'reason': '', 'attempts': 0, 'broken': 0}
        return self._states[name]

    def note(self, name: str, **fields: Any) -> None:
        """Sets fields of a trial's state and saves them."""
        state = self.state(name)
        state.update(fields)
        logs.write_json_atomic(self.path / 'state' / f'{name}.json', state)

    def run_info(self, name: str) -> dict[str, Any]:
        """The trial's run.json, or {}."""
        try:
            found = json.loads((self.path / 'trials' / name / 'run.json').read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def has_finished(self, trial: Trial) -> bool:
        """Whether the trial's own run says that it reached its last step."""
        info = self.run_info(trial.id)
        return info.get('status') == 'finished' and int(info.get('step') or 0) >= trial.steps

    def saved(self, name: str) -> int:
        """The step of a trial's newest checkpoint, -1 without one."""
        folder = self.path / 'trials' / name / 'checkpoints'
        try:
            return max((int(p) for p in os.listdir(folder) if p.isdigit()), default=-1)
        except OSError:
            return -1

    # ---- processes of a sweep that was killed ----

    def is_running(self, name: str) -> bool:
        """Whether some process trains in the trial's folder."""
        try:
            with open(self.path / 'trials' / name / '.lock') as lock:
                return not _try_lock(lock)
        except OSError:
            return False

    def owner(self, name: str) -> int:
        """The process of this machine that last took the lock of a trial's folder; 0: none."""
        try:
            words = (self.path / 'trials' / name / '.lock').read_text().split()
            return int(words[0]) if words[1:] == ['on', os.uname().nodename] else 0
        except (OSError, ValueError, IndexError):
            return 0

    def wait_for(self, names: list[str], grace: float, say: Callable[[str], None]) -> None:
        """Waits for processes that a killed sweep left behind; those that take too long are killed.

        They were told to save and stop when the sweep died.
        """
        left = [name for name in names if self.is_running(name)]
        if left:
            say(f'waiting for {len(left)} trials of the sweep that was killed to save and stop')
        end = time.monotonic() + grace
        while left and time.monotonic() < end:
            time.sleep(0.1)
            left = [name for name in left if self.is_running(name)]
        for name in left:
            owner = self.owner(name)
            if owner:
                try:
                    os.killpg(owner, signal.SIGKILL)
                except OSError:
                    pass
        end = time.monotonic() + 30
        while left and time.monotonic() < end:
            time.sleep(0.1)
            left = [name for name in left if self.is_running(name)]
        if left:
            raise UserError(
                f'{self.path / "trials" / left[0]} is in use by another process, which is no part of '
                'this sweep; end it, then call the sweep again'
            )


def describe(sweep: Sweep) -> dict[str, Any]:
    """The sweep's own fields as JSON."""
    search = sweep.points if isinstance(sweep.points, Search) else None
    return {
        'config': sweep.config,
        'metric': sweep.metric,
        'mode': sweep.mode,
        'value': sweep.value,
        'seeds': [seed for seed in sweep.seed_list() if seed is not None],
        'overrides': _plain(dict(sweep.overrides)),
        'search': None
        if search is None
        else {
            'sampler': search.sampler,
            'seed': search.seed,
            'space': {field: repr(kind) for field, kind in search.space.items()},
        },
        'stopping': None if sweep.stopping is None else repr(sweep.stopping),
    }


def _plain(tree: Any) -> Any:
    return json.loads(json.dumps(tree))


def _trial(entry: dict[str, Any]) -> Trial:
    names = [field.name for field in dataclasses.fields(Trial)]
    return Trial(**{name: _tuples(entry[name]) for name in names})


def _tuples(value: Any) -> Any:
    # JSON has no tuples; in an override a list is always one.
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _try_lock(file: Any) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + '…'
