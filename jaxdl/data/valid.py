"""Training examples that are held out, so that nothing has to be chosen by a test set."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxdl.api import Source
from jaxdl.data.arrays import subset
from jaxdl.errors import UserError, at_least, below_one

NAME = 'valid'
_BLOCK = 1 << 16  # examples whose side is drawn at once


@dataclasses.dataclass
class Valid:
    """The part of the training examples that is held out as the evaluation set 'valid'.

    Example i is held out or not by (seed, i) alone, so examples that are added at the end move no
    other one.

    Attributes:
        share: probability that an example is held out, below 1; 0: there is no such set.
        seed: decides which examples.
    """

    share: float = 0.0
    seed: int = 0

    def check(self):
        below_one(self, 'share')
        at_least(self, seed=0)

    def sides(self) -> Iterator[bool]:
        """Whether example 0, 1, 2, … is held out."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, 0]))
        while True:
            yield from (generator.random(_BLOCK) < self.share).tolist()

    def ids(self, examples: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids, int64, of the examples that stay and of those that are held out."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, 0]))
        held = generator.random(examples) < self.share
        if self.share and (held.all() or not held.any()):
            raise UserError(
                f'--config.data.valid.share={self.share}: holds out {held.sum()} of {examples} '
                'training examples; give another share or seed, or 0'
            )
        return np.flatnonzero(~held), np.flatnonzero(held)

    def train(self, source: Source) -> Source:
        """The training examples that stay."""
        return subset(source, self.ids(len(source))[0]) if self.share else source

    def evals(self, train: Callable[[], Source], sets: dict[str, Source]) -> dict[str, Source]:
        """`sets`, and behind them those of the training set `train()` that are held out."""
        if not self.share:
            return sets
        self.check_names(sets)
        source = train()
        return {**sets, NAME: subset(source, self.ids(len(source))[1])}

    def check_names(self, sets: Any) -> None:
        """Raises UserError where there is a set 'valid' already."""
        if self.share and NAME in sets:
            raise UserError(
                f'--config.data.valid.share={self.share}: the data has an evaluation set {NAME!r} '
                'already; give --config.data.valid.share=0, or that set another name'
            )
