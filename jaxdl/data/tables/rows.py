"""Rows of tables as vectors of features."""

import abc
import dataclasses
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxdl.api import Inputs, Rows, Source
from jaxdl.data import classes
from jaxdl.data.arrays import ArraySource
from jaxdl.data.kept_classes import KeptClasses
from jaxdl.data.splits import named_paths
from jaxdl.data.tables import files
from jaxdl.data.text import reading
from jaxdl.data.valid import Valid
from jaxdl.errors import UserError, nearest, one_of

MOST_TEXTS = 100  # different texts of a column that become features


@dataclasses.dataclass
class Columns:
    """The columns of a set: floats with NaN where a value is missing, or texts with None."""

    values: dict[str, np.ndarray | list]
    where: classes.Where

    def __len__(self) -> int:
        return len(next(iter(self.values.values()), ()))


@dataclasses.dataclass(kw_only=True)
class FeatureRows(KeptClasses, abc.ABC):
    """'features' float32 [batch, features] and 'label' int32 [batch] of tables.

    A column of numbers is one feature, less the mean and divided by the standard deviation of the
    training rows. A column of texts becomes one feature of 0 or 1 for each text that the training
    rows have, by their characters; another text is all zeros. The run keeps both.

    Attributes:
        label: the column of the labels.
        features: the columns of the features; empty: all others.
        missing: what an empty cell is: an 'error', or the 'mean' of a number's column and no text.
        classes: names of the labels in the order of their numbers; empty: those of the training rows, in the order of jaxdl.data.classes.
        valid: the part of the training rows that is held out as the set 'valid'.
    """

    label: str = 'label'
    features: tuple[str, ...] = ()
    missing: str = 'error'
    classes: tuple[str, ...] = ()
    valid: Valid = dataclasses.field(default_factory=Valid)

    def check(self):
        one_of(self, missing=('error', 'mean'))
        if self.label in self.features:
            raise ValueError(f'features={self.features}: the label is among them')
        self.check_classes()

    @abc.abstractmethod
    def eval_names(self) -> tuple[str, ...]:
        """The evaluation sets besides those that are held out."""

    @abc.abstractmethod
    def columns(self, name: str) -> Columns:
        """The columns of 'train' or of an evaluation set."""

    def read_classes(self) -> tuple[str, ...]:
        return classes.in_order(self._label_texts(self.columns('train')))

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), 'columns': self._encoding()}

    def train_source(self) -> Source:
        return self.valid.train(self._source('train'))

    def eval_sources(self) -> dict[str, Source]:
        sets = {name: self._source(name) for name in self.eval_names()}
        return self.valid.evals(lambda: self._source('train'), sets)

    def inputs_from(self, given: Any, row: Rows) -> Inputs:
        """The rows of a table file, or of several; a column of labels is not needed."""
        paths = [Path(given)] if isinstance(given, str | os.PathLike) else list(map(Path, given))
        columns = file_columns(paths, [name for name, *_ in self._encoding()])
        names = [columns.where(index) for index in range(len(columns))]
        if not names:
            raise UserError(f'{paths[0]}: holds no rows')
        return Inputs(ArraySource({'features': self.encoded(columns)}), names)

    def _label_texts(self, columns: Columns) -> np.ndarray:
        values = _column(columns, self.label)
        if isinstance(values, np.ndarray):
            whole = np.isfinite(values) & (values == np.round(values))
            if not whole.all():
                row = int(np.argmin(whole))
                raise UserError(
                    f'{columns.where(row)}: label {values[row]:g} is no whole number and no text'
                )
            values = values.astype(np.int64)
        return classes.label_texts(values, columns.where)

    def _encoding(self) -> list[list]:
        """[column, mean, standard deviation] or [column, texts] of each column of features."""
        if 'columns' in self._recalled:
            return self._recalled['columns']
        columns = self.columns('train')
        stay = self.valid.ids(len(columns))[0]
        found: list[list] = []
        for name in self.features or [n for n in columns.values if n != self.label]:
            values = _column(columns, name)
            if isinstance(values, np.ndarray):
                known = values[stay][np.isfinite(values[stay])]
                mean, std = (known.mean(), known.std()) if len(known) else (0.0, 1.0)
                found.append([name, float(mean), float(std) or 1.0])
                continue
            texts = sorted({text for text in values if text is not None})
            if len(texts) > MOST_TEXTS:
                raise UserError(
                    f'column {name!r} has {len(texts)} different texts; if it only names the rows, '
                    f'leave it out: --config.data.features, at most {MOST_TEXTS} become features'
                )
            found.append([name, texts])
        if not found:
            raise UserError(f'there is no column besides the label {self.label!r}')
        return found

    def _source(self, name: str) -> Source:
        columns = self.columns(name)
        if not len(columns):
            raise UserError(f'the set {name!r} holds no rows')
        label = classes.numbered(self._label_texts(columns), self.class_names(), columns.where)
        return ArraySource({'features': self.encoded(columns), 'label': label})

    def encoded(self, columns: Columns) -> np.ndarray:
        """The features of rows, float32 [rows, features], by the means and texts of the training rows."""
        return np.concatenate([self._encoded(columns, *entry) for entry in self._encoding()], 1)

    def _encoded(self, columns: Columns, name: str, *how: Any) -> np.ndarray:
        """float32 [rows, features] of one column."""
        values = _column(columns, name)
        numbers = isinstance(values, np.ndarray)
        if numbers is not (len(how) == 2):
            kind = 'numbers' if len(how) == 2 else 'texts'
            row = 0 if numbers else next(i for i, v in enumerate(values) if v is not None)
            raise UserError(
                f'{columns.where(row)}: column {name!r} has {values[row]!r:.40}; the training rows '
                f'have {kind} there'
            )
        missing = ~np.isfinite(values) if numbers else np.array([v is None for v in values])
        if self.missing == 'error' and missing.any():
            raise UserError(
                f'{columns.where(int(np.argmax(missing)))}: column {name!r} is empty or not finite, as '
                f'in {missing.sum()} rows; fill it in, or give --config.data.missing=mean'
            )
        if isinstance(values, np.ndarray):
            mean, std = how
            scaled = np.where(missing, 0.0, (values - mean) / std)
            return scaled.astype(np.float32)[:, None]
        place = {text: index for index, text in enumerate(how[0])}
        found = np.zeros((len(values), len(place)), np.float32)
        for row, text in enumerate(values):
            if text in place:
                found[row, place[text]] = 1
        return found


def _column(columns: Columns, name: str) -> np.ndarray | list:
    if name not in columns.values:
        known = list(columns.values)
        raise UserError(
            f'{columns.where(0)}: there is no column {name!r}, only '
            f'{", ".join(map(repr, known[:20]))}{nearest(name, known)}; set data.label and '
            'data.features'
        )
    return columns.values[name]


# ---- files ------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Table(FeatureRows):
    """Rows of CSV, TSV, JSONL, Parquet or Arrow files; the columns of all files are the same.

    Attributes:
        train: path or glob of the training files; `~` is the home folder; read in name order.
        evals: evaluation sets, each 'name=path'.
    """

    places: ClassVar = ('train', 'evals')

    train: str = ''
    evals: tuple[str, ...] = ()

    def check(self):
        if not self.train:
            raise ValueError("train='': give the table, --config.data.train=FILE.csv")
        named_paths(self.evals)
        super().check()

    def eval_names(self) -> tuple[str, ...]:
        return tuple(named_paths(self.evals))

    def _paths(self, name: str) -> list[Path]:
        if name == 'train':
            return files.find(self.train, 'data.train')
        return files.find(named_paths(self.evals)[name], f'data.evals {name}')

    def fingerprint(self, *, train: bool = True) -> dict[str, str]:
        sets = ('train', *self.eval_names()) if train else self.eval_names()
        return {
            name if name == 'train' else f'eval/{name}': reading.digest(
                *map(reading.content_hash, self._paths(name))
            )
            for name in sets
        }

    def columns(self, name: str) -> Columns:
        wanted = (*self.features, self.label) if self.features else ()
        return file_columns(self._paths(name), wanted)


def file_columns(paths: Sequence[Path], wanted: Sequence[str] = ()) -> Columns:
    """The columns of tables, the rows of one behind those of the other; those `wanted`, or all."""
    tables = [files.read(path) for path in paths]
    first = tables[0].column_names
    for path, table in zip(paths, tables, strict=True):
        if odd := set(table.column_names) ^ set(first):
            raise UserError(f'{path}: column {min(odd)!r} is only there or only in {paths[0]}')
    ends = np.cumsum([len(table) for table in tables])

    def where(row: int) -> str:
        file = min(int(np.searchsorted(ends, row, side='right')), len(paths) - 1)
        return f'{paths[file]} row {row - int(ends[file]) + len(tables[file]) + 1}'

    known = [name for name in wanted or first if name in first]
    values = {name: _joined([t.column(name) for t in tables], name, paths[0]) for name in known}
    return Columns(values, where)


def _joined(parts: Sequence[Any], name: str, path: Path) -> np.ndarray | list:
    """Columns of pyarrow, one behind the other."""
    import pyarrow as pa

    types = pa.types
    found: list[Any] = []
    for part in parts:
        kind = part.type.value_type if types.is_dictionary(part.type) else part.type
        if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
            if types.is_boolean(kind):
                part = part.cast(pa.int8())
            found.append(part.cast(pa.float64(), safe=False).to_numpy())
        elif types.is_string(kind) or types.is_large_string(kind):
            found.append([text or None for text in part.to_pylist()])
        elif types.is_null(kind):
            found.append(np.full(len(part), math.nan))
        else:
            raise UserError(
                f'{path}: column {name!r} is of the type {kind}, no number and no text; leave it out '
                'with --config.data.features'
            )
    if all(isinstance(part, np.ndarray) for part in found):
        return np.concatenate(found)
    texts: list[str | None] = []
    for part in found:
        if isinstance(part, np.ndarray) and not np.isnan(part).all():
            raise UserError(
                f'{path}: column {name!r} holds numbers in one file and texts in another'
            )
        texts += [None] * len(part) if isinstance(part, np.ndarray) else part
    return texts


# ---- what scikit-learn ships ----------------------------------------------------------------------------

_SHIPPED: Mapping[str, str] = {
    'iris': 'iris.csv',
    'wine': 'wine_data.csv',
    'breast_cancer': 'breast_cancer.csv',
}


@dataclasses.dataclass
class ShippedTable(FeatureRows):
    """One of the tables that scikit-learn ships; every fifth row (index % 5 == 4) is the test set.

    Attributes:
        name: 'iris', 'wine' or 'breast_cancer'.
    """

    name: str = 'breast_cancer'

    def check(self):
        one_of(self, name=_SHIPPED)
        super().check()

    def eval_names(self) -> tuple[str, ...]:
        return ('test',)

    def columns(self, name: str) -> Columns:
        spec = importlib.util.find_spec('sklearn')  # finds the folder, imports nothing
        if spec is None or spec.origin is None:
            raise UserError(f'{self.name}: comes with scikit-learn; pip install scikit-learn')
        path = Path(spec.origin).parent / 'datasets' / 'data' / _SHIPPED[self.name]
        try:
            head = path.read_text().partition('\n')[0].split(',')
            table = np.loadtxt(path, delimiter=',', skiprows=1)
        except (OSError, ValueError) as error:
            raise UserError(f'{path}: is not the file that scikit-learn ships ({error})') from None
        rows = np.flatnonzero((np.arange(len(table)) % 5 == 4) == (name == 'test'))
        values: dict[str, np.ndarray | list] = {
            f'feature_{index}': table[rows, index] for index in range(table.shape[1] - 1)
        }
        values['label'] = [head[2 + int(number)] for number in table[rows, -1]]
        return Columns(values, lambda row: f'{path} row {rows[row] + 1}')
