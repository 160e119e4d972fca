"""Sends what runs have written to a tracking service, from a process of its own.

A tracker reads metrics.jsonl, so it costs a run nothing, works for runs that are over, and goes on
where it was. A service is a class with four calls.
"""

import abc
import os
from typing import Any

from jaxdl.errors import UserError
from jaxdl.files import read_object, write_json
from jaxdl.record.gallery import newest
from jaxdl.report.data import Run, flatten

STATE = '.tracked.json'
"""The file in a run's folder that says up to which step each service has it."""


class Tracker(abc.ABC):
    """One run at one service."""

    @abc.abstractmethod
    def begin(self, name: str, key: str, config: dict[str, Any]) -> None:
        """Opens the run with this name; `key` is the same at every call for the same run."""

    @abc.abstractmethod
    def scalars(self, step: int, values: dict[str, float]) -> None:
        """The metrics of one step; the steps rise."""

    @abc.abstractmethod
    def picture(self, step: int, name: str, path: str) -> None:
        """A PNG file."""

    @abc.abstractmethod
    def end(self, status: str) -> None:
        """Closes the run; 'running' says that more may follow in another call."""


class Wandb(Tracker):
    """Weights & Biases; WANDB_PROJECT, WANDB_MODE=offline and its other variables are its own."""

    def __init__(self) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(
                f'--to=wandb needs wandb ({error}): python -m pip install -r requirements-track.txt'
            ) from None
        self._wandb: Any = wandb

    def begin(self, name: str, key: str, config: dict[str, Any]) -> None:
        settings = self._wandb.Settings(silent=True, x_disable_stats=True, console='off')
        project = os.environ.get('WANDB_PROJECT', 'jaxdl')
        try:
            self.run = self._wandb.init(
                project=project, id=key, name=name, config=config, resume='allow', settings=settings
            )
        except self._wandb.Error as error:
            raise UserError(f'--to=wandb: {error}; without a network: WANDB_MODE=offline') from None

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def picture(self, step: int, name: str, path: str) -> None:
        self.run.log({name: self._wandb.Image(path)}, step=step)

    def end(self, status: str) -> None:
        self.run.summary['status'] = status
        self.run.finish(exit_code=int(status == 'failed'))


TRACKERS = {'wandb': Wandb}


def send(run: Run, service: str) -> int:
    """Sends what is new of a run; returns how many steps that were.

    The newest line of a run that goes on may still grow, so it is sent with the next one.
    """
    path = run.folder / STATE
    try:
        state = read_object(path)
    except (OSError, ValueError):
        state = {}
    known = state.get(service)
    last, ended = known if isinstance(known, list) and len(known) == 2 else (-1, '')
    rows = run.rows[:-1] if run.status == 'running' else run.rows
    rows = [row for row in rows if row['step'] > last]
    if not rows and ended == run.status:
        return 0
    tracker = TRACKERS[service]()
    key = str(read_object(run.folder / 'run.json').get('id', run.name.replace('/', '-')))
    tracker.begin(run.name, key, {k: v for k, v in flatten(run.config).items()})
    pictures: dict[int, list[tuple[str, str]]] = {}
    for name, (step, place) in newest(run.folder / 'samples').items():
        if place.suffix == '.png':
            pictures.setdefault(step, []).append((name, str(place)))
    try:
        for row in rows:
            step = row['step']
            for name, place in pictures.get(step, ()):
                tracker.picture(step, name.removesuffix('.png'), place)
            tracker.scalars(step, {k: v for k, v in row.items() if k not in ('step', 'time')})
    finally:
        tracker.end(run.status)
    newest_step = rows[-1]['step'] if rows else last
    write_json(path, {**state, service: [newest_step, run.status]})
    return len(rows)
