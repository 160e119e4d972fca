"""Files of tables, read by pyarrow: which there are, their columns, single rows of them."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdl.data.text import reading
from jaxdl.data.text.reading import digest
from jaxdl.errors import UserError, nearest
from jaxdl.files import expanded, read_object, replacing

if TYPE_CHECKING:  # slow to import, so only where a table is read
    import pyarrow as pa

KINDS = {
    '.parquet': 'parquet',
    '.arrow': 'arrow',
    '.feather': 'arrow',
    '.csv': 'csv',
    '.tsv': 'tsv',
    '.jsonl': 'jsonl',
    '.ndjson': 'jsonl',
}


def find(pattern: str, role: str) -> list[Path]:
    """The files that match a path or a pattern, by name; a folder of `save_to_disk`: its files.

    `role` is the setting that holds the pattern, for messages. Raises UserError where there is none.
    """
    folder = Path(expanded(pattern))
    if not folder.is_dir():
        return reading.find(pattern, role)
    if (folder / 'state.json').is_file():
        try:
            names = [
                entry['filename'] for entry in read_object(folder / 'state.json')['_data_files']
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f'{folder / "state.json"}: cannot be read ({error})') from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise UserError(f'{role}={pattern!r}: lacks {", ".join(missing) or "any data file"}')
        return [folder / name for name in names]
    inside = sorted(path.name for path in folder.iterdir())
    if (folder / 'dataset_dict.json').is_file():
        raise UserError(f'{role}={pattern!r}: holds several splits; give one, as {pattern}/train')
    kinds = sorted({Path(name).suffix for name in inside} & {*KINDS, '.tar'})
    example = f'{pattern}/*{kinds[0] if kinds else ".parquet"}'
    raise UserError(f'{role}={pattern!r}: a folder; give a file or a pattern such as {example}')


def kind_of(path: Path) -> str:
    """'parquet', 'arrow', 'csv', 'tsv' or 'jsonl' by the ending; UserError for any other."""
    name = path.stem if reading.is_packed(path) else path.name
    kind = KINDS.get(Path(name).suffix.lower())
    if kind is None or (reading.is_packed(path) and kind in ('parquet', 'arrow')):
        raise UserError(f'{path}: is no table by its ending; allowed are {", ".join(KINDS)}')
    return kind


def read(path: Path, columns: Sequence[str] | None = None) -> 'pa.Table':
    """Some columns of a file, or all; Arrow files are only mapped into memory.

    Raises UserError where the file is damaged or has no such column.
    """
    import pyarrow as pa

    kind = kind_of(path)
    try:
        table = _READERS[kind](path, columns)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f'{path}: cannot be read as {kind} ({reason[0]:.300})') from None
    missing = [name for name in columns or () if name not in table.column_names]
    if missing:
        raise UserError(
            f'{path}: has no column {missing[0]!r}, it has {", ".join(map(repr, table.column_names))}'
            f'{nearest(missing[0], table.column_names)}'
        )
    return table if columns is None else table.select(list(columns))


def _read_parquet(path: Path, columns: Sequence[str] | None) -> 'pa.Table':
    from pyarrow import parquet

    file = parquet.ParquetFile(path, memory_map=True)
    present = file.schema_arrow.names
    if columns is not None and not set(columns) <= set(present):
        return file.schema_arrow.empty_table()  # the caller names the missing one
    return file.read(columns=None if columns is None else list(columns))


def _read_arrow(path: Path, columns: Sequence[str] | None) -> 'pa.Table':
    import pyarrow as pa

    del columns
    with open(path, 'rb') as file:
        whole = file.read(6) == b'ARROW1'  # a file with an index at its end; else a stream
    mapped = pa.memory_map(str(path))
    return (pa.ipc.open_file if whole else pa.ipc.open_stream)(mapped).read_all()


def _read_csv(path: Path, columns: Sequence[str] | None) -> 'pa.Table':
    from pyarrow import csv

    del columns
    separator = '\t' if kind_of(path) == 'tsv' else ','
    # In one thread the messages give the number of the row.
    return csv.read_csv(
        path,
        read_options=csv.ReadOptions(use_threads=False),
        parse_options=csv.ParseOptions(delimiter=separator),
    )


def _read_jsonl(path: Path, columns: Sequence[str] | None) -> 'pa.Table':
    from pyarrow import json as pyarrow_json

    del columns
    return pyarrow_json.read_json(path)


_READERS = {
    'parquet': _read_parquet,
    'arrow': _read_arrow,
    'csv': _read_csv,
    'tsv': _read_csv,
    'jsonl': _read_jsonl,
}


class Columns:
    """Columns of files, the rows of one behind those of the other; each is read when it is needed.

    It can be sent to another process, which opens the files anew.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self._loaded: dict[str, tuple[list[Any], np.ndarray]] = {}
        self._starts: np.ndarray | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return Columns, (self.paths,)

    def _column(self, name: str) -> tuple[list[Any], np.ndarray]:
        """(the pieces of a column, the row at which each ends)."""
        with self._lock:
            if name not in self._loaded:
                tables = [read(path, [name]) for path in self.paths]
                self._starts = np.cumsum([0, *map(len, tables)])
                pieces = [p for table in tables for p in table.column(0).chunks if len(p)]
                self._loaded[name] = pieces, np.cumsum([len(piece) for piece in pieces])
            return self._loaded[name]

    def values(self, name: str) -> list[Any]:
        """A whole column as Python values."""
        return [value for piece in self._column(name)[0] for value in piece.to_pylist()]

    def value(self, name: str, row: int) -> Any:
        """One value of a column."""
        pieces, ends = self._column(name)
        piece = int(np.searchsorted(ends, row, side='right'))
        return pieces[piece][row - int(ends[piece]) + len(pieces[piece])].as_py()

    def where(self, row: int) -> str:
        """The file and the row in it, from 0."""
        if self._starts is None:
            return f'row {row}'
        file = int(np.searchsorted(self._starts, row, side='right')) - 1
        return f'{self.paths[file]} row {row - self._starts[file]}'

    def class_names(self, name: str) -> tuple[str, ...]:
        """The names of the classes that Hugging Face's `datasets` stored with a column, or ()."""
        path = self.paths[0]
        if kind_of(path) == 'parquet':
            from pyarrow import parquet

            metadata = parquet.read_schema(path).metadata
        elif kind_of(path) == 'arrow':
            metadata = read(path).schema.metadata
        else:
            return ()
        try:
            features = json.loads((metadata or {})[b'huggingface'])['info']['features']
            return tuple(map(str, features[name]['names']))
        except (KeyError, TypeError, ValueError):
            return ()


def mapped(paths: Sequence[Path], columns: Sequence[str], folder: Path) -> list[Path]:
    """The files, those that are not Arrow's copied as such to `folder`: single rows are then cheap.

    Raises OSError where the folder cannot be written.
    """
    import pyarrow as pa

    found = []
    for path in paths:
        if kind_of(path) != 'arrow':
            copy = folder / f'{digest("arrow 1", path, *stamp(path), *columns)[:32]}.arrow'
            if not copy.is_file():
                table = read(path, columns)
                with replacing(copy) as file, pa.ipc.new_file(file, table.schema) as writer:
                    writer.write_table(table, max_chunksize=1024)
            path = copy
        found.append(path)
    return found


def stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written: its size and its time."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns
