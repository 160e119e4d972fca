"""A run's folder: its lock, the config and data that it belongs to, and the paths in it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from jaxdl.api import DataSet
from jaxdl.core import config as config_lib
from jaxdl.core.config import Config
from jaxdl.errors import UserError
from jaxdl.files import Lock, read_object, write_bytes, write_json
from jaxdl.record.identity import identity
from jaxdl.record.run_info import RunInfo


class Workdir:
    """The paths of one run's folder.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).absolute()
        self.config = self.path / 'config.json'
        self.source = self.path / 'config.py'
        self.run = self.path / 'run.json'
        self.metrics = self.path / 'metrics.jsonl'
        self.samples = self.path / 'samples.jsonl'
        self.checkpoints = self.path / 'checkpoints'
        self.tensorboard = self.path / 'tensorboard'
        self.gallery = self.path / 'samples'
        self._lock = Lock(self.path / '.lock')
        self._prints: dict[str, str] | None = None

    def create(self) -> None:
        """Creates the folder and takes its lock; the lock of a dead process does not count.

        Raises:
            UserError: the folder cannot be created, or another process trains in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            taken = self._lock.take()
        except OSError as error:
            raise UserError(
                f'--workdir={self.path}: {error.strerror or error}; give a folder that can be written'
            ) from None
        if not taken:
            raise UserError(
                f'--workdir={self.path} is in use by process {self._lock.owner()}; wait for it, '
                'stop it, or give another --workdir'
            )

    def release(self) -> None:
        self._lock.release()

    def holds_run(self) -> bool:
        """Whether a run has begun here."""
        return self.config.exists() or self.checkpoints.exists() or self.metrics.exists()

    def begin(self, config: Config, **facts: Any) -> RunInfo:
        """Writes config.json and run.json: from here on the folder holds this run.

        It also writes the files that the data set keeps, such as a tokenizer, and config.py, a copy
        of the config file if that defines classes of the config.

        Raises:
            UserError: such classes come from more than one config file.
            OSError: the folder cannot be written.
        """
        source = _source(config)
        write_json(self.config, config_lib.to_json(config))
        config.data.keep(self.path)
        if source is not None:
            write_bytes(self.source, source)
        return RunInfo(
            self.run,
            data=self._fingerprint(config.data),
            places=_places(config),
            kept=list(config.data.kept),
            **facts,
        )

    def check_config(self, config: Config) -> None:
        """Raises UserError where the folder holds a run of another config or on other data.

        Only JSON is compared, so no code that the folder names is imported.
        """
        if not self.config.exists():
            self._check_empty()
            return
        new = config_lib.to_json(config)
        old = config_lib.with_defaults(self.read_config(), config)
        changed = [p for p in config_lib.differences(old, new) if not config_lib.may_change(p)]
        known, places = identity(self.path)['data'], _places(config)
        if known:
            changed = [p for p in changed if not config_lib.may_change(p, places)]
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
        self.check_data(known, self._fingerprint(config.data))

    def check_data(self, known: dict[str, str], found: dict[str, str]) -> None:
        """Raises UserError where fingerprints of data differ; '' stands for an unknown one."""
        names = known.keys() | found.keys() if known else set()
        changed = []
        for name in sorted(names):
            old, now = known.get(name), found.get(name)
            if old != now and '' not in (old, now):
                changed.append(name)
        if changed:
            raise UserError(
                f'--workdir={self.path} holds a run on other data: {", ".join(changed)} had other '
                'bytes when it began.\nPut the old files back (their place may change), or give '
                'another --workdir'
            )

    def _fingerprint(self, data: DataSet) -> dict[str, str]:
        """The data's fingerprints; read once, as files may be large, unless one is unknown yet."""
        if self._prints is None or '' in self._prints.values():
            self._prints = data.fingerprint()
        return self._prints

    def _check_empty(self) -> None:
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

    def saved_step(self) -> int | None:
        """The newest step of which run.json names a complete checkpoint.

        Raises:
            UserError: the run has written metrics, but nothing says whether it was saved.
        """
        run = self.read_run()
        saved = run.get('saved')
        if not run and not self.checkpoints.exists() and self.metrics.exists():
            raise UserError(
                f'--workdir={self.path} holds metrics, but neither a readable run.json nor '
                'checkpoints.\nPut them back, or give another --workdir to start anew'
            )
        return saved if type(saved) is int else None

    def status(self) -> str:
        """The status in run.json; '' without one."""
        return str(self.read_run().get('status', ''))

    def read_run(self) -> dict:
        """The content of run.json; {} without one."""
        try:
            return read_object(self.run)
        except (OSError, ValueError):
            return {}

    def read_config(self) -> dict:
        """The JSON tree of config.json.

        Raises:
            UserError: the file is missing or is not a JSON object.
        """
        try:
            return read_object(self.config)
        except FileNotFoundError:
            raise UserError(f'--workdir={self.path} holds no run: config.json is missing') from None
        except (OSError, ValueError) as error:
            raise UserError(
                f'{self.config} cannot be read ({error}); put it back as it was written'
            ) from None


def _places(config: Config) -> list[str]:
    return [f'config.data.{name}' for name in config.data.places]


def _source(config: Config) -> bytes | None:
    """The content of the config file that defines classes of `config`; None without such."""
    names = {name.partition(':')[0] for name in config_lib.things_in(config)}
    files = sorted(filter(config_lib.of_config_file, names))
    if len(files) > 1:
        raise UserError(
            f'the config uses classes of {len(files)} config files ({", ".join(files)}); '
            'define them in one of them, or in a module'
        )
    return Path(str(sys.modules[files[0]].__file__)).read_bytes() if files else None


def _short(value: Any) -> str:
    """The JSON of a value, shortened to its class if it is an object."""
    if isinstance(value, dict) and isinstance(value.get('type'), str):
        return value['type'][:80]
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + '…'
