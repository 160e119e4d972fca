"""Checks that the labels and token ids of a data set are in the range that the task allows."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from jaxdl.api import Rows, Source, facts_of
from jaxdl.core.config import Config
from jaxdl.errors import UserError


def bounds_of(config: Config) -> dict[str, int]:
    """{name: bound} of the arrays of a row, as `check_ranges` takes it."""
    return config.task.ranges(facts_of(config.model).limits())


@dataclasses.dataclass
class CheckedSource(Source):
    """A source whose rows are checked: all at once if they are in memory, else batch by batch.

    Attributes:
        source: the examples.
        bounds: as in `check_ranges`.
        name: name of the set, for messages.
    """

    source: Source
    bounds: Mapping[str, int]
    name: str

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, ids: np.ndarray) -> Rows:
        rows = self.source.fetch(ids)
        check_ranges(rows, ids, self.bounds, self.name)
        return rows

    def in_memory(self) -> Rows | None:
        rows = self.source.in_memory()
        if rows is not None:
            check_ranges(rows, None, self.bounds, self.name)
        return rows

    def stages(self, ids: np.ndarray) -> Iterator[tuple[str, Callable[[], tuple[int, int]]]]:
        return self.source.stages(ids)


def check_ranges(rows: Rows, ids: np.ndarray | None, bounds: Mapping[str, int], where: str) -> None:
    """Raises UserError where an array holds anything but integers in 0 … bound - 1.

    Args:
        rows: arrays [examples, …]; only those named in `bounds` are checked.
        ids: the example of each row; None: row i is example i.
        bounds: the result of `Task.ranges`; names that the rows do not have are ignored.
        where: the name of the set.
    """
    for name, bound in bounds.items():
        values = np.asarray(rows.get(name, ()))
        if not values.size:
            continue
        if values.dtype.kind not in 'iu':
            raise UserError(
                f'{name!r} of the set {where!r} is {values.dtype}, it must hold integers from 0 to '
                f'{bound - 1}; convert it, such as with .astype(np.int32)'
            )
        if values.min() >= 0 and values.max() < bound:
            continue
        place = np.argwhere((values < 0) | (values >= bound))[0]
        example = place[0] if ids is None else ids[place[0]]
        raise UserError(
            f'{name} {values[tuple(place)]} of example {example} in the set {where!r}: '
            f'allowed are 0 to {bound - 1}\n'
            + (
                'count the labels from 0 and leave out examples without one; or give model and '
                'task as many classes as there are (num_classes)'
                if name in ('label', 'next_sentence')
                else "the model's vocabulary must be that of the tokenizer (model.vocab)"
            )
        )
