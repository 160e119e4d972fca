"""Labels as somebody wrote them, and the numbers 0 … n - 1 that a model is trained on.

The order of the classes: numeric where all labels are whole numbers, else by their characters.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxdl.errors import UserError, nearest, shortened

Where = Callable[[int], str]  # the place of row i, for messages


def label_texts(values: Sequence[Any] | np.ndarray, where: Where) -> np.ndarray:
    """The labels as texts, str [rows]. Raises UserError where one is no text and no whole number."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in 'iuUb':
        texts = [_text(value, where, row) for row, value in enumerate(values)]
        array = np.array(texts, np.str_)
    found = array.astype(np.str_)
    if len(found) and (found == '').any():
        raise UserError(f'{where(int(np.argmax(found == "")))}: the label is empty')
    return found


def _text(value: Any, where: Where, row: int) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors='replace').strip()
    if isinstance(value, str | int | np.integer):
        return str(value)
    raise UserError(
        f'{where(row)}: the label is {"missing" if value is None else shortened(repr(value), 40)}; '
        'it must be text or a whole number'
    )


def in_order(labels: np.ndarray) -> tuple[str, ...]:
    """The different labels, str [rows], in the order of their numbers."""
    names = np.unique(labels).tolist()
    if all(re.fullmatch(r'[+-]?\d{1,18}', name) for name in names):
        names.sort(key=lambda name: (int(name), name))
    return tuple(names)


def numbered(labels: np.ndarray, names: Sequence[str], where: Where) -> np.ndarray:
    """The place of each label among `names`, int32 [rows].

    Raises:
        UserError: a label is none of the names.
    """
    different, places = np.unique(labels, return_inverse=True)
    number = {name: place for place, name in enumerate(names)}
    found = np.array([number.get(name, -1) for name in different.tolist()], np.int32)
    if (found < 0).any():
        name = str(different[np.argmax(found < 0)])
        row = int(np.argmax(labels == name))
        raise UserError(
            f'{where(row)}: label {name!r} is none of the {len(names)} classes '
            f'({listed(names)}){nearest(name, names)}; it must be among the training examples or '
            'in data.classes'
        )
    return found[places.reshape(-1)]


def listed(names: Sequence[str], most: int = 5) -> str:
    """Some names, separated by commas."""
    more = ', …' if len(names) > most else ''
    return ', '.join(names[:most]) + more
