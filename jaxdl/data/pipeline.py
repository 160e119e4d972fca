"""Which examples make batch i, and how they are fetched ahead of the device.

Batch i is a pure function of (seed, i): epoch e is a permutation of the set keyed by (seed, e), the
epochs follow one another without a gap, and batch i is the next `batch_size` of that line. So a
resumed run needs only its step, on any number of processes, and no example is dropped.
"""

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from jaxdl.errors import UserError


class Source(Protocol):
    """A set of examples with random access."""

    def __len__(self) -> int: ...

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The rows `ids` (int64), in that order, as arrays with the same shapes and dtypes always."""
        ...

    def in_memory(self) -> dict[str, np.ndarray] | None:
        """The whole set as arrays if it is in memory, else None."""
        ...


@dataclasses.dataclass
class Order:
    """The endless line of shuffled epochs of `examples` ids.

    Attributes:
        examples: size of the set.
        batch_size: ids a batch.
        seed: decides the permutations.
    """

    examples: int
    batch_size: int
    seed: int

    def __post_init__(self):
        self._epochs: dict[int, np.ndarray] = {}

    def epoch(self, number: int) -> np.ndarray:
        """The permutation of epoch `number`."""
        if number not in self._epochs:
            if len(self._epochs) > 2:
                self._epochs.pop(min(self._epochs))
            generator = np.random.Generator(np.random.Philox(key=[self.seed, number]))
            dtype = np.int32 if self.examples < 2**31 else np.int64
            self._epochs[number] = generator.permutation(np.arange(self.examples, dtype=dtype))
        return self._epochs[number]

    def batch(self, index: int) -> np.ndarray:
        """The ids of batch `index`, int64 [batch_size]."""
        start = index * self.batch_size
        parts, wanted = [], self.batch_size
        while wanted:
            number, place = divmod(start, self.examples)
            part = self.epoch(number)[place : place + wanted]
            parts.append(part)
            start, wanted = start + len(part), wanted - len(part)
        return np.concatenate(parts).astype(np.int64)


def eval_batches(examples: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (ids, mask): each example once, the last batch filled up under a mask of zeros."""
    for start in range(0, examples, batch_size):
        ids = np.arange(start, start + batch_size)
        mask = (ids < examples).astype(np.float32)
        yield np.minimum(ids, examples - 1), mask


def check_rows(
    rows: dict[str, np.ndarray], count: int, shapes: dict[str, Any] | None
) -> dict[str, Any]:
    """Raises UserError where rows are missing or have another shape or dtype than the first ones."""
    found = {name: (value.shape[1:], value.dtype) for name, value in rows.items()}
    for name, value in rows.items():
        if len(value) != count:
            raise UserError(
                f'the data source ended early: {name!r} has {len(value)} of {count} rows; '
                'check the data set with python -m jaxdl.data.prepare'
            )
    if shapes is not None and found != shapes:
        changed = [n for n in {**shapes, **found} if shapes.get(n) != found.get(n)]
        name = changed[0]
        raise UserError(
            f'the data source changed {name!r} from {shapes.get(name)} to {found.get(name)}; '
            'every batch must have the same shapes and dtypes'
        )
    return found


class Prefetch:
    """Runs `produce(i)` for i = start, start + 1, … in a thread, at most `ahead` results early.

    An error in the thread is raised by the call that would have returned its result.
    """

    def __init__(self, produce: Callable[[int], Any], start: int, stop: int, ahead: int):
        self._queue: queue.Queue = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(produce, start, stop), name='prefetch', daemon=True
        )
        self._thread.start()

    def _run(self, produce, start, stop):
        for index in range(start, stop):
            try:
                item = (produce(index), None)
            except BaseException as error:
                item = (None, error)
            while not self._closed.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._closed.is_set() or item[1] is not None:
                return

    def next(self) -> Any:
        item, error = self._queue.get()
        if error is not None:
            raise error
        return item

    def close(self) -> None:
        self._closed.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join(timeout=10)
