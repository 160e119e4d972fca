"""A sweep's folder: the plan, the state of each trial, and the lock.

    sweep.json     the sweep and all its trials
    trials/ID/     the run of a trial, an ordinary run
    logs/ID.txt    the output of its processes, all attempts
    state/ID.json  the trial's state
    optuna.journal the search and early stopping
    results.json, results.csv

Every file is replaced as a whole, so the sweep can be killed at any point. Whether a trial finished
is decided by its own run.json; its state only adds what a run cannot know.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from jaxdl.errors import UserError
from jaxdl.files import Lock, read_object, write_json
from jaxdl.sweeps.algebra import plain
from jaxdl.sweeps.local import MARK
from jaxdl.sweeps.spec import Search, Sweep, Trial

# The status of a trial. A trial whose status is in FINAL is over; a trial that ended with another
# one is tried again when the sweep is called again.
PENDING, RUNNING, FINISHED = 'pending', 'running', 'finished'
PRUNED, DIVERGED, FAILED, MEMORY, MISTAKE = (
    'pruned',
    'diverged',
    'failed',
    'out_of_memory',
    'mistake',
)
FINAL = (FINISHED, PRUNED, DIVERGED)
STATUSES = (PENDING, RUNNING, *FINAL, FAILED, MEMORY, MISTAKE)

# The fields of the files, and the types that they may have.
Kinds = Mapping[str, tuple[type, ...]]
_PLAN: Kinds = {
    **dict.fromkeys(('file', 'config', 'metric', 'mode', 'value'), (str,)),
    **{'seeds': (list,), 'overrides': (dict,), 'trials': (list,)},
    **{'search': (dict, NoneType), 'stopping': (str, NoneType)},
}
_TRIAL: Kinds = {
    **dict.fromkeys(('id', 'config', 'group', 'identity', 'alone'), (str,)),
    **{'point': (int,), 'steps': (int,), 'seed': (int, NoneType), 'deterministic': (bool,)},
    **{'varied': (dict,), 'overrides': (dict,)},
}
_STATE: Kinds = {
    **dict.fromkeys(('status', 'reason', 'stopping', 'place', 'log'), (str,)),
    **dict.fromkeys(('attempts', 'broken', 'saved', 'log_from'), (int,)),
    'wall': (int, float),
}
_RUN: Kinds = {
    **{'status': (str,), 'reason': (str,), 'step': (int,), 'exit': (int,)},
    'seconds': (int, float),
}


def _check(found: Any, kinds: Kinds, needed: Iterable[str]) -> None:
    """Raises ValueError where fields are missing or of another type than JSON gives them here."""
    if not isinstance(found, dict):
        raise ValueError(f'{_short(found)} stands where an object should')
    for name in needed:
        if name not in found:
            raise ValueError(f'{name!r} is missing')
    for name, value in found.items():
        if name in kinds and type(value) not in kinds[name]:
            allowed = ' or '.join(kind.__name__ for kind in kinds[name])
            raise ValueError(f'{name!r} is {_short(value)} instead of {allowed}')
        if isinstance(value, int | float) and not abs(value) < 2**53:
            raise ValueError(f'{name!r} is {_short(value)}')


class Store:
    """The files of one sweep.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).absolute()
        self.plan_file = self.path / 'sweep.json'
        self.journal = self.path / 'optuna.journal'
        self._states: dict[str, dict[str, Any]] = {}
        self._lock = Lock(self.path / '.lock')

    def open(self) -> None:
        """Creates the folder and takes its lock.

        Raises:
            UserError: another process runs this sweep, or the folder holds something else.
        """
        where = f'--workdir={self.path}'
        try:
            if self.path.exists() and not self.plan_file.exists():
                others = sorted({p.name for p in self.path.iterdir()} - {'.lock', 'optuna.journal'})
                if others:
                    raise UserError(
                        f'{where} is not empty and holds no sweep (it has '
                        f'{", ".join(others[:3])}); give a new or empty folder'
                    )
            self.path.mkdir(parents=True, exist_ok=True)
            taken = self._lock.take()
        except OSError as error:
            raise UserError(
                f'{where}: {error.strerror or error}; give a folder that can be written'
            ) from None
        if not taken:
            raise UserError(
                f'{where}: process {self._lock.owner()} is running this sweep; '
                'wait for it, stop it, or give another --workdir'
            )

    def close(self) -> None:
        self._lock.release()

    def _read(self, path: Path, advice: str, kinds: Kinds, needed: Iterable[str] = ()) -> dict:
        """The object of a JSON file; {} if there is no such file.

        Raises:
            UserError: the file is damaged.
        """
        try:
            found = read_object(path)
            _check(found, kinds, needed)
            return found
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f'{path} is damaged: {error}; {advice}') from None

    # ---- the plan ----

    def plan(self) -> dict[str, Any] | None:
        """The content of sweep.json, or None.

        Raises:
            UserError: the file is damaged.
        """
        advice = 'put it back from a copy, or give another --workdir'
        plan = self._read(self.plan_file, advice, _PLAN, _PLAN)
        ids = set()
        for index, entry in enumerate(plan.get('trials', [])):
            try:
                _check(entry, _TRIAL, _TRIAL)
                if not re.fullmatch(r'\d{4,9}', entry['id'], re.A) or entry['id'] in ids:
                    raise ValueError(
                        f"'id' is {_short(entry['id'])}, no number or not the only one"
                    )
                for name in ('varied', 'overrides'):
                    entry[name] = {field: plain(value) for field, value in entry[name].items()}
            except ValueError as error:
                raise UserError(
                    f'{self.plan_file} is damaged: trials[{index}]: {error}; {advice}'
                ) from None
            ids.add(entry['id'])
        return plan or None

    def trials(self) -> list[Trial]:
        """The trials of sweep.json."""
        plan = self.plan() or {'trials': []}
        return [_trial(entry) for entry in plan['trials']]

    def save_plan(self, file: str, sweep: Sweep, trials: Iterable[Trial]) -> None:
        """Writes sweep.json."""
        entries = [dataclasses.asdict(trial) for trial in trials]
        write_json(self.plan_file, {'file': file, **describe(sweep), 'trials': entries})
        # Created after sweep.json, so that a folder with these folders always holds a plan.
        for name in ('trials', 'logs', 'state'):
            (self.path / name).mkdir(exist_ok=True)

    def adopt(self, sweep: Sweep, trials: list[Trial]) -> list[Trial]:
        """Gives `trials` the ids that they have in this folder, and new trials the next numbers.

        Raises:
            UserError: the folder holds another sweep.
        """
        plan = self.plan()
        if plan is None:
            return trials
        where = f'--workdir={self.path} holds another sweep ({plan["file"]})'
        advice = 'Give another --workdir, or the same sweep to resume'
        ours = describe(sweep)
        searches = ours['search'] is not None
        for name in ('search', 'metric', 'mode', 'seeds') if searches else ('search',):
            if plan[name] != ours[name]:
                raise UserError(
                    f'{where}: {name} is {_short(plan[name])} there, {_short(ours[name])} now.\n{advice}'
                )
        there = {_trial(entry).key(): entry for entry in plan['trials']}
        gone = [there[key]['id'] for key in there.keys() - {trial.key() for trial in trials}]
        if gone and not searches:
            first = next(t for t in map(_trial, plan['trials']) if t.id == min(gone))
            raise UserError(
                f'{where}: {len(gone)} of its {len(there)} trials are not in this one, for '
                f'example {first.id} ({first.label()}).\n{advice}'
            )
        following = 1 + max((int(entry['id']) for entry in plan['trials']), default=-1)
        for trial in trials:
            entry = there.get(trial.key())
            if entry is None:
                trial.id, following = f'{following:04d}', following + 1
                continue
            trial.id = entry['id']
            if entry['identity'] != trial.identity:
                raise UserError(
                    f'{where}: the config or the data of trial {trial.id} ({trial.label()}) has changed; '
                    f'compare with {self.path / "trials" / trial.id / "config.json"}.\n{advice}'
                )
        return trials

    # ---- states ----

    def state(self, name: str) -> dict[str, Any]:
        """The state of a trial: status, reason, attempts, broken, wall …

        Raises:
            UserError: the file is damaged.
        """
        if name not in self._states:
            path = self.path / 'state' / f'{name}.json'
            advice = "delete it: then only the trial's own run says how it stands"
            found = self._read(path, advice, _STATE)
            state = {'status': PENDING, 'reason': '', 'attempts': 0, 'broken': 0, **found}
            if state['status'] not in STATUSES:
                raise UserError(
                    f'{path} is damaged: status is {_short(state["status"])}, '
                    f'none of {", ".join(STATUSES)}; {advice}'
                )
            self._states[name] = state
        return self._states[name]

    def note(self, name: str, **fields: Any) -> None:
        """Sets fields of a trial's state and saves them."""
        state = self.state(name)
        state.update(fields)
        write_json(self.path / 'state' / f'{name}.json', state)

    def run_info(self, name: str) -> dict[str, Any]:
        """The trial's run.json, or {}.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / 'trials' / name / 'run.json'
        return self._read(path, 'delete it: the trial then goes on from its checkpoint', _RUN)

    def has_finished(self, trial: Trial) -> bool:
        """Whether run.json of the trial says that it reached its last step."""
        info = self.run_info(trial.id)
        return info.get('status') == 'finished' and info.get('step', 0) >= trial.steps

    def saved(self, name: str) -> int:
        """The step of a trial's newest checkpoint; -1 without one."""
        return newest_checkpoint(self.path, name)

    # ---- processes of a sweep that was killed ----

    def is_running(self, name: str) -> bool:
        """Whether a process trains in the trial's folder."""
        return self._lock_of(name).is_taken()

    def owner(self, name: str) -> int:
        """The process on this machine that last took the lock of a trial's folder; 0: none."""
        found = re.fullmatch(r'(\d+) on (.*)', self._lock_of(name).owner())
        return int(found[1]) if found and found[2] == os.uname().nodename else 0

    def _lock_of(self, name: str) -> Lock:
        return Lock(self.path / 'trials' / name / '.lock')

    def wait_for(self, names: list[str], grace: float, say: Callable[[str], None]) -> None:
        """Waits for processes that a killed sweep left behind; kills them after `grace` seconds.

        The kernel has told them to save and stop when the sweep died.

        Raises:
            UserError: a process that this sweep did not start trains in a trial's folder.
        """
        left = [name for name in names if self.is_running(name)]
        if left:
            say(f'waiting for {len(left)} trials of the sweep that was killed to save and stop')
        left = self._left_after(grace, left)
        ours = [owner for owner in map(self.owner, left) if self._is_ours(owner)]
        for owner in ours:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(owner, signal.SIGKILL)  # kills its data workers too
        left = self._left_after(30 if ours else 0, left)
        if left:
            raise UserError(
                f'{self.path / "trials" / left[0]} is in use by another process, which is no part of '
                'this sweep; end it, then call the sweep again'
            )

    def _left_after(self, seconds: float, names: list[str]) -> list[str]:
        """The trials of `names` in whose folders a process still trains after `seconds`."""
        end = time.monotonic() + seconds
        while names and time.monotonic() < end:
            time.sleep(0.1)
            names = [name for name in names if self.is_running(name)]
        return names

    def _is_ours(self, process: int) -> bool:
        """Whether this sweep started a process; its number may have been reused by another."""
        try:
            variables = Path(f'/proc/{process}/environ').read_bytes().split(b'\0')
        except OSError:
            return False
        return f'{MARK}={self.path}'.encode() in variables


def newest_checkpoint(folder: Path, name: str) -> int:
    """The step of the newest checkpoint of a trial of the sweep in `folder`; -1 without one."""
    try:
        entries = os.listdir(folder / 'trials' / name / 'checkpoints')
    except OSError:
        return -1
    return max((int(entry) for entry in entries if entry.isdecimal()), default=-1)


def describe(sweep: Sweep) -> dict[str, Any]:
    """The sweep's own fields as JSON."""
    search = sweep.points if isinstance(sweep.points, Search) else None
    return {
        'config': sweep.config,
        'metric': sweep.metric,
        'mode': sweep.mode,
        'value': sweep.value,
        'seeds': [seed for seed in sweep.seed_list() if seed is not None],
        'overrides': dict(sweep.overrides),
        'search': None
        if search is None
        else {
            'sampler': search.sampler,
            'seed': search.seed,
            'space': {field: repr(kind) for field, kind in search.space.items()},
        },
        'stopping': None if sweep.stopping is None else repr(sweep.stopping),
    }


def _trial(entry: dict[str, Any]) -> Trial:
    return Trial(**{field.name: entry[field.name] for field in dataclasses.fields(Trial)})


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + '…'
