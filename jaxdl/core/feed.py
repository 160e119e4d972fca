"""From ids to a batch on the mesh; no other module puts data onto devices.

`Feed` decides once where a set is kept. If it is kept on the device, a batch is only its ids and
the step gathers the rows. If it is in host memory or on disk, threads or worker processes fetch the
rows ahead and `Feed` places them on the mesh. The batches and their order are always the same.
"""

from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from jaxdl.api import Source
from jaxdl.core import mesh as mesh_lib
from jaxdl.core import pipeline
from jaxdl.core.ranges import CheckedSource
from jaxdl.errors import UserError

# A set is kept on the device if it needs at most this share of the device's memory.
DEVICE_SHARE = 0.2


class Feed:
    """One set, ready to be fetched in batches.

    Args:
        source: the examples.
        batch_size: rows of a batch over all processes.
        mesh: the devices.
        placement: 'device', 'host', 'stream' or 'auto'.
        ranges: bounds of integer arrays, from `ranges.bounds_of`; a value outside is an error.
        name: name of the set, for messages.

    Attributes:
        resident: the arrays of the set that are kept on the device, or {}.
        example: one row as the step sees it, {name: array}.
        mine: the positions in a batch of the rows that this process holds, int64 [rows].
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
        # Made once, because making a sharding takes longer than sending a small batch.
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
        """The arrays that the host sends for these ids; {} if the set is kept on the device."""
        if self._arrays is not None:
            return {name: values[ids] for name, values in self._arrays.items()}
        return self.source.fetch(ids) if self.placement == 'stream' else {}

    def load(self, ids: np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """This process's rows of the global batch `ids` [..., batch], checked."""
        rows = pipeline.Load(self.fetch, lambda _: ids, self.mine, self._shapes)(0)
        return rows if mask is None else {**rows, 'mask': mask[self.mine]}

    def place(self, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The global batch on the mesh from this process's rows; axes before them are not split."""
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
        """A stream whose `next()` gives the rows for calls 0 … calls - 1 of the step in turn.

        `ids` gives the examples of a call, [..., batch]. `ahead` calls are prepared early, unless
        the set is on the device. A streamed set is read by `workers` processes, or by threads if 0.
        `close()` ends the stream.
        """
        load = pipeline.Load(self.fetch, ids, self.mine, self._shapes)
        if self.placement == 'stream':
            load.fetch = self.source.fetch  # a Feed holds device arrays, which cannot be sent
            return pipeline.Workers(load, 0, calls, ahead=ahead, workers=workers)
        if self.placement == 'device':  # a batch is only its ids, so nothing is read ahead
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
