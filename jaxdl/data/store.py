"""Prepared data sets on disk: where they are, how they appear at once, how damage is seen.

DATA_DIR/NAME/VERSION is a TFDS folder (ArrayRecord shards, dataset_info.json) that TFDS can read.
Its subfolder `jaxdl` holds, for each split, the decoded arrays as .npy and a small JSON file with
the sizes of the shards and the checksums of the arrays, so that a later start only reads arrays.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

from jaxdl import files
from jaxdl.data.cached import DamagedFile, read_array, read_object, write_array, write_object
from jaxdl.errors import UserError

FOLDER = 'jaxdl'

_CANNOT_WRITE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EEXIST,
}


class DamagedShard(DamagedFile):
    """A shard, which holds the examples themselves, is missing or has another size."""


def data_dir(given: str = '') -> pathlib.Path:
    """Returns `given`, else $JAXDL_DATA, else data in the cache folder, as an absolute path.

    Raises UserError where there is none of these.
    """
    if chosen := given or os.environ.get('JAXDL_DATA'):
        return files.needed_cache_folder(chosen)
    return files.needed_cache_folder() / 'data'


def image_set_folder(root: pathlib.Path, name: str, version: str) -> pathlib.Path:
    """Returns where a data set of the catalogue lies once it is prepared."""
    return root / name / version


def prepare_command(name: str, root: pathlib.Path) -> str:
    """Returns the command that prepares `name` under `root`, for messages."""
    place = '' if root == data_dir() else f' --data_dir={root}'
    return f'python -m jaxdl prepare {name}{place}'


@dataclasses.dataclass(frozen=True)
class StoredSplit:
    """A split whose arrays are stored: shard lengths, and for each feature its file and checksum."""

    folder: pathlib.Path
    shard_lengths: tuple[int, ...]
    shards: dict[str, int]
    arrays: dict[str, dict]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays of the split."""
        return sum(
            int(np.prod(entry['shape'])) * np.dtype(entry['dtype']).itemsize
            for entry in self.arrays.values()
        )

    def load(self, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Reads the arrays, all if no names are given; raises DamagedFile where one changed."""
        chosen = self.arrays if names is None else names
        place = self.folder / FOLDER
        return {n: read_array(place / self.arrays[n]['file'], self.arrays[n]) for n in chosen}


def read_split(folder: pathlib.Path, key: str) -> StoredSplit | None:
    """What is stored of a split, None if nothing is; raises DamagedFile where it changed."""
    path = folder / FOLDER / f'{key}.json'
    try:
        entry = read_object(path)
        stored = StoredSplit(
            folder, tuple(entry['shard_lengths']), dict(entry['shards']), dict(entry['arrays'])
        )
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f'{path}: cannot be read ({error})') from None
    for name, size in stored.shards.items():
        shard = folder / name
        found = shard.stat().st_size if shard.is_file() else None
        if found is None:
            raise DamagedShard(f'{shard}: is missing')
        if found != size:
            raise DamagedShard(f'{shard}: has {found} bytes, {size} were written')
    return stored


def write_split(
    folder: pathlib.Path,
    split: str,
    arrays: dict[str, np.ndarray],
    shard_lengths: Iterable[int],
    *,
    key: str = '',
) -> None:
    """Stores the decoded arrays of a split beside its shards; each file appears at once.

    `key` is the name to store them under, if not that of the split.
    """
    key = key or split
    place = folder / FOLDER
    entries = {}
    for name, array in arrays.items():
        file = f'{key}.{name}.npy'
        entries[name] = {'file': file, **write_array(place / file, array)}
    shards = {path.name: path.stat().st_size for path in shard_files(folder, split)}
    content = {'shard_lengths': list(shard_lengths), 'shards': shards, 'arrays': entries}
    write_object(place / f'{key}.json', content)


def shard_files(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Returns the ArrayRecord shards of a split, in order."""
    return sorted(folder.glob(f'*-{split}.array_record-*'))


@contextlib.contextmanager
def preparing(root: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """Yields an empty folder in which a data set is prepared, and removes it afterwards.

    One process at a time prepares `name` under `root`; the others wait. What a killed process left
    behind is removed: whoever holds the lock is the only one at work.
    """
    label = name.replace('/', '-')
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f'.lock-{label}', name):
            for stale in root.glob(f'.preparing-{label}-*'):
                shutil.rmtree(stale, ignore_errors=True)
            staging = pathlib.Path(tempfile.mkdtemp(prefix=f'.preparing-{label}-', dir=root))
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise UserError(
            f'{name}: cannot write {error.filename or root} ({error.strerror}); '
            'set --data_dir or JAXDL_DATA to a folder with space that you may write to'
        ) from None


def publish(prepared: pathlib.Path, folder: pathlib.Path) -> None:
    """Moves a finished folder to its place in one rename, over an older one if there is one."""
    for path in prepared.rglob('*'):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        # It leaves through the staging folder, which is removed whatever happens next.
        folder.rename(prepared.parent / f'{folder.name}.old')
    prepared.rename(folder)


@contextlib.contextmanager
def _locked(path: pathlib.Path, name: str) -> Iterator[None]:
    """Holds the lock of a data set; where another process has it, says so and waits."""
    lock = files.Lock(path)
    if not lock.take():
        print(f'{name}: another process prepares it; waiting', file=sys.stderr)
        lock.take(wait=True)
    try:
        yield
    finally:
        lock.release()
