"""Split expressions such as 'train[:90%]+test', with the meaning that TFDS gives them.

TFDS has its own parser; this one exists so that sets which are read without TFDS (start-up time)
accept the same expressions. The tests compare the two.
"""

import re
from collections.abc import Mapping, Sequence

from jaxdl.errors import UserError, nearest

_PART = re.compile(r'(?P<name>[\w-]+)(\[(?P<slice>[^\[\]]*)\])?')
_BOUNDARY = re.compile(r'((?P<value>-?[\d_.]+)(?P<unit>%|shard)?)?')


def split_name(expression: str) -> tuple[str, str]:
    """Splits 'NAME=EXPRESSION' into both; without a name the expression is its own name."""
    name, equals, rest = expression.partition('=')
    return (name.strip(), rest.strip()) if equals else (expression, expression)


def named_paths(evals: Sequence[str]) -> dict[str, str]:
    """{name: path} of evaluation sets written as 'name=path'; raises ValueError for others."""
    found: dict[str, str] = {}
    for pair in evals:
        name, equals, path = pair.partition('=')
        if not (equals and path and re.fullmatch(r'[\w.-]+', name)):
            raise ValueError(f"evals: {pair!r} is not of the form 'name=path', as 'test=FILE'")
        if name in found:
            raise ValueError(f'evals: {name!r} is there twice; give each set a name of its own')
        found[name] = path
    return found


def resolve(
    expression: str, shards: Mapping[str, Sequence[int]], *, dataset: str
) -> list[tuple[str, int, int]]:
    """Returns the (split, start, stop) ranges that `expression` selects, in order.

    `shards` holds the examples in each shard of each split. Raises UserError where the expression
    does not parse, names an unknown split, reaches past the end or selects nothing.
    """
    ranges: list[tuple[str, int, int]] = []
    for part in re.split(r'\s*\+\s*', expression.strip()):
        match = _PART.fullmatch(part)
        if not match:
            raise UserError(
                f'{dataset}: {expression!r} is not a split expression; '
                "write for example 'train', 'train[:90%]', 'train[1000:]' or 'train+test'"
            )
        name, inner = match['name'], match['slice']
        if name == 'all' and inner is None:
            ranges += [(split, 0, sum(lengths)) for split, lengths in shards.items()]
            continue
        if name not in shards:
            raise UserError(
                f'{dataset} has no split {name!r}, it has {", ".join(sorted(shards))}'
                f'{nearest(name, shards)}'
            )
        start, stop = _bounds(inner, shards[name], f'{dataset}: {part!r}')
        ranges.append((name, start, max(start, stop)))
    if not any(stop > start for _, start, stop in ranges):
        raise UserError(f'{dataset}: {expression!r} selects no examples; widen the slice')
    return ranges


def _bounds(inner: str | None, shards: Sequence[int], where: str) -> tuple[int, int]:
    """The start and stop of the text between brackets, or of everything."""
    total = sum(shards)
    if inner is None:
        return 0, total
    ends = [_BOUNDARY.fullmatch(end) for end in inner.split(':')]
    if None in ends or len(ends) > 2 or not any(end and end['value'] for end in ends):
        raise UserError(f'{where}: the slice must be like [:90%], [1000:], [10%:20%] or [0shard]')
    values = [end['value'] if end else None for end in ends]
    unit = next((end['unit'] for end in ends if end and end['unit']), None)
    if len(ends) == 1:
        if unit != 'shard':
            raise UserError(f'{where}: a single example or percent is no slice; write [{inner}:]')
        values.append(str(int(values[0] or 0) + 1))
    try:
        start, stop = (_position(v, unit, i, shards, total) for i, v in enumerate(values))
    except ValueError:
        raise UserError(f'{where}: slice boundaries must be whole numbers or percents') from None
    if abs(start) > total or abs(stop) > total:
        raise UserError(f'{where}: the slice reaches past the {total} examples of the split')
    return (start + total if start < 0 else start), (stop + total if stop < 0 else stop)


def _position(
    value: str | None, unit: str | None, which: int, shards: Sequence[int], total: int
) -> int:
    """One boundary as a number of examples; `which` is 0 for the start and 1 for the stop."""
    if value is None:
        return total if which else 0
    if unit == '%':
        return round(float(value) * total / 100.0)
    number = int(value)
    if unit == 'shard':
        if which and number <= 0:
            number += len(shards)
        return sum(shards[:number])
    return number
