"""What every set of tokenised text shares: its source, its tokenizer, and what a run keeps of both."""

import abc
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxdl.api import DataSet, Inputs, Rows, Source, Task, facts_of
from jaxdl.data import valid
from jaxdl.data.text import tokenizers
from jaxdl.data.text.corpus import Corpus, corpora
from jaxdl.data.text.sources import GivenTexts, HeldOut, Records, TextFiles, TextSource
from jaxdl.data.text.tokenizers import Tokenizer
from jaxdl.data.valid import Valid
from jaxdl.errors import UserError, at_least
from jaxdl.files import needed_cache_folder


@dataclasses.dataclass
class TextSet(DataSet, abc.ABC):
    """Texts as rows of tokens.

    Attributes:
        source: where the texts come from: TextFiles(…), TfdsText(…) or StandardLibrary().
        tokenizer: Bytes(), Bpe(vocab_size=…) trained on the training texts, or WordPiece(vocab=…).
        cache: folder for tokenised text; empty: $JAXDL_CACHE or the user's cache folder.
        valid: the part of the training texts that is held out as the set 'valid'.
    """

    places: ClassVar = ('source.train', 'source.evals', 'cache', 'tokenizer.vocab')
    kept: ClassVar = (tokenizers.FILE,)
    parts: ClassVar[tuple[str, ...]] = ('text',)
    texts: ClassVar[int] = 1  # so many of the parts, the first ones, are tokenised

    source: TextSource = dataclasses.field(default_factory=TextFiles)
    tokenizer: Tokenizer = dataclasses.field(default_factory=tokenizers.Bpe)
    cache: str = ''
    valid: Valid = dataclasses.field(default_factory=Valid)

    def check(self):
        self.source.check_parts(self.parts)
        at_least(self, **dict.fromkeys(self.lengths(), 2))

    @abc.abstractmethod
    def lengths(self) -> dict[str, int]:
        """The fields that say how many tokens a row has, with their values."""

    @abc.abstractmethod
    def example(self) -> dict[str, np.ndarray]:
        """One row of zeros: its shapes and dtypes are those of every row, and no file is read."""

    @abc.abstractmethod
    def rows(self, records: Records, *, train: bool) -> Source:
        """The rows of some records, once the tokenizer is fitted."""

    @abc.abstractmethod
    def rows_of_texts(
        self, corpora: Sequence[Corpus], records: Records
    ) -> tuple[Source, np.ndarray | None]:
        """(rows for predictions; the text that each is a part of, None: row i is text i)."""

    def inputs_from(self, given: Any, row: Rows) -> Inputs:
        """Rows of texts, in the order given: a list of them, or a file with one a line.

        Of a folder each file is one text. Pairs are a list of pairs, or a .tsv or .jsonl file.
        """
        del row
        parts = self.parts[: self.texts]
        if isinstance(given, str | os.PathLike):
            records = self.source.given_records(Path(given), parts)
        else:
            records = GivenTexts(tuple(given), parts)
        located = list(records.located())
        if not located:
            raise UserError('no text is given; give at least one')
        texts = [[record[part] for _, record in located] for part in range(len(parts))]
        made = [Corpus.of(column, self.tokenizer) for column in texts]
        source, owner = self.rows_of_texts(made, records)
        return Inputs(source, [place for place, _ in located], owner)

    def train_source(self) -> Source:
        """Rows of the training texts."""
        self.fit()
        return self.rows(self.train_records(), train=True)

    def eval_sources(self) -> dict[str, Source]:
        """Rows of each evaluation set; over all rows every token is counted exactly once."""
        self.fit()
        return {
            name: self.rows(records, train=False) for name, records in self.eval_records().items()
        }

    def train_records(self) -> Records:
        """The training examples as tuples of texts."""
        records = self.source.train_records(self.parts)
        return HeldOut(records, self.valid, held=False) if self.valid.share else records

    def eval_records(self) -> dict[str, Records]:
        """The evaluation examples by the name of their set."""
        found = self.source.eval_records(self.parts)
        if self.valid.share:
            self.valid.check_names(found)
            train = self.source.train_records(self.parts)
            found = {**found, valid.NAME: HeldOut(train, self.valid, held=True)}
        return found

    def corpora(self, records: Records) -> list[Corpus]:
        """The tokenised texts of some records, one corpus for each part that is text."""
        return corpora(records, self.tokenizer, self.texts, self.cache)

    def fit(self) -> None:
        """Trains the tokenizer on the training texts, unless it is trained or loaded."""
        if self.tokenizer.fitted:
            return
        records = self.train_records()
        self.tokenizer.fit(
            lambda: (text for record in records for text in record[: self.texts]),
            key=records.key(),
            cache=needed_cache_folder(self.cache) / 'tokenizers',
        )

    def fingerprint(self, *, train: bool = True) -> dict[str, str]:
        found = {f'eval/{name}': records.key() for name, records in self.eval_records().items()}
        if isinstance(self.tokenizer, tokenizers.WordPiece):  # others follow from the texts
            self.tokenizer.read()
            found['tokenizer'] = self.tokenizer.fingerprint()
        return found | ({'train': self.train_records().key()} if train else {})

    def keep(self, folder: str | os.PathLike) -> None:
        """Saves the tokenizer into a run's folder, or compares it. Raises UserError where they differ."""
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
        self.tokenizer.read()
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
        for field, length in self.lengths().items():
            if limits.length is not None and length > limits.length:
                raise UserError(
                    f'--config.data.{field}={length}: the model has learned positions for '
                    f'max_length={limits.length}; give --config.model.max_length={length} or '
                    'shorter rows'
                )
