"""From ids to a batch on the mesh: the one place where data meets devices.

`Feed` decides once where a set lives. On the device: a batch is its ids alone, and the step gathers
the rows. In host memory or on disk: rows are fetched ahead in threads or in worker processes and
placed on the mesh. Every way gives the same batches in the same order.
"""

from collections.abc import Iterator, Mapping
from typing import Any

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
        self.mesh = mesh
        self.rows = mesh_lib.Rows(mesh_lib.batch_sharding(mesh), batch_size)
        self.placement = placement
        arrays = None if placement == 'stream' else source.in_memory()
        if placement == 'auto':
            self.placement = _choose(arrays, mesh)
        if arrays is None and self.placement in ('device', 'host'):
            raise UserError(
                f"--config.placement={self.placement!r}: this data set does not fit in memory; use 'stream' or 'auto'"
            )
        self.resident: dict[str, jax.Array] = {}
        self._arrays = arrays if self.placement == 'host' else None
        if self.placement == 'device':
            self.resident = mesh_lib.put(arrays, mesh_lib.replicated(mesh))
        self.example = {k: v[0] for k, v in self.host_rows(np.zeros(1, np.int64)).items()}
        if self.placement == 'device' and arrays is not None:
            self.example |= {k: v[0] for k, v in arrays.items()}
        self._shapes: dict[str, Any] | None = None

    def host_rows(self, ids: np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """What this process sends to its devices for these rows."""
        rows: dict[str, np.ndarray] = {'id': ids.astype(np.int32)}
        if self._arrays is not None:
            rows |= {name: values[ids] for name, values in self._arrays.items()}
        elif self.placement == 'stream':
            rows |= self.source.fetch(ids)
        if mask is not None:
            rows['mask'] = mask
        return rows

    def load(self, ids: np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The rows of one global batch that belong to this process, checked."""
        mine = self.rows.mine
        rows = self.host_rows(ids[mine], None if mask is None else mask[mine])
        shapes = pipeline.check_rows(rows, len(mine), self._shapes)
        self._shapes = self._shapes or shapes
        return rows

    def place(self, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The global batch on the mesh."""
        return self.rows.place(rows)

    def abstract(self, *, mask: bool) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch's shapes on the mesh, as the step gets it."""
        rows = self.host_rows(np.zeros(1, np.int64), np.ones(1, np.float32) if mask else None)
        return {
            name: jax.ShapeDtypeStruct(
                (self.batch_size, *value.shape[1:]), value.dtype, sharding=self.rows.sharding
            )
            for name, value in rows.items()
        }

    # ---- the streams ----

    def training(
        self,
        order: pipeline.Order,
        start: int,
        stop: int,
        *,
        ahead: int,
        calls: int = 1,
        workers: int = 0,
    ) -> 'Stream':
        """Batches start, start + 1, … stop - 1; `calls` of them stacked on a new first axis.

        `ahead` calls are prepared early, except of a set on the device; of a streamed set by
        `workers` processes, 0: by threads.
        """
        if self.placement == 'stream':
            ids = np.zeros(1, np.int64)
            shapes = pipeline.check_rows(self.host_rows(ids), 1, None)
            load = pipeline.Load(self.source, order, self.rows.mine, shapes)
            return Stream(
                self,
                pipeline.Workers(load, start, stop, ahead=ahead * calls, workers=workers),
                calls,
            )

        def produce(index: int) -> dict[str, np.ndarray]:
            return self.load(order.batch(index))

        if self.placement == 'device':  # a batch is its ids
            return Stream(self, pipeline.Direct(produce, start, stop), calls)
        return Stream(self, pipeline.Prefetch(produce, start, stop, ahead * calls), calls)

    def evaluation(self, *, ahead: int) -> Iterator[dict[str, jax.Array]]:
        """Every example once, the last batch under a mask."""
        batches = list(pipeline.eval_batches(len(self.source), self.batch_size))
        fetch = pipeline.Prefetch(lambda i: self.load(*batches[i]), 0, len(batches), ahead)
        try:
            for _ in batches:
                yield self.place(fetch.next())
        finally:
            fetch.close()


class Stream:
    """A running fetch of training batches; `next()` returns one on the mesh."""

    def __init__(self, feed: Feed, fetch: Any, calls: int):
        self.feed, self.fetch, self.calls = feed, fetch, calls

    def next_rows(self) -> dict[str, np.ndarray]:
        """The next batch of this process in host memory."""
        if self.calls == 1:
            return self.fetch.next()
        parts = [self.fetch.next() for _ in range(self.calls)]
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def place(self, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return self.feed.rows.place(rows, leading=0 if self.calls == 1 else 1)

    def close(self) -> None:
        self.fetch.close()


def _choose(arrays: dict[str, np.ndarray] | None, mesh: jax.sharding.Mesh) -> str:
    if arrays is None:
        return 'stream'
    size = sum(values.nbytes for values in arrays.values())
    device = mesh.devices.flat[0]
    stats = device.memory_stats() if device.platform != 'cpu' else None
    limit = stats['bytes_limit'] if stats else 8 << 30
    return 'device' if size <= DEVICE_SHARE * limit else 'host'
