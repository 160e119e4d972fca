"""From ids to a batch on the mesh: the one place where data meets devices.

`Feed` decides once where a set lives. On the device: a batch is its ids alone, and the step gathers
the rows. In host memory or on disk: rows are fetched ahead in threads or in worker processes and
placed on the mesh. Every way gives the same batches in the same order.
"""

from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from jaxdl.api import Source
from jaxdl.core import mesh as mesh_lib
from jaxdl.core import pipeline
from jaxdl.core.ranges import CheckedSource
from jaxdl.errors import UserError

# A set goes to the device when it takes at most this share of a device's memory there.
DEVICE_SHARE = 0.2


class Feed:
    """One set, ready to be fetched in batches.

    Args:
        source: the examples.
        batch_size: rows of a batch over all processes.
        mesh: the devices.
        placement: 'device', 'host', 'stream' or 'auto'.
        ranges: bounds of integers, as `ranges.bounds_of` gives them; what breaks them is an error.
        name: of the set, for messages.

    Attributes:
        resident: the arrays of the set that live on the device, {} where none do.
        example: one row as the step sees it, {name: array}.
        mine: the places in a batch whose rows this process holds, int64 [rows].
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        mesh: jax.sharding.Mesh,
        *,
        placement: str = 'auto',
        ranges: Mapping[str, int] | None = None,
        name: str = 'train',
    ):
        if len(source) == 0:
            raise UserError('the data set is empty: give a split that holds examples')
        self.source = source = CheckedSource(source, ranges, name) if ranges else source
        self.batch_size = batch_size
        self.sharding = mesh_lib.batch_sharding(mesh)
        self.mine = mesh_lib.rows_here(self.sharding, batch_size)
        # Made once: a sharding takes longer to make than a small batch to send.
        self._places = [mesh_lib.batch_sharding(mesh, leading) for leading in range(3)]
        arrays = None if placement == 'stream' else source.in_memory()
        self.placement = _choose(arrays, mesh) if placement == 'auto' else placement
        if arrays is None and self.placement in ('device', 'host'):
            raise UserError(
                f"--config.placement={self.placement!r}: this data set does not fit in memory; use 'stream' or 'auto'"
            )
        self.resident: dict[str, jax.Array] = {}
        self._arrays = arrays if self.placement == 'host' else None
        if self.placement == 'device':
            self.resident = mesh_lib.put(arrays, mesh_lib.replicated(mesh))
        first = np.zeros(1, np.int64)
        rows = {'id': first.astype(np.int32), **self.fetch(first)}
        self._shapes = pipeline.check_rows(rows, 1, None)
        self._rows = rows
        whole = arrays if self.placement == 'device' and arrays is not None else {}
        self.example = {name: value[0] for name, value in {**rows, **whole}.items()}

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The rows as the host sends them: none of a set that lives on the device."""
        if self._arrays is not None:
            return {name: values[ids] for name, values in self._arrays.items()}
        return self.source.fetch(ids) if self.placement == 'stream' else {}

    def load(self, ids: np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The rows of one global batch [..., batch] that belong to this process, checked."""
        rows = pipeline.Load(self.fetch, lambda _: ids, self.mine, self._shapes)(0)
        return rows if mask is None else {**rows, 'mask': mask[self.mine]}

    def place(self, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The global batch, of the rows of this process; axes before that of the rows are not split."""
        leading = rows['id'].ndim - 1
        sharding = self._places[leading]
        if jax.process_count() == 1:
            return jax.device_put(rows, sharding)

        def globally(local):
            shape = (*local.shape[:leading], self.batch_size, *local.shape[leading + 1 :])

            def piece(index):
                start, stop, _ = index[leading].indices(self.batch_size)
                first = int(np.searchsorted(self.mine, start))
                return local[(*index[:leading], slice(first, first + stop - start))]

            return jax.make_array_from_callback(shape, sharding, piece)

        return jax.tree.map(globally, rows)

    def abstract(self, *, mask: bool) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of one batch on the mesh, as the step gets it."""
        rows = {**self._rows, 'mask': np.ones(1, np.float32)} if mask else self._rows
        return {
            name: jax.ShapeDtypeStruct(
                (self.batch_size, *value.shape[1:]), value.dtype, sharding=self.sharding
            )
            for name, value in rows.items()
        }

    # ---- the streams ----

    def training(
        self, ids: Callable[[int], np.ndarray], calls: int, *, ahead: int, workers: int = 0
    ) -> pipeline.Prefetch | pipeline.Workers | pipeline.Direct:
        """The rows for calls 0 … calls - 1 of the step, one by one from `next()`; `close()` ends it.

        `ids` gives the examples of a call, [..., batch]. `ahead` calls are prepared early, except
        of a set on the device; of a streamed set by `workers` processes, 0: by threads.
        """
        load = pipeline.Load(self.fetch, ids, self.mine, self._shapes)
        if self.placement == 'stream':
            load.fetch = self.source.fetch  # what a worker process gets holds no device
            return pipeline.Workers(load, 0, calls, ahead=ahead, workers=workers)
        if self.placement == 'device':  # a batch is its ids
            return pipeline.Direct(load, 0, calls)
        return pipeline.Prefetch(load, 0, calls, ahead)

    def evaluation(self, *, ahead: int) -> Iterator[dict[str, jax.Array]]:
        """Every example once, the last batch under a mask."""
        batches = list(pipeline.eval_batches(len(self.source), self.batch_size))
        fetch = pipeline.Prefetch(lambda i: self.load(*batches[i]), 0, len(batches), ahead)
        try:
            for _ in batches:
                yield self.place(fetch.next())
        finally:
            fetch.close()


def _choose(arrays: dict[str, np.ndarray] | None, mesh: jax.sharding.Mesh) -> str:
    if arrays is None:
        return 'stream'
    size = sum(values.nbytes for values in arrays.values())
    device = mesh.devices.flat[0]
    stats = device.memory_stats() if device.platform != 'cpu' else None
    limit = stats['bytes_limit'] if stats else 8 << 30
    return 'device' if size <= DEVICE_SHARE * limit else 'host'
