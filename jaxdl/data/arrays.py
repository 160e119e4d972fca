"""A data source that is a dictionary of arrays in memory; parts of sources."""

from collections.abc import Callable, Iterator

import numpy as np

from jaxdl.api import Source


class ArraySource(Source):
    """Rows of equally long arrays, each [examples, ...]; `in_memory` returns them as they are.

    The arrays become read-only: a batch is always a copy, so that no consumer can change the set.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f'the arrays must be equally long, not {lengths}')
        self._arrays = {}
        for name, array in arrays.items():
            view = array.view()
            view.flags.writeable = False
            self._arrays[name] = view
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes of the whole set."""
        return sum(array.nbytes for array in self._arrays.values())

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the rows `ids`, in that order, as new arrays [len(ids), ...]."""
        return {name: array[ids] for name, array in self._arrays.items()}

    def in_memory(self) -> dict[str, np.ndarray]:
        """Returns the whole set as read-only arrays."""
        return dict(self._arrays)


def slices(
    arrays: dict[str, dict[str, np.ndarray]], ranges: list[tuple[str, int, int]]
) -> ArraySource:
    """Joins ranges of whole splits; a single range shares their memory."""
    parts = [{n: a[start:stop] for n, a in arrays[split].items()} for split, start, stop in ranges]
    if len(parts) == 1:
        return ArraySource(parts[0])
    return ArraySource({n: np.concatenate([part[n] for part in parts]) for n in parts[0]})


def subset(source: Source, ids: np.ndarray) -> Source:
    """The examples `ids` (int64) of a source, in that order; in memory if the source is."""
    arrays = source.in_memory()
    if arrays is not None:
        return ArraySource({name: array[ids] for name, array in arrays.items()})
    return _Subset(source, ids)


class _Subset(Source):
    def __init__(self, source: Source, ids: np.ndarray):
        self._source, self._ids = source, ids

    def __len__(self) -> int:
        return len(self._ids)

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return self._source.fetch(self._ids[ids])

    def stages(self, ids: np.ndarray) -> Iterator[tuple[str, Callable[[], tuple[int, int]]]]:
        return self._source.stages(self._ids[ids])
