"""The algebra of a sweep: lists of override dicts, and ranges to draw from.

A point is a dict {field: value} of overrides, written as on the command line without '--config.':
{'optimizer.learning_rate': 0.01}. The key 'config' names another config file or variant for that
point. A list of points is a plain list, so `+` and comprehensions work on it too.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdl.errors import UserError

Point = dict[str, Any]


def plain(value: Any) -> Any:
    """A value of an override with numpy's numbers turned into Python's, exactly.

    Raises:
        ValueError: it is not a number, text, boolean or None, nor a list or tuple of these.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) in (list, tuple):
        return tuple(plain(item) for item in value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(
        f'{repr(value)[:60]} is a {type(value).__name__}; '
        'allowed are numbers, text, True, False, None, and lists or tuples of these'
    )


def plain_point(point: Mapping[str, Any]) -> Point:
    """A point with plain values.

    Raises:
        ValueError: it names a field whose value is of another kind.
    """
    found = {}
    if not isinstance(point, Mapping):
        raise ValueError(f'a point is a dict of overrides, not {point!r}')
    for field, value in point.items():
        try:
            found[field] = plain(value)
        except ValueError as error:
            raise ValueError(f'{field!r}: {error}') from None
    return found


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers between `low` and `high`, both included.

    Attributes:
        low: smallest value.
        high: largest value.
        log: whether draws are uniform in the logarithm.
        whole: integers only.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self):
        name = 'log_uniform' if self.log else 'integers' if self.whole else 'uniform'
        shown = f'{name}({self.low!r}, {self.high!r})'
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f'{shown}: low must be below high, both finite')
        if self.log and self.low <= 0:
            raise UserError(f'{shown}: a logarithmic range must start above 0')

    def draw(self, generator: random.Random) -> float | int:
        """One value."""
        if self.whole and not self.log:
            return generator.randint(int(self.low), int(self.high))
        if self.log:
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = generator.uniform(self.low, self.high)
        value = min(max(value, self.low), self.high)
        # Four significant digits are enough for a hyper-parameter, and easy to read and type.
        return round(value) if self.whole else min(max(float(f'{value:.4g}'), self.low), self.high)


@dataclasses.dataclass(frozen=True)
class Choices:
    """One of a few values.

    Attributes:
        values: the values to choose from.
    """

    values: tuple

    def draw(self, generator: random.Random) -> Any:
        return self.values[generator.randrange(len(self.values))]


def uniform(low: float, high: float) -> Range:
    """A float between `low` and `high`."""
    return Range(float(low), float(high))


def log_uniform(low: float, high: float) -> Range:
    """A float between `low` and `high`, uniform in its logarithm."""
    return Range(float(low), float(high), log=True)


def integers(low: int, high: int, *, log: bool = False) -> Range:
    """An integer from `low` to `high`, both included."""
    for value in (low, high):
        if value != int(value):
            raise UserError(f'integers({low!r}, {high!r}): {value!r} is no whole number')
    return Range(int(low), int(high), log=log, whole=True)


def choices(values: Sequence) -> Choices:
    """One of `values`."""
    return Choices(tuple(_columns('choices', {'values': values})['values']))


# ---- lists of points ----------------------------------------------------------------------------


def grid(fields: Mapping[str, Sequence]) -> list[Point]:
    """Every combination; the last field varies fastest."""
    columns = _columns('grid', fields)
    return [dict(zip(columns, row, strict=True)) for row in itertools.product(*columns.values())]


def zipped(fields: Mapping[str, Sequence]) -> list[Point]:
    """The first values of all fields, then the second values, …; all lists must be equally long."""
    columns = _columns('zipped', fields)
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        counts = ', '.join(f'{name} has {size}' for name, size in sizes.items())
        raise UserError(f'zipped: all fields need equally many values, but {counts}')
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def chain(*lists: Sequence[Point]) -> list[Point]:
    """One list after the other."""
    return [dict(point) for points in lists for point in points]


def product(*lists: Sequence[Point]) -> list[Point]:
    """Every point of the first list merged with every point of the second, …; later ones win."""
    found = []
    for parts in itertools.product(*lists):
        merged: Point = {}
        for part in parts:
            merged |= part
        found.append(merged)
    return found


def sample(count: int, fields: Mapping[str, Any], *, seed: int = 0) -> list[Point]:
    """`count` points drawn at random, the same ones for the same `seed`.

    A field is a range, `choices`, or a plain value that is the same in every point.
    """
    if count < 1:
        raise UserError(f'sample({count}, …): draws at least 1 point')
    generator = random.Random(seed)
    found: list[Point] = []
    for _ in range(100 * count):
        point = {
            name: kind.draw(generator) if isinstance(kind, Range | Choices) else kind
            for name, kind in fields.items()
        }
        if point not in found:
            found.append(point)
        if len(found) == count:
            return found
    raise UserError(f'sample({count}, …): these ranges hold only {len(found)} different points')


def _columns(name: str, fields: Mapping[str, Sequence]) -> dict[str, list]:
    columns = {}
    for field, values in fields.items():
        if isinstance(values, str) or not hasattr(values, '__iter__'):
            raise UserError(
                f'{name}: {field!r} needs a list of values, not {values!r}; write [{values!r}]'
            )
        try:
            columns[field] = [plain(value) for value in values]
        except ValueError as error:
            raise UserError(f'{name}: {field!r}: {error}') from None
        if not columns[field]:
            raise UserError(f'{name}: {field!r} has no values')
    return columns
