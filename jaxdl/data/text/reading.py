"""Text files: which there are, what they are by their first bytes, their lines, their hash.

Text is UTF-8, and a line ends at \\n or \\r\\n alone: other characters at which Unicode would end a
line, such as U+2028, belong to the text.
"""

import contextlib
import functools
import glob
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxdl.errors import UserError, nearest
from jaxdl.files import expanded

LINE_LIMIT = 1 << 24
"""Bytes of the longest line that is read where lines are the unit."""

UNPACKED, RATIO = 1 << 26, 200
"""A gzip file may unpack to so many bytes, or to this multiple of its size, whichever is more."""

_MARK = '\ufeff'  # the byte-order mark, which is no part of a text
_ENCODE = 'convert it to UTF-8: iconv -f {} -t utf-8'
_UNPACK = 'unpack it, or pack the text with gzip instead'
_EXPORT = 'export its text as .txt, .tsv or .jsonl'
_NAME = 'name it so: {}'

# (first bytes, what the file is, what to do); a longer beginning stands before a shorter one.
_KINDS = (
    (b'\xff\xfe\0\0', 'UTF-32', _ENCODE.format('UTF-32')),
    (b'\0\0\xfe\xff', 'UTF-32', _ENCODE.format('UTF-32')),
    (b'\xff\xfe', 'UTF-16', _ENCODE.format('UTF-16')),
    (b'\xfe\xff', 'UTF-16', _ENCODE.format('UTF-16')),
    (b'\x1f\x8b', 'packed twice with gzip', 'unpack it once'),
    (b'\x1f\x9d', 'packed with compress', _UNPACK),
    (b'BZh', 'packed with bzip2', _UNPACK),
    (b'\xfd7zXZ\0', 'packed with xz', _UNPACK),
    (b'\x28\xb5\x2f\xfd', 'packed with zstd', _UNPACK),
    (b'\x04\x22\x4d\x18', 'packed with lz4', _UNPACK),
    (b'PK\x03\x04', 'a zip archive (or .docx, .xlsx, .epub, .npz)', _UNPACK),
    (b'PK\x05\x06', 'an empty zip archive', _UNPACK),
    (b'7z\xbc\xaf\x27\x1c', 'a 7-Zip archive', _UNPACK),
    (b'Rar!\x1a\x07', 'a RAR archive', _UNPACK),
    (b'PAR1', 'a Parquet file', _NAME.format('.parquet')),
    (b'ARROW1', 'an Arrow file', _NAME.format('.arrow')),
    (b'Obj\x01', 'an Avro file', _EXPORT),
    (b'SQLite format 3\0', 'an SQLite database', _EXPORT),
    (b'\x89HDF\r\n', 'an HDF5 file', _EXPORT),
    (b'\x93NUMPY', 'a numpy array', _EXPORT),
    (b'\xd0\xcf\x11\xe0', 'a document of an old Office program', _EXPORT),
    (b'%PDF-', 'a PDF', _EXPORT),
    (b'{\\rtf', 'an RTF document', _EXPORT),
    (b'\x89PNG', 'a PNG picture', _EXPORT),
    (b'\xff\xd8\xff', 'a JPEG picture', _EXPORT),
    (b'GIF8', 'a GIF picture', _EXPORT),
)


def check_kind(head: bytes, place: Any) -> None:
    """Raises UserError where a file that begins with `head` is known not to be UTF-8 text."""
    found = next(((kind, do) for start, kind, do in _KINDS if head.startswith(start)), None)
    if head[257:262] == b'ustar':
        found = 'a tar archive', 'unpack it'
    if found:
        raise UserError(f'{place}: is {found[0]}, not UTF-8 text; {found[1]}')


class _Unpacked(gzip.GzipFile):
    """A gzip file that refuses to unpack to much more than any text does."""

    def __init__(self, file: Any, place: Any):
        super().__init__(fileobj=file)
        self._place = place
        self._limit = max(UNPACKED, RATIO * os.fstat(file.fileno()).st_size)

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(self._limit + 1 if size is None or size < 0 else size)
        if self.tell() > self._limit:
            raise UserError(
                f'{self._place}: unpacks to more than {self._limit >> 20} MiB, {RATIO} times its '
                'size, as no text does; if it is meant, unpack it with gunzip'
            )
        return data


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if they are gzip's.

    Raises UserError where it cannot be read, or is known by its first bytes to be no text.
    """
    try:
        with open(path, 'rb') as plain:
            packed = is_packed(path) or plain.peek(2)[:2] == b'\x1f\x8b'
            file = io.BufferedReader(_Unpacked(plain, path), 1 << 20) if packed else plain
            check_kind(file.peek(512)[:512], path)
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f'{path}: not a whole gzip file ({error}); copy it again') from None
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror or error})') from None


def read_text(path: Path) -> str:
    """The whole text of a file, without a byte-order mark at its beginning."""
    with opened(path) as file:
        return decode(file.read(), str(path))


def lines(path: Path, limit: int) -> Iterator[tuple[int, str]]:
    """Yields (number from 1, line without its end); raises UserError with the place."""
    with opened(path) as file:
        number = 0
        while line := file.readline(limit + 2):
            number += 1
            line = line.removesuffix(b'\n').removesuffix(b'\r')
            if len(line) > limit:
                raise UserError(
                    f'{path}:{number}: the line is longer than line_limit={limit} bytes; '
                    'is this the right file? If so, raise data.source.line_limit'
                )
            yield number, decode(line, f'{path}:{number}')


def decode(data: bytes, place: str) -> str:
    """UTF-8 to text without a byte-order mark; raises UserError with the line and the byte."""
    try:
        text = data.decode()
        at = data.find(0)
        if at < 0:
            return text.removeprefix(_MARK)
        what = 'belongs to no text; is it UTF-16 without a byte-order mark?'
    except UnicodeDecodeError as error:
        at, what = error.start, 'is not UTF-8'
    before = data[:at]
    if b'\n' in before:
        place = f'{place}:{before.count(10) + 1}'
    raise UserError(
        f'{place}: byte 0x{data[at]:02x} at {at - (before.rfind(10) + 1)} of the line {what}; convert '
        'the file from the encoding it is in, as its source names it: iconv -f ENCODING -t utf-8'
    )


def find(pattern: str, role: str) -> list[Path]:
    """The files that match a path or glob pattern, by name; raises UserError where none does.

    `role` is the setting that holds the pattern, for messages.
    """
    where = f'{role}={pattern!r}'
    name = expanded(pattern)
    if os.path.isdir(name):
        raise UserError(f'{where}: a folder; give a file or a pattern such as {pattern}/*.txt')
    found = [name] if os.path.isfile(name) else sorted(glob.glob(name, recursive=True))
    paths = [Path(name) for name in found if os.path.isfile(name)]
    if not paths:
        folder = Path(name).parent
        try:
            close = nearest(Path(name).name, sorted(os.listdir(folder)))
        except OSError:
            close = f'; the folder {folder} does not exist or cannot be read'
        raise UserError(f'{where}: no such file{close}')
    for path in paths:
        if not os.path.getsize(path):
            raise UserError(f'{where}: {path} is empty')
    return paths


def is_packed(path: Path) -> bool:
    """Whether the name says that the file is packed with gzip."""
    return path.suffix.lower() == '.gz'


def format_of(path: Path) -> str:
    """'jsonl', 'tsv', 'table' (Parquet or Arrow) or 'text', by the ending of the name without .gz."""
    name = path.stem if is_packed(path) else path.name
    kinds = {'.jsonl': 'jsonl', '.ndjson': 'jsonl', '.tsv': 'tsv'}
    if not is_packed(path):
        kinds |= {'.parquet': 'table', '.arrow': 'table', '.feather': 'table'}
    return kinds.get(Path(name).suffix.lower(), 'text')


def content_hash(path: Path) -> str:
    """A hash of a file's bytes; a file that did not change meanwhile is not read again."""
    try:
        state = path.stat()
        stamps = state.st_size, state.st_mtime_ns, state.st_ctime_ns
        return _hash(str(path), state.st_dev, state.st_ino, *stamps)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror or error})') from None


@functools.cache
def _hash(path: str, *_: int) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def digest(*parts: Any) -> str:
    """A hash, in hexadecimal, of bytes and of values by their text; lengths keep parts apart."""
    state = hashlib.blake2b(digest_size=32)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        state.update(len(data).to_bytes(8, 'little') + data)
    return state.hexdigest()
