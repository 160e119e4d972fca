"""A run's folder: who owns it, which config it belongs to, where everything is."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from jaxdl.core import config as config_lib
from jaxdl.core.config import Config
from jaxdl.errors import UserError


class Workdir:
    """The paths of one run's folder.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).absolute()
        self.config = self.path / 'config.json'
        self.run = self.path / 'run.json'
        self.metrics = self.path / 'metrics.jsonl'
        self.samples = self.path / 'samples.jsonl'
        self.checkpoints = self.path / 'checkpoints'
        self.tensorboard = self.path / 'tensorboard'
        self.gallery = self.path / 'samples'
        self._lock: Any = None

    def create(self) -> None:
        """Makes the folder and takes its lock, which a dead owner does not hold.

        Raises:
            UserError: it cannot be made, or another process trains in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / '.lock', 'a+')
        except OSError as error:
            raise UserError(
                f'--workdir={self.path}: {error.strerror or error}; give a folder that can be written'
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or 'unknown'
            lock.close()
            raise UserError(
                f'--workdir={self.path} is in use by process {owner}; wait for it, stop it, '
                'or give another --workdir'
            ) from None
        try:
            lock.seek(0)
            lock.truncate()
            lock.write(f'{os.getpid()} on {os.uname().nodename}')
            lock.flush()
        except OSError:
            pass  # a full disk: the lock itself holds all the same
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def holds_run(self) -> bool:
        """Whether a run has begun here."""
        return self.config.exists() or self.checkpoints.exists() or self.metrics.exists()

    def check_config(self, config: Config) -> None:
        """Raises UserError where the folder holds a run of another config."""
        new = json.loads(json.dumps(config_lib.to_json(config)))
        if not self.config.exists():
            if self.holds_run():
                raise UserError(
                    f'--workdir={self.path} holds a run but its config.json is missing; '
                    'put it back, or give another --workdir'
                )
            others = (
                [p.name for p in self.path.iterdir() if not p.name.startswith('.')]
                if self.path.is_dir()
                else []
            )
            if others and not self.run.exists():
                raise UserError(
                    f'--workdir={self.path} is not empty and holds no run (it has {", ".join(sorted(others)[:3])}); '
                    'give a new or empty folder'
                )
            return
        old = self._with_new_fields(self.read_config())
        changed = [
            path
            for path in config_lib.differences(old, new)
            if not any(
                path == free or path.startswith(free + '.')
                for free in (*config_lib.FREE, *config_lib.MOVABLE)
            )
        ]
        if changed:
            shown = '; '.join(
                f'{path}: {_short(config_lib.at(old, path))} there, {_short(config_lib.at(new, path))} now'
                for path in changed[:4]
            )
            more = f' and {len(changed) - 4} more' if len(changed) > 4 else ''
            raise UserError(
                f'--workdir={self.path} holds a run of another config ({shown}{more}).\n'
                'Give another --workdir, or the same values to resume'
            )

    def _with_new_fields(self, tree: dict) -> dict:
        """A config.json of an older version, with the defaults of the fields that came since."""
        try:
            return json.loads(json.dumps(config_lib.to_json(config_lib.from_json(tree))))
        except Exception:
            return tree  # its classes changed more than that: compare what is there

    def saved_step(self) -> int | None:
        """The newest step that run.json knows a complete checkpoint of."""
        saved = self.read_run().get('saved')
        return saved if isinstance(saved, int) else None

    def status(self) -> str:
        """How run.json says the run stands; '' where there is none."""
        return str(self.read_run().get('status', ''))

    def read_run(self) -> dict:
        """What run.json holds; {} where there is none."""
        try:
            found = json.loads(self.run.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def read_config(self) -> dict:
        """The JSON tree of config.json.

        Raises:
            UserError: it is missing or no JSON.
        """
        try:
            return json.loads(self.config.read_text())
        except FileNotFoundError:
            raise UserError(f'--workdir={self.path} holds no run: config.json is missing') from None
        except (OSError, ValueError) as error:
            raise UserError(f'{self.config} cannot be read: {error}') from None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + '…'
