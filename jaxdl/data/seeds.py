"""The data of reinforcement learning: seeds, since environments make the examples themselves."""

import dataclasses

import numpy as np

from jaxdl.api import DataSet, Source
from jaxdl.data.arrays import ArraySource
from jaxdl.errors import at_least


@dataclasses.dataclass
class Seeds(DataSet):
    """A row of the training set is a number; one of 'episodes' is the seed of a full episode.

    A training batch has as many rows as there are environments, and only their number counts. The
    evaluation set holds 'seed' uint32 [] and 'place' uint8 [episodes], which is 1 at the row's own
    place: with it a metric can hold a value for each episode.

    Attributes:
        episodes: full episodes of an evaluation.
        first: the seed of the first of them; the others follow.
        rows: rows of the training set, at least batch_size.
    """

    episodes: int = 100
    first: int = 0
    rows: int = 65536

    def check(self):
        at_least(self, episodes=1, first=0, rows=1)
        if self.episodes > 10_000:
            raise ValueError(f'episodes={self.episodes}: must be at most 10000')
        if self.first + self.episodes > 2**32:
            raise ValueError(f'first={self.first}: seeds must be below 2**32')

    def train_source(self) -> Source:
        return ArraySource({'seed': np.arange(self.rows, dtype=np.uint32)})

    def eval_sources(self) -> dict[str, Source]:
        seeds = np.arange(self.first, self.first + self.episodes, dtype=np.uint32)
        return {'episodes': ArraySource({'seed': seeds, 'place': np.eye(len(seeds), dtype='u1')})}

    def example(self):
        return {'seed': np.zeros((), np.uint32)}
