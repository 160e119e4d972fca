"""Derived files that can be made anew: arrays and JSON objects, checked whenever they are read.

Nothing in such a file is believed before its checksum is right: a header is compared, not parsed.
Whatever is not exactly what was written is `DamagedFile`, and the caller makes the file again.
"""

import contextlib
import io
import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl import files
from jaxdl.errors import UserError

CHECKED_WHOLE = 1 << 28
"""Bytes up to which an array is checked in full; larger ones by their ends and their size."""


class DamagedFile(UserError):
    """A derived file is missing, or is not what was written."""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raises UserError where what is done inside cannot write to `folder`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f'the cache {folder} cannot be written ({error.strerror or error}); '
            'set JAXDL_CACHE to a folder with space'
        ) from None


def write_object(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object with its checksum, whole or not at all. Raises OSError."""
    files.write_bytes(path, json.dumps({**content, 'crc32': _crc(content)}).encode())


def read_object(path: Path) -> dict[str, Any]:
    """What `write_object` wrote. Raises FileNotFoundError or DamagedFile."""
    try:
        content = files.read_object(path)
        if content.pop('crc32', None) == _crc(content):
            return content
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedFile(f'{path}: cannot be read ({error.strerror or error})') from None
    except ValueError as error:
        raise DamagedFile(f'{path} is damaged: not JSON ({error})') from None
    raise DamagedFile(f'{path} is damaged: its content is not what was written')


def _crc(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def write_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Writes an array as .npy, whole or not at all; returns its entry for `read_array`."""
    array = np.ascontiguousarray(array)
    with files.replacing(path) as file:
        file.write(npy_header(array.dtype, array.shape))
        file.write(array.reshape(-1).view(np.uint8).data)
    return entry_of(array)


def entry_of(array: np.ndarray) -> dict[str, Any]:
    """What `read_array` has to know of an array, as plain JSON values."""
    return {'dtype': array.dtype.str, 'shape': list(array.shape), 'crc32': _checksum(array)}


def read_array(path: Path, entry: dict[str, Any], *, mapped: bool = False) -> np.ndarray:
    """The array of a .npy file, only mapped into memory where `mapped`. Raises DamagedFile."""
    try:
        dtype, shape = np.dtype(entry['dtype']), tuple(entry['shape'])
        header = npy_header(dtype, shape)
        with open(path, 'rb') as file:
            found, size = file.read(len(header)), os.fstat(file.fileno()).st_size
        if found != header or size != len(header) + math.prod(shape) * dtype.itemsize:
            raise DamagedFile(f'{path}: its header or its size changed since it was written')
        if mapped:
            array = np.memmap(path, dtype, 'r', len(header), shape)
        else:
            array = np.fromfile(path, dtype, offset=len(header)).reshape(shape)
        if _checksum(array) != entry['crc32']:
            raise DamagedFile(f'{path}: its bytes changed since it was written')
        return array
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedFile(f'{path}: cannot be read ({error})') from None


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """How a .npy file of this array begins.

    numpy pads it so that any length along the first axis fits into the same number of bytes.
    """
    header = io.BytesIO()
    content = {'descr': dtype.str, 'fortran_order': False, 'shape': shape}
    np.lib.format.write_array_header_1_0(header, content)
    return header.getvalue()


def _checksum(array: np.ndarray) -> int:
    data = array.reshape(-1).view(np.uint8)
    if data.nbytes <= CHECKED_WHOLE:
        return zlib.crc32(data.data)
    part = 1 << 24
    return zlib.crc32(data[-part:].data, zlib.crc32(data[:part].data))
