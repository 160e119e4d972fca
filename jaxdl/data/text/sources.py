"""Where texts come from: local files, TensorFlow Datasets, the standard library's own source.

A text source is a field of a data set (`data.source`). It gives records: tuples of texts, one for
each part that the kind of data set asks for, such as ('text',) or ('source', 'target').
"""

import abc
import dataclasses
import glob
import io
import itertools
import operator
import os
import pathlib
import sysconfig
import tokenize
from collections.abc import Iterator
from typing import Any

from jaxdl.data import store
from jaxdl.data.splits import named_paths, resolve, split_name
from jaxdl.data.text import reading
from jaxdl.data.text.reading import LINE_LIMIT, digest
from jaxdl.data.valid import Valid
from jaxdl.errors import UserError, at_least, nearest, one_of
from jaxdl.files import expanded, parse_json

Parts = tuple[str, ...]


class Records(abc.ABC):
    """Tuples of texts, always in the same order."""

    @abc.abstractmethod
    def key(self) -> str:
        """A hash of everything that decides the records; of bytes, not of the paths of files."""

    @abc.abstractmethod
    def located(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yields (where it stands, for messages; the record)."""

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return (record for _, record in self.located())

    def where(self, index: int) -> str:
        """Where record `index` stands."""
        return next(itertools.islice(self.located(), index, None))[0]


@dataclasses.dataclass(frozen=True)
class HeldOut(Records):
    """The records that `valid` holds out, or those that stay."""

    records: Records
    valid: Valid
    held: bool

    def key(self) -> str:
        return digest('held 1', self.records.key(), self.valid.share, self.valid.seed, self.held)

    def located(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        found = False
        # A side for each record without an end, so only the records say how many there are.
        for held, item in zip(self.valid.sides(), self.records.located(), strict=False):
            if held == self.held:
                found = True
                yield item
        if not found:
            raise UserError(
                f'--config.data.valid.share={self.valid.share}: holds out '
                f'{"no" if self.held else "every"} training text; give another share or seed, or 0'
            )


class TextSource(abc.ABC):
    """What a text data set reads. `parts` are the names of what makes a record."""

    @abc.abstractmethod
    def check_parts(self, parts: Parts) -> None:
        """Raises ValueError where records of these parts cannot be made."""

    @abc.abstractmethod
    def train_records(self, parts: Parts) -> Records:
        """The training records."""

    @abc.abstractmethod
    def eval_records(self, parts: Parts) -> dict[str, Records]:
        """The records of each evaluation set by its name."""

    def given_records(self, path: pathlib.Path, parts: Parts) -> Records:
        """The records of a file that a user gives, one a line, or of a folder, one a file."""
        return TextFiles(documents='line').given_records(path, parts)


def _check_number(name: str, given: tuple, parts: Parts) -> None:
    if given and len(given) != len(parts):
        raise ValueError(f'source.{name}={given}: must name {len(parts)}: {", ".join(parts)}')


# ---- local files ----------------------------------------------------------------------------------


@dataclasses.dataclass
class TextFiles(TextSource):
    """Local files, also packed with gzip.

    The ending decides the format: `.jsonl` (or .ndjson) has one JSON object a line, of which
    `fields` are taken, and so are those of `.parquet`, `.arrow` and of a folder of Hugging Face's
    `save_to_disk`; `.tsv` has columns, of which `columns` are taken; all else is plain text with one
    part. Blank lines are skipped.

    Attributes:
        train: path or glob of the training files; `~` is the home folder; read in name order.
        evals: evaluation sets, each 'name=path'.
        fields: fields of a JSON line, or columns of a Parquet or Arrow file, that make a record, such as ('text',); empty: those named as the parts.
        columns: columns of a TSV that make a record, from 0; empty: the first ones.
        documents: what is one record of plain text: 'file', 'line', or 'paragraph' (up to a blank line).
        line_limit: bytes of the longest line; not for documents='file'.
    """

    train: str = ''
    evals: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    columns: tuple[int, ...] = ()
    documents: str = 'file'
    line_limit: int = LINE_LIMIT

    def check(self):
        if not self.train:
            raise ValueError(
                "train='': give the text, --config.data.source.train=FILE (.txt, .jsonl or .tsv, "
                'also .gz)'
            )
        named_paths(self.evals)
        one_of(self, documents=('file', 'line', 'paragraph'))
        at_least(self, line_limit=1)
        if min(self.columns, default=0) < 0:
            raise ValueError(f'columns={self.columns}: must be at least 0')

    def check_parts(self, parts: Parts) -> None:
        _check_number('fields', self.fields, parts)
        _check_number('columns', self.columns, parts)

    def train_records(self, parts: Parts) -> Records:
        return self._records(self.train, 'data.source.train', parts)

    def eval_records(self, parts: Parts) -> dict[str, Records]:
        return {
            name: self._records(path, f'data.source.evals {name}', parts)
            for name, path in named_paths(self.evals).items()
        }

    def given_records(self, path: pathlib.Path, parts: Parts) -> Records:
        """As for any source, with this one's fields and columns, the label's left out."""
        folder = path.is_dir()
        pattern = glob.escape(str(path)) + '/*' * folder
        fields = self.fields[: len(parts)] or parts
        columns = self.columns[: len(parts)] or tuple(range(len(parts)))
        documents = 'file' if folder else 'line'
        return FileRecords(pattern, 'the input', fields, columns, documents, self.line_limit)

    def _records(self, pattern: str, role: str, parts: Parts) -> Records:
        fields, columns = self.fields or parts, self.columns or tuple(range(len(parts)))
        return FileRecords(pattern, role, fields, columns, self.documents, self.line_limit)


@dataclasses.dataclass(frozen=True)
class FileRecords(Records):
    """Records of the files that match `pattern`, which stands in the setting `role`."""

    pattern: str
    role: str
    fields: tuple[str, ...]
    columns: tuple[int, ...]
    documents: str
    line_limit: int

    def paths(self) -> list[pathlib.Path]:
        """The files; raises UserError where there is none, or one is empty or of a wrong format."""
        if os.path.isdir(expanded(self.pattern)):
            from jaxdl.data.tables import files

            return files.find(self.pattern, self.role)
        found = reading.find(self.pattern, self.role)
        for path in found:
            if len(self.columns) > 1 and reading.format_of(path) == 'text':
                raise UserError(
                    f'{self.role}={self.pattern!r}: {path.name} is plain text, but '
                    f'{len(self.columns)} columns are needed; give a .tsv or .jsonl file, also .gz'
                )
        return found

    def key(self) -> str:
        parts: list[Any] = ['files 2', self.documents]
        for path in self.paths():
            kind = reading.format_of(path)
            taken = {'jsonl': self.fields, 'table': self.fields, 'tsv': self.columns}.get(kind)
            parts += [kind, reading.content_hash(path), taken]
        return digest(*parts)

    def located(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        found = False
        for path in self.paths():
            kind = reading.format_of(path)
            if kind == 'table':
                read = self._from_table(path)
            elif kind != 'text':
                read = self._parsed(path, self._from_json if kind == 'jsonl' else self._from_tsv)
            elif self.documents == 'file':
                # Files put one behind the other have their byte-order marks inside.
                text = reading.read_text(path).replace('\n\ufeff', '\n')
                read = [(str(path), (text,))] if text.strip() else []
            else:
                read = self._plain(path)
            for item in read:
                found = True
                yield item
        if not found:
            raise UserError(
                f'{self.role}={self.pattern!r}: the files hold no text, only blank lines'
            )

    def _plain(self, path: pathlib.Path) -> Iterator[tuple[str, tuple[str, ...]]]:
        held: list[str] = []
        place = ''
        for number, line in itertools.chain(reading.lines(path, self.line_limit), [(0, '')]):
            if line.strip():
                place = place if held else f'{path}:{number}'
                held.append(line)
            if held and (self.documents == 'line' or not line.strip()):
                yield place, ('\n'.join(held),)
                held = []

    def _parsed(self, path: pathlib.Path, parse: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
        for number, line in reading.lines(path, self.line_limit):
            if line.strip():
                place = f'{path}:{number}'
                yield place, parse(line, place)

    def _from_json(self, line: str, place: str) -> tuple[str, ...]:
        try:
            row = parse_json(line)
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
            record.append(_as_text(row[field], field, place))
        return tuple(record)

    def _from_table(self, path: pathlib.Path) -> Iterator[tuple[str, tuple[str, ...]]]:
        from jaxdl.data.tables import files

        table, row = files.read(path, self.fields), 0
        for batch in table.to_batches(max_chunksize=1024):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                place = f'{path} row {row}'
                yield place, tuple(map(_as_text, values, self.fields, itertools.repeat(place)))
                row += 1

    def _from_tsv(self, line: str, place: str) -> tuple[str, ...]:
        cells = line.split('\t')
        missing = [c for c in self.columns if c >= len(cells)]
        if missing:
            raise UserError(
                f'{place}: has {len(cells)} column{"s" if len(cells) > 1 else ""} separated by tabs; '
                f'column {missing[0]} (counted from 0) is missing'
            )
        return tuple(cells[c] for c in self.columns)


def _as_text(value: Any, field: str, place: str) -> str:
    """Text or a whole number as text; UserError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        shown = type(value).__name__ if isinstance(value, list | dict) else repr(value)
        raise UserError(f'{place}: field {field!r} is {shown:.40}, not text')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f'{place}: field {field!r} holds half a UTF-16 character') from None
    return value


# ---- in memory --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class GivenTexts(Records):
    """Texts of a program: strings, or one tuple of strings for each of several parts."""

    texts: tuple
    parts: Parts

    def key(self) -> str:
        return digest('given 1', *(part for record in self for part in record))

    def located(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        for number, text in enumerate(self.texts, 1):
            record = (text,) if isinstance(text, str) else tuple(text)
            if len(record) != len(self.parts) or not all(isinstance(x, str) for x in record):
                raise UserError(
                    f'text {number}: {text!r:.60} is not {" and ".join(self.parts)} as text'
                )
            yield f'text {number}', record


# ---- the standard library -------------------------------------------------------------------------


@dataclasses.dataclass
class StandardLibrary(TextSource):
    """The Python source of the running interpreter's standard library: needs no file, no network.

    A file is one document. The held-out files are the evaluation set 'valid'; which these are is
    decided by a hash of the name inside the library, so a file stays on its side whatever else is
    there. The text is that of this Python version: compare runs on the same one.

    Attributes:
        percent: share of the files that is held out.
        tests: also the library's own tests, which are about as large as the rest.
    """

    percent: int = 5
    tests: bool = False

    def check(self):
        if not 1 <= self.percent <= 50:
            raise ValueError(f'percent={self.percent}: must be from 1 to 50')

    def check_parts(self, parts: Parts) -> None:
        if len(parts) > 1:
            raise ValueError(f'source: the standard library has no {parts[1]} beside its text')

    def train_records(self, parts: Parts) -> Records:
        return LibraryRecords(held_out=False, percent=self.percent, tests=self.tests)

    def eval_records(self, parts: Parts) -> dict[str, Records]:
        return {'valid': LibraryRecords(held_out=True, percent=self.percent, tests=self.tests)}


@dataclasses.dataclass(frozen=True)
class LibraryRecords(Records):
    """One of the two parts of the standard library; see StandardLibrary."""

    held_out: bool
    percent: int = 5
    tests: bool = False

    def paths(self) -> list[tuple[str, pathlib.Path]]:
        """(name inside the library, path) of the chosen files, by name."""
        root = pathlib.Path(sysconfig.get_path('stdlib'))
        skipped = {'site-packages', 'dist-packages', '__pycache__'}
        if not self.tests:
            skipped |= {'test', 'tests', 'idle_test'}
        chosen = []
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in skipped]
            for name in names:
                path = pathlib.Path(folder, name)
                inside = path.relative_to(root).as_posix()
                # _sysconfigdata depends on where Python was built, not on its version.
                if name.endswith('.py') and not name.startswith('_sysconfigdata'):
                    held_out = int(digest(inside)[:8], 16) % 100 < self.percent
                    if held_out == self.held_out:
                        chosen.append((inside, path))
        if not chosen:
            raise UserError(
                f'the standard library in {root} has no Python files to learn from; '
                'give a text of your own: data.source=TextFiles(train=…)'
            )
        return sorted(chosen)

    def key(self) -> str:
        hashes = ((name, reading.content_hash(path)) for name, path in self.paths())
        return digest('stdlib 1', *(part for pair in hashes for part in pair))

    def located(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        for name, path in self.paths():
            with reading.opened(path) as file:
                data = file.read()
            # A file may declare another encoding than UTF-8 in its first lines (PEP 263).
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            text = data.decode(encoding, errors='replace')
            if text.strip():
                yield f'{name} of the standard library', (text,)


# ---- TensorFlow Datasets --------------------------------------------------------------------------


@dataclasses.dataclass
class TfdsText(TextSource):
    """A text set of TensorFlow Datasets, such as 'lm1b', 'wmt14_translate/de-en', 'imdb_reviews'.

    Attributes:
        name: the set's name and config.
        fields: features that make a record, 'a/b' for a nested one; empty: those named as the parts.
        train: split to train on; expressions such as 'train[:10%]' are possible.
        evals: evaluation splits; 'valid=train[90%:]' gives one a name.
        data_dir: where prepared data sets are kept; empty: $JAXDL_DATA or ~/.cache/jaxdl/data.
    """

    name: str = 'lm1b'
    fields: tuple[str, ...] = ()
    train: str = 'train'
    evals: tuple[str, ...] = ('test',)
    data_dir: str = ''

    def check(self):
        if len(dict(map(split_name, self.evals))) < len(self.evals):
            raise ValueError(f'evals={self.evals}: two evaluation sets have the same name')

    def check_parts(self, parts: Parts) -> None:
        _check_number('fields', self.fields, parts)

    def train_records(self, parts: Parts) -> Records:
        return self._records(self.train, parts)

    def eval_records(self, parts: Parts) -> dict[str, Records]:
        return {name: self._records(split, parts) for name, split in map(split_name, self.evals)}

    def _records(self, split: str, parts: Parts) -> Records:
        """Prepares the set first, with its official builder, if it was not prepared yet.

        Raises UserError where the set or the split does not exist.
        """
        from jaxdl.data import prepare

        root = store.data_dir(self.data_dir)
        builder = prepare.official_builder(self.name, root)
        if not pathlib.Path(builder.data_dir).is_dir():
            prepare.prepare_official(self.name, root)
            builder = prepare.official_builder(self.name, root)
        shards = {part: info.shard_lengths for part, info in builder.info.splits.items()}
        if shards:
            resolve(split, shards, dataset=self.name)
        try:
            examples = builder.as_data_source(split)
        except NotImplementedError:
            raise UserError(
                f'{self.name}: {builder.data_dir} is in a format without random access; remove it, '
                f'then: {store.prepare_command(self.name, root)}'
            ) from None
        if not len(examples):
            raise UserError(f'{self.name}: split {split!r} is empty')
        identity = f'{builder.info.full_name} {split}'
        return TfdsRecords(examples, identity, self.fields or parts)


@dataclasses.dataclass(frozen=True)
class TfdsRecords(Records):
    """Text features of one split of a TensorFlow Datasets set that has been prepared.

    Attributes:
        examples: random access to the examples, e.g. of tfds.data_source.
        identity: name, version and split; with the number of examples it decides the content.
        fields: features that make a record; 'a/b' is feature b of the nested feature a.
    """

    examples: Any
    identity: str
    fields: tuple[str, ...]

    def key(self) -> str:
        # The prepared files of a version never change, so they are not read again to be hashed.
        return digest('tfds 1', self.identity, len(self.examples), self.fields)

    def located(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        for index in range(len(self.examples)):
            place, row = self.where(index), self.examples[index]
            yield place, tuple(self._text(row, field, place) for field in self.fields)

    def where(self, index: int) -> str:
        return f'{self.identity} example {index}'

    def _text(self, row: Any, field: str, place: str) -> str:
        value = row
        for part in field.split('/'):
            if not isinstance(value, dict) or part not in value:
                names = list(value) if isinstance(value, dict) else []
                raise UserError(
                    f'{place}: has no feature {field!r}, only '
                    f'{", ".join(map(repr, names))}{nearest(part, names)}'
                )
            value = value[part]
        if isinstance(value, str):
            return value
        if isinstance(value, bytes):
            return reading.decode(value, place)
        try:
            return str(operator.index(value))
        except TypeError:
            raise UserError(f'{place}: feature {field!r} is no text') from None
