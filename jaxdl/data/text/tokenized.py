"""What every set of tokenised text shares: a tokenizer that is learned, kept with a run, and checked."""

import abc
import os
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from jaxdl.api import DataSet, Task, facts_of
from jaxdl.data.text import tokenizers
from jaxdl.data.text.cache import cache_root
from jaxdl.data.text.files import Records
from jaxdl.data.text.tokenizers import Tokenizer
from jaxdl.errors import UserError


class Tokenized(DataSet):
    """A text set with the fields `tokenizer` and `cache`."""

    places: ClassVar = ('train', 'evals', 'cache', 'tokenizer.vocab')
    kept: ClassVar = (tokenizers.FILE,)

    tokenizer: Tokenizer
    cache: str

    @abc.abstractmethod
    def train_records(self) -> Records:
        """The training examples as tuples of texts."""

    @abc.abstractmethod
    def eval_records(self) -> dict[str, Records]:
        """The evaluation examples by the name of their set."""

    @abc.abstractmethod
    def training_texts(self, records: Records) -> Iterable[str]:
        """The texts of `records` that the tokenizer learns from."""

    @abc.abstractmethod
    def example(self) -> dict[str, np.ndarray]:
        """One row of zeros: its shapes and dtypes are those of every row, and no file is read."""

    def fit(self) -> None:
        """Trains the tokenizer on the training texts, unless it is trained or loaded."""
        if self.tokenizer.fitted:
            return
        records = self.train_records()
        self.tokenizer.fit(
            lambda: self.training_texts(records),
            key=records.key(),
            cache=cache_root(self.cache) / 'tokenizers',
        )

    def fingerprint(self, *, train: bool = True) -> dict[str, str]:
        found = {f'eval/{name}': records.key() for name, records in self.eval_records().items()}
        return found | ({'train': self.train_records().key()} if train else {})

    def keep(self, folder: str | os.PathLike) -> None:
        """Saves the tokenizer into a run's folder, or compares it with the one kept there.

        Raises UserError where they differ.
        """
        tokenizers.keep(self.tokenizer, folder)

    def recall(self, folder: str | os.PathLike) -> None:
        """Takes the tokenizer kept in a run's folder, so the training text is not needed.

        Raises UserError where it is missing, damaged or of another kind.
        """
        self.tokenizer.load(folder)

    def check_with(self, model: Any, task: Task) -> None:
        """Raises UserError where model or task are made for another vocabulary or shorter rows.

        Every id of the tokenizer must be a row of the model's table: a gather past its end would
        silently read the last row.
        """
        limits = facts_of(model).limits()
        have, need = limits.vocab, self.tokenizer.vocab_size
        if have is not None and have < need:
            raise UserError(
                f'--config.model.vocab={have}: the tokenizer has {need} tokens '
                f'({type(self.tokenizer).__name__}); give --config.model.vocab={need}'
            )
        for field, name in (('vocab_size', 'vocab_size'), ('mask_token', 'mask')):
            have, need = task.vocabulary().get(field), getattr(self.tokenizer, name)
            if have is not None and have != need:
                raise UserError(
                    f'--config.task.{field}={have}: the tokenizer ({type(self.tokenizer).__name__}) '
                    f'has {name}={need}; give --config.task.{field}={need}'
                )
        self._check_length(limits.length)

    def _check_length(self, limit: int | None) -> None:
        """Raises UserError where a row is longer than the model's table of positions."""
        if limit is None:
            return
        for field in ('length', 'source_length', 'target_length'):
            length = getattr(self, field, 0)
            if length > limit:
                raise UserError(
                    f'--config.data.{field}={length}: the model has learned positions for '
                    f'max_length={limit}; give --config.model.max_length={length} or shorter rows'
                )
