"""A data set and a task that fail on demand, for tests of what a run does then.

What happens is set in `FAULTS` and not in the config, so a run that failed can be resumed "repaired".
"""

import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxdl.api import DataSet
from jaxdl.core.pipeline import Order
from jaxdl.data.arrays import ArraySource
from jaxdl.metrics import Mean
from jaxdl.tasks.classification import Classification
from tests import small

TRAIN, EVAL, BATCH = 64, 24, 16
DIE_AT = 'TEST_DIE_AT'  # a worker process that fetches this example is killed
# {('train' or 'test', id): what to do with the rows when this example is fetched}
FAULTS: dict[tuple[str, int], Callable[[dict], dict]] = {}


def first_id(batch: int, seed: int = 0) -> int:
    """An id that is in batch number `batch` (and in no other one of the same epoch)."""
    return int(Order(TRAIN, BATCH, seed).batch(batch)[0])


class Source(ArraySource):
    def __init__(self, name: str, arrays: dict):
        super().__init__(arrays)
        self.name = name

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        rows = super().fetch(ids)
        for (name, number), fault in list(FAULTS.items()):
            if name == self.name and len(ids) > 1 and number in ids:
                rows = fault(rows)
        # Worker processes do not see FAULTS; they inherit the environment.
        if multiprocessing.parent_process() and int(os.environ.get(DIE_AT, '-1')) in ids:
            os.kill(os.getpid(), signal.SIGKILL)
        return rows


@dataclasses.dataclass
class Images(DataSet):
    """Noise with labels, fetched row by row (never resident), so every batch goes through `fetch`."""

    def _source(self, name: str, count: int, seed: int) -> Source:
        rng = np.random.default_rng(seed)
        return Source(
            name,
            {
                'image': rng.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8),
                'label': (np.arange(count) % 10).astype(np.int32),
            },
        )

    def train_source(self) -> Source:
        return self._source('train', TRAIN, 0)

    def eval_sources(self) -> dict[str, Source]:
        return {'test': self._source('test', EVAL, 1)}


@dataclasses.dataclass
class Fragile(Classification):
    """Its loss is not finite for batches that hold the example `bad`.

    Attributes:
        bad: -1: none.
    """

    bad: int = -1

    def metrics(self, outputs, batch):
        metrics = super().metrics(outputs, batch)
        wrong = jnp.where((batch['id'] == self.bad).any(), jnp.nan, 0.0)
        loss = metrics['loss']
        return {**metrics, 'loss': Mean(loss.total + wrong * outputs.sum(), loss.weight)}


def send(signal_number: int) -> Callable[[dict], dict]:
    """The fault that this process gets a signal; it does so once."""
    sent = []

    def fault(rows):
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), signal_number)
        return rows

    return fault


def config(**changes):
    values = dict(
        model=small.Cnn(channels=(4,), pools=1, dense=0, dropout=0.2),
        data=Images(),
        batch_size=BATCH,
        eval_batch_size=8,
        placement='stream',
        record_samples=True,
    )
    return small.config(**{**values, **changes})
