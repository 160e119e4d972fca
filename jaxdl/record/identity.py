"""The record that binds a checkpoint to its run; it is stored beside the arrays.

It holds the step, the run's random id, its config, the fingerprints of its data, the digest of
every array, and the JSON that is restored with the state. Its SHA-256 covers all of it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxdl.files import read_object

# The entries that identify a run, and their types. `places` are the fields of the config that only
# say where data is, `data` are fingerprints of that data, `kept` are the files that the data set
# saves in the folder, and `files` are the hashes of these files and of config.py.
IN_RUN = {'id': str, 'data': dict, 'places': list, 'kept': list}
IDENTITY = {**IN_RUN, 'config': dict, 'files': dict}
IN_CHECKPOINT = {**IDENTITY, 'step': int, 'leaves': list, 'digests': list, 'extra': dict}


def record_file(checkpoints: Path, step: int) -> Path:
    return checkpoints / str(step) / 'record' / 'record.json'


def seal(content: dict[str, Any]) -> bytes:
    """The text of a record, with its checksum."""
    return json.dumps({**content, 'sha256': _sha256(content)}).encode()


def _sha256(content: dict[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != 'sha256'}
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def read_record(path: Path) -> dict[str, Any]:
    """A record that `seal` wrote. Raises OSError, or ValueError if it is damaged."""
    found = read_object(path)
    if found.get('sha256') != _sha256(found):
        raise ValueError('it does not match its checksum')
    return _checked(found, IN_CHECKPOINT)


def _checked(found: dict[str, Any], kinds: dict[str, type]) -> dict[str, Any]:
    for key, kind in kinds.items():
        if type(found.get(key)) is not kind:
            raise ValueError(f'{key!r} is missing or no {kind.__name__}')
    return found


def identity(folder: Path) -> dict[str, Any]:
    """The entries of IDENTITY for the run in `folder`, from run.json or the newest checkpoint.

    Unknown entries are empty, such as the id of a folder that holds nothing but checkpoints.
    """
    found = (_of(folder, 'run.json', IN_RUN) or _newest(folder / 'checkpoints')).copy()
    found['config'] = _of(folder, 'config.json', {})
    names = ['config.py', *map(str, found.get('kept', ()))]
    found['files'] = {name: hash_of(folder / name) for name in names}
    return {key: found.get(key, kind()) for key, kind in IDENTITY.items()}


def _of(folder: Path, name: str, kinds: dict[str, type]) -> dict[str, Any]:
    try:
        return _checked(read_object(folder / name), kinds)
    except (OSError, ValueError):
        return {}


def _newest(checkpoints: Path) -> dict[str, Any]:
    """The newest good record among the checkpoints, or {}."""
    for path in sorted(
        checkpoints.glob('[0-9]*/record/record.json'),
        key=lambda path: (len(path.parts[-3]), path.parts[-3]),
        reverse=True,
    ):
        try:
            return read_record(path)
        except (OSError, ValueError):
            continue
    return {}


def hash_of(path: Path) -> str:
    """The hash of a small file; '' if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return ''
