"""Somebody's own pictures: as files, in tables, in tar shards; decoded once, or when needed."""

import abc
import contextlib
import functools
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxdl.api import Rows, Source
from jaxdl.data import cached
from jaxdl.data.arrays import ArraySource
from jaxdl.data.images.pictures import open_picture
from jaxdl.data.records import fitted
from jaxdl.data.tables import files
from jaxdl.data.text.reading import digest
from jaxdl.data.threads import in_chunks
from jaxdl.errors import UserError, nearest
from jaxdl.files import needed_cache_folder, parse_object

BROKEN = 3  # pictures that a message names


class Pictures(abc.ABC):
    """Encoded pictures and their labels in a fixed order; it can be sent to another process."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, row: int) -> bytes:
        """The encoded picture of a row; raises OSError or ValueError where there is none."""

    @abc.abstractmethod
    def where(self, row: int) -> str:
        """The place of a row, for messages."""

    @abc.abstractmethod
    def labels(self) -> Sequence[Any]:
        """The labels as they are written."""

    @abc.abstractmethod
    def stamp(self, *, times: bool) -> str:
        """A hash of names and sizes, and with `times` of when the files were written."""

    def names(self) -> tuple[str, ...]:
        """The names of the classes, where labels are numbers of them; else ()."""
        return ()


class FilePictures(Pictures):
    """Files, each with the label that stands beside it."""

    def __init__(self, root: Path, names: Sequence[str], labels: Sequence[Any], origin: str = ''):
        self._root, self._names, self._labels, self._origin = root, names, labels, origin

    def __len__(self) -> int:
        return len(self._names)

    def read(self, row: int) -> bytes:
        return (self._root / self._names[row]).read_bytes()

    def where(self, row: int) -> str:
        path = self._root / self._names[row]
        return f'{path} ({self._origin} row {row})' if self._origin else str(path)

    def labels(self) -> Sequence[Any]:
        return self._labels

    def stamp(self, *, times: bool) -> str:
        stamps, missing = [], []
        for row, name in enumerate(self._names):
            try:
                stamps.append(files.stamp(self._root / name))
            except OSError:
                missing.append(row)
        if missing:
            more = f'; {len(missing)} files are missing' if len(missing) > 1 else ''
            raise UserError(f'{self.where(missing[0])}: there is no such file{more}')
        return digest('files', *self._names, *(s if times else s[:1] for s in stamps))


class TablePictures(Pictures):
    """A column of pictures: bytes, {'bytes': …} as Hugging Face has it, or paths of files."""

    def __init__(self, paths: Sequence[Path], image: str, label: str):
        self._columns, self._image, self._label = files.Columns(paths), image, label
        self._paths = list(paths)
        self._count = len(self.labels())

    def __len__(self) -> int:
        return self._count

    def read(self, row: int) -> bytes:
        value = self._columns.value(self._image, row)
        if isinstance(value, dict):
            value = value.get('bytes') or value.get('path')
        if isinstance(value, str):
            return (self._paths[0].parent / value).read_bytes()
        if not isinstance(value, bytes):
            raise ValueError(f'column {self._image!r} holds {type(value).__name__}, no picture')
        return value

    def where(self, row: int) -> str:
        return self._columns.where(row)

    @functools.cached_property
    def _labels(self) -> list[Any]:
        return self._columns.values(self._label)

    def labels(self) -> Sequence[Any]:
        return self._labels

    def names(self) -> tuple[str, ...]:
        return self._columns.class_names(self._label)

    def stamp(self, *, times: bool) -> str:
        stamps = (files.stamp(path) for path in self._paths)
        return digest('table', self._image, *(s if times else s[:1] for s in stamps))

    def on_disk(self, folder: Path) -> None:
        """From here on rows are read from Arrow files, made in `folder` where there is none."""
        made = files.mapped(self._paths, [self._image, self._label], folder)
        self._columns = files.Columns(made)


def table_pictures(paths: Sequence[Path], image: str, label: str) -> Pictures:
    """The pictures of tables; tables of paths become lists of files."""
    if any(path.suffix == '.tar' for path in paths):
        return TarPictures(paths, image, label)
    if files.kind_of(paths[0]) not in ('csv', 'tsv', 'jsonl'):
        return TablePictures(paths, image, label)
    columns = files.Columns(paths)
    names = columns.values(image)
    for row, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise UserError(f'{columns.where(row)}: column {image!r} holds {name!r}, not a path')
    folders = {path.parent for path in paths}
    if len(folders) > 1:
        raise UserError(f'{paths[0]} and {paths[-1]}: tables of paths must lie in one folder')
    return FilePictures(folders.pop(), names, columns.values(label), paths[0].name)


class TarPictures(Pictures):
    """WebDataset shards: members that differ only in the ending belong to one example.

    `image` and `label` are endings, several separated by ';'; 'json/KEY' is a field of a JSON
    member. An index of the members gives random access.
    """

    def __init__(self, paths: Sequence[Path], image: str, label: str):
        self._paths, self._label = list(paths), label
        self._images: list[tuple[int, int, int]] = []  # (shard, first byte, bytes)
        self._places: list[tuple[int, int, int]] = []
        self._keys: list[str] = []
        ending, _, self._field = label.partition('/')
        for shard, path in enumerate(paths):
            for key, members in _examples(path).items():
                picture = _one(members, image, f'{path}: {key}')
                self._images.append((shard, *picture))
                self._places.append((shard, *_one(members, ending, f'{path}: {key}')))
                self._keys.append(key)

    def __len__(self) -> int:
        return len(self._keys)

    def _read(self, place: tuple[int, int, int]) -> bytes:
        shard, first, size = place
        with open(self._paths[shard], 'rb') as file:
            file.seek(first)
            data = file.read(size)
        if len(data) != size:
            raise ValueError(f'the shard ends after {len(data)} of {size} bytes')
        return data

    def read(self, row: int) -> bytes:
        return self._read(self._images[row])

    def where(self, row: int) -> str:
        return f'{self._paths[self._images[row][0]]}: {self._keys[row]}'

    def labels(self) -> Sequence[Any]:
        found: list[Any] = []
        for row, place in enumerate(self._places):
            data = self._read(place)
            if self._field:
                try:
                    found.append(parse_object(data)[self._field])
                except (KeyError, ValueError) as error:
                    raise UserError(f'{self.where(row)}.json: {error!r:.200}') from None
            else:
                found.append(data)
        return found

    def stamp(self, *, times: bool) -> str:
        stamps = (files.stamp(path) for path in self._paths)
        return digest('tar', *self._images, *(s if times else s[:1] for s in stamps))


def _examples(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """{example: {ending: (first byte, bytes)}} of a shard, in its order."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, 'r:') as tar:
            for entry in tar:
                folder, _, name = entry.name.rpartition('/')
                stem, dot, ending = name.partition('.')
                if entry.isfile() and not entry.issparse() and stem and dot:
                    example = found.setdefault(f'{folder}/{stem}' if folder else stem, {})
                    example[ending.lower()] = entry.offset_data, entry.size
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f'{path}: no whole tar file that is not packed ({error}); gunzip or copy it again'
        ) from None
    if not found:
        raise UserError(f'{path}: holds no member with an ending')
    return found


def _one(members: dict[str, tuple[int, int]], endings: str, where: str) -> tuple[int, int]:
    for ending in endings.split(';'):
        if ending in members:
            return members[ending]
    raise UserError(
        f'{where} has no member .{endings.replace(";", " or .")}, only '
        f'{", ".join(f".{name}" for name in members)}{nearest(endings, members)}'
    )


def own_picture(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """A picture turned upright by its EXIF entry, its middle scaled to uint8 `shape`."""
    return fitted(open_picture(data, shape[-1], upright=True, least=min(shape[:2])), shape)


class PictureSource(Source):
    """'image' uint8 [rows, *shape] and 'label' int32 [rows]; decoded in threads when fetched."""

    def __init__(self, pictures: Pictures, label: np.ndarray, shape: tuple[int, ...]):
        self.pictures, self.label, self.shape = pictures, label, shape

    def __len__(self) -> int:
        return len(self.label)

    @property
    def nbytes(self) -> int:
        return int(np.prod([len(self), *self.shape], dtype=np.int64))

    def fetch(self, ids: np.ndarray) -> Rows:
        """Raises UserError that names the pictures which cannot be read."""
        image = np.empty((len(ids), *self.shape), np.uint8)
        broken: dict[int, str] = {}

        def decode(start: int, stop: int) -> None:
            for place in range(start, stop):
                row = int(ids[place])
                try:
                    image[place] = own_picture(self.pictures.read(row), self.shape)
                except UserError:
                    raise
                except Exception as error:  # damaged pictures make decoders raise anything
                    broken[row] = (str(error).splitlines() or [type(error).__name__])[0]

        in_chunks(len(ids), decode)
        if broken:
            shown = '; '.join(
                f'{self.pictures.where(row)}: {broken[row]}' for row in sorted(broken)[:BROKEN]
            )
            more = f'; and {len(broken) - BROKEN} more' if len(broken) > BROKEN else ''
            raise UserError(
                f'{len(broken)} of {len(ids)} pictures cannot be read: {shown}{more}\n'
                'replace the file or leave it out'
            )
        return {'image': image, 'label': self.label[ids]}

    def stages(self, ids: np.ndarray) -> Iterator[tuple[str, Callable[[], tuple[int, int]]]]:
        """Reading and decoding, in one thread."""

        def read() -> tuple[int, int]:
            return len(ids), sum(len(self.pictures.read(int(row))) for row in ids)

        yield 'read', read
        data = [self.pictures.read(int(row)) for row in ids]

        def decode() -> tuple[int, int]:
            return len(ids), sum(own_picture(one, self.shape).nbytes for one in data)

        yield 'decode', decode


def decoded_file(pictures: Pictures, shape: tuple[int, ...], cache: str) -> Path:
    """Where the decoded pictures are kept, without an ending."""
    key = digest('pictures 1', pictures.stamp(times=True), shape, Image.__version__)
    return needed_cache_folder(cache) / 'images' / key[:32]


def stored_entry(path: Path) -> dict[str, Any] | None:
    """The entry of decoded pictures for `cached.read_array`; None if there are none."""
    with contextlib.suppress(FileNotFoundError, cached.DamagedFile):
        return cached.read_object(path.with_suffix('.json')).get('image')
    return None


def opened(
    pictures: Pictures, label: np.ndarray, shape: tuple[int, ...], cache: str, in_memory_bytes: int
) -> Source:
    """The pictures in memory, decoded once and kept in the cache; or larger sets on disk."""
    source = PictureSource(pictures, label, shape)
    if source.nbytes > in_memory_bytes:
        if isinstance(pictures, TablePictures):
            folder = needed_cache_folder(cache) / 'tables'
            with cached.writing(folder):
                pictures.on_disk(folder)
        return source
    path = decoded_file(pictures, shape, cache)
    array, entry = path.with_suffix('.npy'), stored_entry(path)
    if entry is not None:
        with contextlib.suppress(cached.DamagedFile):
            return ArraySource({'image': cached.read_array(array, entry), 'label': label})
    image = source.fetch(np.arange(len(source)))['image']
    with contextlib.suppress(OSError):  # a cache that only others may write to
        entry = cached.write_array(array, image)
        cached.write_object(path.with_suffix('.json'), {'image': entry})
    return ArraySource({'image': image, 'label': label})
