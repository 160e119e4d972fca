"""Predictions as files: a table (.csv), an object a line (.jsonl) or arrays (.npz)."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxdl import files
from jaxdl.errors import UserError, nearest
from jaxdl.predict.predictor import NAMES, named

FORMATS = ('csv', 'jsonl', 'npz')


def format_of(path: str) -> str:
    """The format by the ending of a file's name. Raises UserError for any other."""
    ending = path.rpartition('.')[2] if '.' in path else ''
    if ending not in FORMATS:
        raise UserError(
            f'--out={path}: the ending says the format, one of .csv, .jsonl and .npz'
            f'{nearest(ending, FORMATS)}'
        )
    return ending


def encoded(found: dict[str, np.ndarray], class_names: Sequence[str], kind: str) -> bytes:
    """The predictions of Predictor.predict in a format of FORMATS.

    In the table a prediction of several numbers takes as many columns, one a class where there are
    as many; .npz keeps the arrays, labels as numbers, and 'classes' if they have names.
    """
    if kind == 'npz':
        arrays = {k: v.astype(str) if v.dtype == object else v for k, v in found.items()}
        if class_names:
            arrays['classes'] = np.array(class_names)
        data = io.BytesIO()
        np.savez_compressed(data, allow_pickle=False, **arrays)
        return data.getvalue()
    table = named(found, class_names)
    count = len(next(iter(table.values())))
    table = {NAMES: np.arange(count), **table}
    if kind == 'jsonl':
        rows = ({k: _plain(v[i], class_names) for k, v in table.items()} for i in range(count))
        text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
    else:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator='\n')
        columns = [c for name, values in table.items() for c in _columns(name, values, class_names)]
        writer.writerow([title for title, _ in columns])
        writer.writerows(zip(*(values.tolist() for _, values in columns), strict=True))
        text = out.getvalue()
    return text.encode(errors='surrogateescape')


def _columns(
    name: str, values: np.ndarray, class_names: Sequence[str]
) -> Iterator[tuple[str, np.ndarray]]:
    if values.ndim == 1:
        yield name, _short(values)
        return
    flat = values.reshape(len(values), -1)
    titles = class_names if len(class_names) == flat.shape[1] else range(flat.shape[1])
    for title, column in zip(titles, flat.T, strict=True):
        yield f'{name}.{title}', _short(column)


def _short(values: np.ndarray) -> np.ndarray:
    """Floats with the digits that float32 has."""
    if values.dtype.kind != 'f':
        return values
    return np.array([float(str(value)) for value in values.astype(np.float32)], object)


def _plain(value: Any, class_names: Sequence[str]) -> Any:
    array = np.asarray(value)
    if array.dtype.kind == 'f':
        array = _short(array.reshape(-1)).reshape(array.shape)
        array[array != array] = None  # JSON has no nan
    plain = array.tolist()
    if array.ndim == 1 and len(class_names) == len(array):
        return dict(zip(class_names, plain, strict=True))
    return plain


def write(path: str, found: dict[str, np.ndarray], class_names: Sequence[str]) -> None:
    """Writes a file in the format that its ending says. Raises UserError where it cannot."""
    data = encoded(found, class_names, format_of(path))
    try:
        files.write_bytes(path, data)
    except OSError as error:
        raise UserError(f'--out={path}: {error.strerror or error}') from None
