"""Records of text: from local files, and from the standard library's own source.

A set of records can be read again and again, always in the same order, and has a `key()`: a hash
of everything that decides its content. Each record is a tuple of strings.
"""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from jaxdl.data.text.tokenizers import digest
from jaxdl.errors import UserError, nearest

LINE_LIMIT = 1 << 24
"""Bytes of the longest line that is read where lines are the unit."""


class Records(Protocol):
    """Tuples of strings in a fixed order, e.g. (document,) or (source sentence, target)."""

    def key(self) -> str:
        """A hash of everything that decides the records."""
        ...

    def __iter__(self) -> Iterator[tuple[str, ...]]: ...

    def where(self, index: int) -> str:
        """Where record `index` stands, for messages."""
        ...


@dataclasses.dataclass(frozen=True)
class Files:
    """Records of local files, also compressed with gzip (a name that ends in .gz).

    The ending decides the format: `.jsonl` (or .ndjson) has one JSON object a line, of which
    `fields` are taken; `.tsv` has columns, of which `columns` are taken; all else is plain text
    with one column. Blank lines are skipped.

    Attributes:
        pattern: a path or a glob pattern; `~` is the home folder. The files are read in name order.
        fields: names in a JSON object that make a record.
        columns: columns of a TSV, from 0, that make a record.
        documents: what is one record of plain text: 'file', 'line', or 'paragraph' (up to a blank line).
        line_limit: bytes of the longest line; not for documents='file'.
        role: how an error names this set, such as 'data.train'.
    """

    pattern: str
    fields: tuple[str, ...] = ('text',)
    columns: tuple[int, ...] = (0,)
    documents: str = 'file'
    line_limit: int = LINE_LIMIT
    role: str = 'data'

    def paths(self) -> list[Path]:
        """The files; raises UserError where there is none, or one is empty or unreadable."""
        found = find(self.pattern, self.role)
        for path in found:
            if len(self.columns) > 1 and format_of(path) == 'text':
                raise UserError(
                    f'{self.role}={self.pattern!r}: {path.name} is plain text, but {len(self.columns)} '
                    'columns are needed; give a .tsv or .jsonl file, also .gz'
                )
        return found

    def key(self) -> str:
        parts: list[Any] = ['files 1', self.documents]
        for path in self.paths():
            kind = format_of(path)
            parts += [kind, path.suffix == '.gz', content_hash(path)]
            parts.append({'jsonl': self.fields, 'tsv': self.columns}.get(kind))
        return digest(*parts)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        found = False
        for _, record in self._located():
            found = True
            yield record
        if not found:
            raise UserError(
                f'{self.role}={self.pattern!r}: the files hold no text, only blank lines'
            )

    def where(self, index: int) -> str:
        for i, (place, _) in enumerate(self._located()):
            if i == index:
                return place
        raise IndexError(index)

    def _located(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        for path in self.paths():
            kind = format_of(path)
            if kind == 'text' and self.documents == 'file':
                text = decode(read_all(path), f'{path}')
                if text.strip():
                    yield str(path), (text,)
            elif kind == 'text':
                yield from self._plain(path)
            else:
                parse = self._from_json if kind == 'jsonl' else self._from_tsv
                for number, line in lines(path, self.line_limit):
                    if line.strip():
                        place = f'{path}:{number}'
                        yield place, parse(line, place)

    def _plain(self, path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
        held: list[str] = []
        place = ''
        for number, line in lines(path, self.line_limit):
            if self.documents == 'line':
                if line.strip():
                    yield f'{path}:{number}', (line,)
            elif line.strip():
                place = place if held else f'{path}:{number}'
                held.append(line)
            elif held:
                yield place, ('\n'.join(held),)
                held = []
        if held:
            yield place, ('\n'.join(held),)

    def _from_json(self, line: str, place: str) -> tuple[str, ...]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f'{place}: not JSON ({error})') from None
        if not isinstance(row, dict):
            raise UserError(f'{place}: a JSON {type(row).__name__}, not an object of named fields')
        record = []
        for field in self.fields:
            if field not in row:
                raise UserError(
                    f'{place}: has no field {field!r}, only {", ".join(map(repr, row))}'
                    f'{nearest(field, row)}'
                )
            value = row[field]
            if isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if not isinstance(value, str):
                raise UserError(f'{place}: field {field!r} is {value!r:.40}, not text')
            try:
                value.encode()
            except UnicodeEncodeError:
                raise UserError(f'{place}: field {field!r} holds half a UTF-16 character') from None
            record.append(value)
        return tuple(record)

    def _from_tsv(self, line: str, place: str) -> tuple[str, ...]:
        cells = line.split('\t')
        missing = [c for c in self.columns if c >= len(cells)]
        if missing:
            raise UserError(
                f'{place}: has {len(cells)} column{"s" if len(cells) > 1 else ""} separated by tabs; '
                f'column {missing[0]} (counted from 0) is missing'
            )
        return tuple(cells[c] for c in self.columns)


def find(pattern: str, role: str) -> list[Path]:
    """The files that match a path or glob pattern, by name; raises UserError where none does."""
    expanded = Path(pattern).expanduser()
    if expanded.is_dir():
        raise UserError(
            f'{role}={pattern!r}: a folder; give a file or a pattern such as {pattern}/*.txt'
        )
    if expanded.is_file():
        found = [expanded]
    else:
        import glob

        found = [Path(name) for name in sorted(glob.glob(str(expanded), recursive=True))]
        found = [path for path in found if path.is_file()]
    if not found:
        beside = [p.name for p in _listing(expanded.parent)]
        close = nearest(expanded.name, beside)
        if not expanded.parent.is_dir():
            close = f'; the folder {expanded.parent} does not exist'
        raise UserError(f'{role}={pattern!r}: no such file{close}')
    for path in found:
        try:
            if path.stat().st_size == 0:
                raise UserError(f'{role}={pattern!r}: {path} is empty')
        except OSError as error:
            raise UserError(
                f'{role}={pattern!r}: {path} cannot be read ({error.strerror})'
            ) from None
    return found


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def format_of(path: Path) -> str:
    """'jsonl', 'tsv' or 'text', by the ending of the name without .gz."""
    name = path.name.removesuffix('.gz')
    return {'.jsonl': 'jsonl', '.ndjson': 'jsonl', '.tsv': 'tsv'}.get(Path(name).suffix, 'text')


def content_hash(path: Path) -> str:
    """A hash of a file's bytes; files over 1 GiB are hashed again only when they have changed."""
    state = path.stat()
    if state.st_size <= 1 << 30:
        return _hash_file(path)
    key = (str(path.resolve()), state.st_size, state.st_mtime_ns)
    if key not in _HASHES:
        _HASHES[key] = _hash_file(path)
    return _HASHES[key]


_HASHES: dict[tuple[str, int, int], str] = {}


def _hash_file(path: Path) -> str:
    with _reading(path), open(path, 'rb') as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


class _reading:
    """Turns what can go wrong while reading `path` into one line for the user."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
            raise UserError(
                f'{self.path}: not a whole gzip file ({error}); copy it again'
            ) from None
        if isinstance(error, OSError):
            raise UserError(f'{self.path}: cannot be read ({error.strerror or error})') from None


def _open(path: Path) -> Any:
    return gzip.open(path, 'rb') if path.suffix == '.gz' else open(path, 'rb')


def read_all(path: Path) -> bytes:
    """The file's content, unpacked."""
    with _reading(path), _open(path) as file:
        return file.read()


def lines(path: Path, limit: int) -> Iterator[tuple[int, str]]:
    """Yields (number from 1, line without its end); raises UserError with the place."""
    with _reading(path), _open(path) as raw:
        file = io.BufferedReader(raw, 1 << 20)
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            line = line.removesuffix(b'\n').removesuffix(b'\r')
            if len(line) > limit:
                raise UserError(
                    f'{path}:{number}: the line is longer than line_limit={limit} bytes; '
                    'is this the right file? If so, raise data.line_limit'
                )
            yield number, decode(line, f'{path}:{number}')


def decode(data: bytes, place: str) -> str:
    """UTF-8 to text; raises UserError with the line and the byte."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        if b'\n' in before:
            place = f'{place}:{before.count(10) + 1}'
        column = error.start - (before.rfind(b'\n') + 1)
        raise UserError(
            f'{place}: byte 0x{data[error.start]:02x} at {column} of the line is not UTF-8; '
            'convert the file, e.g. iconv -f latin1 -t utf-8'
        ) from None


@dataclasses.dataclass(frozen=True)
class StdlibRecords:
    """The Python files of the running interpreter's standard library, one document each.

    Which files are held out is decided by a hash of the name inside the library, so a file stays
    on its side whatever else is there. The text is that of this Python version.

    Attributes:
        held_out: True for the held-out part, False for the rest.
        percent: share of the files that is held out.
        tests: also the library's own tests.
    """

    held_out: bool
    percent: int = 5
    tests: bool = False

    def paths(self) -> list[tuple[str, Path]]:
        """(name inside the library, path) of the chosen files, by name."""
        import sysconfig

        root = Path(sysconfig.get_path('stdlib'))
        skipped = {'site-packages', 'dist-packages', '__pycache__'}
        if not self.tests:
            skipped |= {'test', 'tests', 'idle_test'}
        chosen = []
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in skipped]
            for name in names:
                path = Path(folder, name)
                inside = path.relative_to(root).as_posix()
                # _sysconfigdata depends on where Python was built, not on its version.
                if name.endswith('.py') and not name.startswith('_sysconfigdata'):
                    held_out = int(digest(inside)[:8], 16) % 100 < self.percent
                    if held_out == self.held_out:
                        chosen.append((inside, path))
        if not chosen:
            raise UserError(
                f'the standard library in {root} has no Python files to learn from; '
                'give data.train a file of your own'
            )
        return sorted(chosen)

    def key(self) -> str:
        return digest('stdlib 1', *(part for n, p in self.paths() for part in (n, _hash_file(p))))

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        for _, path in self.paths():
            data = path.read_bytes()
            # A file may declare another encoding than UTF-8 in its first lines (PEP 263).
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            text = data.decode(encoding, errors='replace')
            if text.strip():
                yield (text,)

    def where(self, index: int) -> str:
        return f'document {index} of the standard library'
