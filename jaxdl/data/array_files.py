"""Arrays of somebody's own, as numpy files."""

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxdl.api import Rows, Source
from jaxdl.data import cached, classes
from jaxdl.data.arrays import ArraySource
from jaxdl.data.kept_classes import KeptClasses
from jaxdl.data.text import reading
from jaxdl.data.valid import Valid
from jaxdl.errors import UserError, at_least, nearest
from jaxdl.files import expanded, needed_cache_folder, replacing

_INT32 = np.iinfo(np.int32)


@dataclasses.dataclass
class Arrays(KeptClasses):
    """The arrays [examples, …] of a .npz file, or of a folder of .npy files, as they are named.

    An array 'NAME' or 'train/NAME' belongs to the training set, 'SET/NAME' to an evaluation set.
    'label' may be text or any whole numbers. Grey images [examples, height, width] get a channel;
    64 bits become 32. The files of a folder are only mapped into memory if they are large.

    Attributes:
        file: the .npz file or the folder.
        names: pairs 'name=array in the file', such as ('image=x_train', 'test/image=x_test'); empty: all arrays under their own names.
        classes: names of the labels in the order of their numbers; empty: those of the training examples, in the order of jaxdl.data.classes.
        valid: the part of the training examples that is held out as the set 'valid'.
        in_memory_bytes: size up to which the files of a folder are read into memory.
    """

    places: ClassVar = ('file',)

    file: str = ''
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    valid: Valid = dataclasses.field(default_factory=Valid)
    in_memory_bytes: int = 2 * 1024**3

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], **fields: Any) -> 'Arrays':
        """Arrays of a program; a config is JSON, so they are stored in the cache under their hash."""
        parts = [(name, a.dtype.str, a.shape, a.tobytes()) for name, a in sorted(arrays.items())]
        key = reading.digest(*(part for parts_of in parts for part in parts_of))
        folder = needed_cache_folder() / 'arrays'
        path = folder / f'{key[:32]}.npz'
        if not path.is_file():
            with cached.writing(folder), replacing(path) as file:
                np.savez(file, allow_pickle=False, **dict(arrays))  # pyright: ignore[reportArgumentType]
        return cls(str(path), **fields)

    def check(self):
        if not self.file:
            raise ValueError("file='': give the arrays, --config.data.file=FILE.npz")
        at_least(self, in_memory_bytes=0)
        self._renamed()
        self.check_classes()

    def _renamed(self) -> dict[str, str]:
        parts = [pair.partition('=') for pair in self.names]
        pairs = {name: theirs for name, _, theirs in parts}
        if len(pairs) < len(self.names) or not all(pairs) or not all(pairs.values()):
            raise ValueError(f"names={self.names}: must be pairs 'name=array in the file'")
        return pairs

    def _sets(self) -> dict[str, dict[str, Any]]:
        """{set: {name: what `_load` takes}} of the file."""
        path = Path(expanded(self.file))
        if path.is_dir():
            found = {
                file.relative_to(path).with_suffix('').as_posix(): file
                for file in sorted(path.rglob('*.npy'))
            }
        elif path.is_file():
            try:
                with zipfile.ZipFile(path) as archive:
                    members = [name for name in archive.namelist() if name.endswith('.npy')]
            except zipfile.BadZipFile:
                raise UserError(f'{path}: is no .npz file; write it with numpy.savez') from None
            found = {name.removesuffix('.npy'): (path, name) for name in members}
        else:
            raise UserError(f'--config.data.file={self.file}: no such file or folder')
        if not found:
            raise UserError(f'{path}: holds no arrays')
        renamed = self._renamed() or {name: name for name in found}
        sets: dict[str, dict[str, Any]] = {}
        for name, theirs in renamed.items():
            if theirs not in found:
                raise UserError(
                    f'{path}: has no array {theirs!r}, it has {", ".join(found)}'
                    f'{nearest(theirs, found)}'
                )
            part, _, inner = name.rpartition('/')
            sets.setdefault(part or 'train', {})[inner] = found[theirs]
        if 'train' not in sets:
            raise UserError(f'{path}: holds no training set, only {", ".join(sets)}')
        return sets

    def read_classes(self) -> tuple[str, ...]:
        place = self._sets()['train'].get('label')
        return () if place is None else classes.in_order(_labels(_load(place), place))

    def train_source(self) -> Source:
        return self.valid.train(self._source('train'))

    def eval_sources(self) -> dict[str, Source]:
        sets = {name: self._source(name) for name in self._sets() if name != 'train'}
        return self.valid.evals(lambda: self._source('train'), sets)

    def fingerprint(self, *, train: bool = True) -> dict[str, str]:
        del train  # one file may hold all sets
        path = Path(expanded(self.file))
        if path.is_file():
            return {'arrays': reading.content_hash(path)}
        entries = [
            (part, name, *cached.entry_of(_load(place)).values())
            for part, places in sorted(self._sets().items())
            for name, place in sorted(places.items())
        ]
        return {'arrays': reading.digest(*(value for entry in entries for value in entry))}

    def _source(self, part: str) -> Source:
        places = self._sets()[part]
        arrays = {name: _load(place) for name, place in places.items()}
        lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if len(set(lengths.values())) != 1 or not min(lengths.values()):
            raise UserError(
                f'{self.file}: the arrays of {part!r} have '
                f'{", ".join(f"{n} {name}" for name, n in lengths.items())}; each needs one row an '
                'example'
            )
        label = arrays.pop('label', None)
        fixed = {}
        if label is not None:
            texts = _labels(label, places['label'])
            where = _row_of(places['label'])
            fixed['label'] = classes.numbered(texts, self.class_names(), where)
        size = sum(array.nbytes for array in arrays.values())
        if size > self.in_memory_bytes and Path(expanded(self.file)).is_dir():
            return _Mapped({name: places[name] for name in arrays}, fixed)
        return ArraySource({**{n: _plain(a, n, places[n]) for n, a in arrays.items()}, **fixed})


def _load(place: Any) -> np.ndarray:
    """An array: of a .npy file, mapped into memory, or of (.npz file, member)."""
    try:
        if isinstance(place, Path):
            return np.load(place, mmap_mode='r', allow_pickle=False)
        path, member = place
        with np.load(path, allow_pickle=False) as archive:
            return archive[member.removesuffix('.npy')]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f'{_named(place)}: cannot be read ({error})') from None


def _named(place: Any) -> str:
    return str(place) if isinstance(place, Path) else f'{place[0]}: {place[1]}'


def _row_of(place: Any) -> classes.Where:
    return lambda row: f'{_named(place)} row {row}'


def _labels(array: np.ndarray, place: Any) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] == 1:  # as some sets have it
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in 'iuUSb':
        raise UserError(
            f'{_named(place)}: labels are {array.dtype} {list(array.shape)}; they must be one text or '
            'whole number for each example'
        )
    return classes.label_texts(
        np.char.decode(array) if array.dtype.kind == 'S' else array, _row_of(place)
    )


def _plain(array: np.ndarray, name: str, place: Any) -> np.ndarray:
    """The array in a form that a batch may have."""
    if array.dtype.kind not in 'biuf':
        raise UserError(
            f'{_named(place)}: {name!r} is {array.dtype}, which fits no batch; only numbers do '
            "(labels as text are named 'label')"
        )
    if name == 'image' and array.ndim == 3:
        array = array[..., None]
    if array.dtype.kind == 'f' and array.dtype.itemsize > 4:
        return array.astype(np.float32)
    if (array.dtype.kind in 'iu' and array.dtype.itemsize > 4) or array.dtype == np.uint32:
        if len(array) and (array.min() < _INT32.min or array.max() > _INT32.max):
            raise UserError(f'{_named(place)}: {name!r} holds numbers beyond 32 bits')
        return array.astype(np.int32)
    return array.astype(array.dtype.newbyteorder('='), copy=False)


class _Mapped(Source):
    """Rows of .npy files that are only mapped into memory; another process maps them anew."""

    def __init__(self, places: dict[str, Path], fixed: Rows):
        self._places, self._fixed = places, fixed
        self._arrays = {name: _load(place) for name, place in places.items()}

    def __reduce__(self) -> tuple:
        return _Mapped, (self._places, self._fixed)

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def fetch(self, ids: np.ndarray) -> Rows:
        rows = {n: _plain(np.array(a[ids]), n, self._places[n]) for n, a in self._arrays.items()}
        return {**rows, **{name: array[ids] for name, array in self._fixed.items()}}
