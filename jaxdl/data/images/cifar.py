"""The CIFAR archives, tar or unpacked, of binary records or of Python pickles.

The format: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import dataclasses
import io
import pathlib
import pickle
import tarfile

import numpy as np

from jaxdl.data.images.originals import (
    Arrays,
    Check,
    ImageSet,
    md5_of,
    read_bytes,
    unpacked,
)
from jaxdl.errors import UserError


@dataclasses.dataclass(frozen=True)
class CifarLayout:
    """One of the published forms of a CIFAR set: archive, folder and members with their MD5."""

    archive: str
    archive_md5: str
    folder: str
    members: dict[str, dict[str, str]]  # split -> file -> md5
    pickled: bool


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain values only: an archive must not be able to run code."""

    _ALLOWED = frozenset({'_reconstruct', 'ndarray', 'dtype', 'scalar'})

    def find_class(self, module: str, name: str):
        if module.split('.')[0] == 'numpy' and name in self._ALLOWED:
            if name in ('ndarray', 'dtype'):
                return getattr(np, name)
            from numpy._core import multiarray

            return getattr(multiarray, name)
        if (module, name) == ('_codecs', 'encode'):  # how Python 3 writes bytes in protocol 2
            return lambda text, encoding: text.encode('latin1')
        raise pickle.UnpicklingError(f'{module}.{name} is not allowed')


def cifar_set(
    name: str, layouts: tuple[CifarLayout, ...], keys: dict[str, str], **known
) -> ImageSet:
    """`keys` maps each label feature to its key in the pickles, in the order of the label bytes."""

    def find(folder: pathlib.Path) -> dict[str, pathlib.Path]:
        for layout in layouts:
            if (folder / layout.archive).is_file():
                return {layout.archive: folder / layout.archive}
        incomplete = ''
        for layout in layouts:
            members = [m for split in layout.members.values() for m in split]
            for place in (folder / layout.folder, folder):
                present = [m for m in members if (place / m).is_file()]
                if len(present) == len(members):
                    return {m: place / m for m in members}
                if present:
                    missing = ', '.join(m for m in members if m not in present)
                    incomplete = incomplete or f'{name}: {place} lacks {missing}'
        names = ' or '.join(layout.archive for layout in layouts)
        raise UserError(
            (incomplete or f'{name}: {folder} lacks {names}')
            + f'\ngive the folder that holds {names}, or the unpacked files'
        )

    def read(files: dict[str, pathlib.Path]) -> tuple[Arrays, list[Check]]:
        layout = next(x for x in layouts if x.archive in files or set(files) >= set(_names(x)))
        archive = files.get(layout.archive)
        if archive is not None:
            packed = read_bytes(archive)
            contents = _read_tar(archive, packed, _names(layout), layout.folder)
            checks = [Check(layout.archive, md5_of(packed) == layout.archive_md5)]
            where = {m: f'{archive}: {m}' for m in contents}
        else:
            contents = {m: read_bytes(files[m]) for m in _names(layout)}
            checks = [
                Check(m, md5_of(contents[m]) == md5)
                for split in layout.members.values()
                for m, md5 in split.items()
            ]
            where = {m: str(files[m]) for m in contents}
        parse = _parse_pickle if layout.pickled else _parse_records
        arrays: Arrays = {}
        for split, members in layout.members.items():
            parts = [parse(contents[m], where[m], keys) for m in members]
            arrays[split] = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
        return arrays, checks

    return ImageSet(
        name=name,
        version='1.0.0',
        homepage='https://www.cs.toronto.edu/~kriz/cifar.html',
        shape=(32, 32, 3),
        counts={'train': 50_000, 'test': 10_000},
        find=find,
        read=read,
        **known,
    )


def _names(layout: CifarLayout) -> list[str]:
    return [m for split in layout.members.values() for m in split]


def _read_tar(
    archive: pathlib.Path, data: bytes, members: list[str], folder: str
) -> dict[str, bytes]:
    contents, data = {}, unpacked(data, archive)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode='r:') as tar:
            for entry in tar:
                member = pathlib.PurePosixPath(entry.name).name
                # A sparse file may claim any size.
                if member in members and entry.isfile() and not entry.issparse():
                    stream = tar.extractfile(entry)
                    contents[member] = stream.read() if stream else b''
    except Exception as error:  # a damaged archive can raise anything
        raise UserError(
            f'{archive}: damaged archive ({error}); copy or download it again'
        ) from None
    missing = [m for m in members if m not in contents]
    if missing:
        raise UserError(
            f'{archive}: lacks {", ".join(f"{folder}/{m}" for m in missing)}; download it again'
        )
    return contents


def _parse_records(data: bytes, where: str, keys: dict[str, str]) -> dict[str, np.ndarray]:
    size = len(keys) + 3 * 32 * 32
    if not data or len(data) % size:
        raise UserError(
            f'{where}: {len(data)} bytes are not a whole number of records of {size} bytes; '
            'copy or download it again'
        )
    table = np.frombuffer(data, np.uint8).reshape(-1, size)
    rows = {'image': _planes_to_pixels(table[:, len(keys) :])}
    # The coarse label of CIFAR-100 comes before the fine one, which is the order of `keys`.
    for column, feature in enumerate(keys):
        rows[feature] = table[:, column].astype(np.int32)
    return rows


def _parse_pickle(data: bytes, where: str, keys: dict[str, str]) -> dict[str, np.ndarray]:
    try:
        table = _ArrayUnpickler(io.BytesIO(data), encoding='bytes').load()
        image = np.asarray(table[b'data'])
        labels = {f: np.asarray(table[key.encode()]) for f, key in keys.items()}
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f'{where}: not a CIFAR batch ({error}); copy or download it again'
        ) from None
    if image.ndim != 2 or image.shape[1] != 3 * 32 * 32 or image.dtype != np.uint8:
        raise UserError(
            f'{where}: data is {image.dtype} {list(image.shape)}, must be uint8 [n, 3072]'
        )
    for feature, label in labels.items():
        if label.dtype.kind not in 'iu' or label.shape != image.shape[:1]:
            raise UserError(
                f'{where}: {keys[feature]} are {label.dtype} {list(label.shape)}, must be integers '
                f'[{len(image)}]; copy or download it again'
            )
    # Values that int32 cannot hold are outside the classes, and stay so.
    small = {f: np.clip(label, -1, 2**31 - 1).astype(np.int32) for f, label in labels.items()}
    return {'image': _planes_to_pixels(image), **small}


def _planes_to_pixels(rows: np.ndarray) -> np.ndarray:
    """[n, 3072] of three colour planes -> [n, 32, 32, 3]."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
