"""run.json: what was run, on what, and how it ended."""

import contextlib
import datetime
import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl.api import Rows
from jaxdl.files import read_object, write_json
from jaxdl.record.identity import IN_RUN, identity
from jaxdl.record.terminal import DiskGuard, warn

ENDS = ('finished', 'preempted', 'failed')


class RunInfo:
    """The file run.json of a run's folder.

    Opening starts a session with status 'running'. Earlier sessions of the same run are kept in
    'history', where one that did not record its end is marked 'killed'. The run's random 'id' stays
    the same. `fields` are stored unchanged (devices, parameters, steps, …).
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        command: Sequence[str] | None = None,
        from_step: int = 0,
        **fields: Any,
    ):
        self.path = Path(path)
        self.guard = DiskGuard(path)
        earlier = self._earlier()
        words = _command() if command is None else list(command)
        known = identity(self.path.parent)
        now = _now()
        self._clock = time.monotonic()
        self._seconds_before = _number(earlier.get('seconds'))
        history = earlier.get('history')
        history = history if isinstance(history, list) else []
        self.data: dict[str, Any] = {
            'status': 'running',
            'reason': '',
            'command': shlex.join(words),
            'step': from_step,
            'from_step': from_step,
            'started': now,
            'ended': None,
            'seconds': self._seconds_before,
            'git': git_revision(),
            'python': sys.version.split()[0],
            'packages': package_versions(),
            'host': os.uname().nodename,
            'process': os.getpid(),
            **{key: known[key] for key in IN_RUN},
            'id': known['id'] or uuid.uuid4().hex,
            **fields,
            'history': [*history, _session(earlier)] if earlier else history,
        }
        self._save()

    def update(self, **fields: Any) -> None:
        """Sets fields, such as step=, parameters= or devices=, and writes the file."""
        self.data.update(fields)
        self.data['seconds'] = round(self._seconds_before + time.monotonic() - self._clock, 3)
        self._save()

    def end(self, status: str, reason: str = '', **fields: Any) -> None:
        """Records how the session ended, one of ENDS, and why."""
        if status not in ENDS:
            raise ValueError(f'status={status!r}: must be one of {", ".join(ENDS)}')
        self.update(status=status, reason=reason, ended=_now(), **fields)

    def _earlier(self) -> dict[str, Any]:
        try:
            return read_object(self.path)
        except FileNotFoundError:
            if self.path.with_name('checkpoints').exists():
                warn(f'{self.path}: is missing; its history is lost')
            return {}
        except (OSError, ValueError) as error:
            warn(f'{self.path}: cannot be read ({error}); its history is lost')
            return {}

    def _save(self) -> None:
        with self.guard:
            write_json(self.path, self.data)


def row_facts(example: Rows) -> dict[str, list]:
    """The arrays of a row, {name: [dtype, shape]}, as run.json keeps them for `example_row`."""
    rows = {name: np.asarray(value) for name, value in example.items() if name != 'id'}
    return {name: [value.dtype.name, list(value.shape)] for name, value in rows.items()}


def example_row(facts: Any) -> Rows | None:
    """A row of zeros of the kind that `row_facts` described; None where `facts` are no such thing."""
    try:
        return {
            name: np.broadcast_to(np.zeros((), dtype), shape)
            for name, (dtype, shape) in facts.items()
            if np.dtype(dtype).kind in 'biuf'
        } or None
    except (AttributeError, TypeError, ValueError):
        return None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 2**53 else 0.0


def _session(data: Mapping[str, Any]) -> dict[str, Any]:
    keys = ('status', 'reason', 'command', 'from_step', 'step', 'started', 'ended', 'git', 'host')
    session = {key: data.get(key) for key in (*keys, 'devices')}
    if session['status'] == 'running':
        session.update(status='killed', reason='ended without a word')
    return session


def _command() -> list[str]:
    """How this process was called; the program `jaxdl` as its module, which has no path."""
    words = sys.orig_argv[1:]
    installed = words and os.path.basename(words[0]) == 'jaxdl'
    return ['python', *(['-m', 'jaxdl', *words[1:]] if installed else words)]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def git_revision() -> dict[str, Any] | None:
    """{'revision', 'dirty'} of the running code, or None outside a git checkout."""
    folder = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ['git', '-C', str(folder), *words],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()

    try:
        revision = git('rev-parse', 'HEAD')
        dirty = bool(git('status', '--porcelain', '--untracked-files=no'))
    except (OSError, subprocess.SubprocessError):
        return None
    return {'revision': revision, 'dirty': dirty}


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that may change a run's numbers."""
    from importlib import metadata

    names = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'grain')
    names += ('tensorflow-datasets', 'ml_collections', 'jax-cuda12-plugin', 'jax-cuda13-plugin')
    names += ('onednn-cpu-gomp',)
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
