"""Which examples make batch i, and how they are fetched ahead of the device.

Batch i is a pure function of (seed, i). Epoch e is a permutation of the set keyed by (seed, e), the
epochs form one endless sequence, and batch i is its i-th piece of `batch_size` ids. So a resumed
run needs only its step, on any number of processes, and no example is dropped.
"""

import dataclasses
import gc
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxdl.api import Rows
from jaxdl.errors import UserError

RowShapes = dict[str, tuple[tuple[int, ...], np.dtype]]  # {name: (shape of one row, dtype)}


@dataclasses.dataclass
class Order:
    """The endless sequence of shuffled epochs of `examples` ids.

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
        """The permutation of epoch `number`; safe to call from several threads."""
        found = self._epochs.get(number)
        if found is None:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, number]))
            dtype = np.int32 if self.examples < 2**31 else np.int64
            found = generator.permutation(np.arange(self.examples, dtype=dtype))
            for old in sorted(self._epochs)[:-2]:
                self._epochs.pop(old, None)
            self._epochs[number] = found
        return found

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


@dataclasses.dataclass
class CallIds:
    """The ids of the examples that each call of the compiled step is trained on.

    Attributes:
        orders: (order, number of its first batch) of each run.
        calls: batches that one call takes in turn; their axis is left out if it is 1.
        together: whether several runs share the program; otherwise the runs axis is left out.
    """

    orders: list[tuple[Order, int]]
    calls: int = 1
    together: bool = False

    def __call__(self, call: int) -> np.ndarray:
        """int64 [runs, calls, batch_size], without the axes that are left out."""
        runs = []
        for order, first in self.orders:
            start = first + call * self.calls
            batches = [order.batch(start + index) for index in range(self.calls)]
            runs.append(np.stack(batches) if self.calls > 1 else batches[0])
        return np.stack(runs) if self.together else runs[0]


def eval_batches(examples: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (ids, mask): each example once; rows that fill up the last batch have mask 0."""
    for start in range(0, examples, batch_size):
        ids = np.arange(start, start + batch_size)
        mask = (ids < examples).astype(np.float32)
        yield np.minimum(ids, examples - 1), mask


def check_rows(rows: dict[str, np.ndarray], count: int, shapes: RowShapes | None) -> RowShapes:
    """Raises UserError where rows are missing, or differ from `shapes` in shape or dtype."""
    found = {name: (value.shape[1:], value.dtype) for name, value in rows.items()}
    for name, value in rows.items():
        if len(value) != count:
            raise UserError(
                f'the data source ended early: {name!r} has {len(value)} of {count} rows; '
                'check the data set with python -m jaxdl prepare'
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

    def __init__(self, produce: Callable[[int], Rows], start: int, stop: int, ahead: int):
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

    def next(self) -> Rows:
        item, error = self._queue.get()
        if error is not None:
            raise error
        return item

    def close(self) -> None:
        self._closed.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join(timeout=10)


class Direct:
    """Calls `produce(i)` for i = start, start + 1, … on demand, with the methods of Prefetch.

    For work that is shorter than handing its result over from another thread.
    """

    def __init__(self, produce: Callable[[int], Rows], start: int, stop: int):
        self._produce, self._indices = produce, iter(range(start, stop))

    def next(self) -> Rows:
        return self._produce(next(self._indices))

    def close(self) -> None:
        pass


@dataclasses.dataclass
class Load:
    """Fetches the rows of a call; it can be sent to another process.

    Attributes:
        fetch: gives the rows of ids [n] as arrays [n, …].
        ids: gives the ids of call i, [..., batch].
        mine: positions in a batch that this process of the run holds, int64 [rows].
        shapes: shapes and dtypes that the rows must have, as returned by `check_rows`.
    """

    fetch: Callable[[np.ndarray], dict[str, np.ndarray]]
    ids: Callable[[int], np.ndarray]
    mine: np.ndarray
    shapes: RowShapes

    def __call__(self, call: int) -> dict[str, np.ndarray]:
        ids = self.ids(int(call))[..., self.mine]
        flat = ids.reshape(-1)
        rows = {'id': flat.astype(np.int32), **self.fetch(flat)}
        check_rows(rows, len(flat), self.shapes)
        return {name: value.reshape(*ids.shape, *value.shape[1:]) for name, value in rows.items()}


class Workers:
    """Does the same as `Prefetch` by Grain, in worker processes or, with workers=0, in threads.

    Batches come in order, whatever the number of workers. An error in a worker is raised by the
    call that would have returned its result.

    Args:
        load: fetches the rows of batch i.
        start: number of the first batch.
        stop: number of the last batch plus one.
        ahead: the least number of batches prepared early.
        workers: processes; 0: threads of this process.
    """

    def __init__(self, load: Load, start: int, stop: int, *, ahead: int, workers: int = 0):
        import absl.flags
        import grain

        if not absl.flags.FLAGS.is_parsed():
            absl.flags.FLAGS.mark_as_parsed()  # Grain reads absl flags when it starts workers
        workers = min(workers, max(stop - start, 0))
        # A source decodes one batch in several threads; a second batch keeps all of them busy.
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=max(2, ahead))
        if workers:
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        data = grain.MapDataset.range(start, stop).map(load).to_iter_dataset(options)
        if workers:
            each = max(1, -(-ahead // workers))
            processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=each)
            data = data.mp_prefetch(processes, worker_init_fn=_begin_worker)
        self._iterator: Any = iter(data)
        self._shared = bool(workers)

    def next(self) -> Rows:
        rows = next(self._iterator)
        # Worker processes send arrays in shared memory. A device array on a CPU may use the memory
        # of its host array, and would keep it beyond the end of the process, which then warns.
        return {name: np.array(value) for name, value in rows.items()} if self._shared else rows

    def close(self) -> None:
        """Ends threads and processes and frees what they hold."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()
            del iterator
            gc.collect()  # frees the shared memory of batches that were never read


def _begin_worker(index: int, count: int) -> None:
    """Makes a worker ignore the signals meant for the training process, and end when that ends."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name='parent', daemon=True).start()
