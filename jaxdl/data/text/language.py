"""Text sets for language models: local files, TFDS, and the standard library's own source.

A set has a tokenizer, a row length and a packing; `train_source` and `eval_sources` are the rows.
"""

import abc
import dataclasses
import re
from collections.abc import Iterable

import numpy as np

from jaxdl.data.text.cache import corpora
from jaxdl.data.text.files import LINE_LIMIT, Files, Records, StdlibRecords
from jaxdl.data.text.packing import Packed, Packing, Rows
from jaxdl.data.text.tfds import named_splits, tfds_records
from jaxdl.data.text.tokenized import Tokenized
from jaxdl.data.text.tokenizers import Bytes, Tokenizer


@dataclasses.dataclass
class TextSet(Tokenized):
    """Documents as rows of tokens.

    Attributes:
        tokenizer: Bytes(), Bpe(vocab_size=…) trained on the training documents, or WordPiece(vocab=…).
        length: tokens of a row.
        packing: Packed(), Stream() or, for masked language models, Masked().
        cache: folder for tokenised text; empty: $JAXDL_CACHE or the user's cache folder.
    """

    tokenizer: Tokenizer = dataclasses.field(default_factory=Bytes)
    length: int = 256
    packing: Packing = dataclasses.field(default_factory=Packed)
    cache: str = ''

    def check(self):
        if self.length < 2:
            raise ValueError(f'length={self.length}: must be at least 2')

    @abc.abstractmethod
    def eval_records(self) -> dict[str, Records]:
        """The evaluation documents by name."""

    def training_texts(self, records: Records) -> Iterable[str]:
        return (record[0] for record in records)

    def example(self) -> dict[str, np.ndarray]:
        return self.packing.example(self.length, sized=self.tokenizer.sized)

    def train_source(self) -> Rows:
        """Rows of the training documents."""
        self.fit()
        return self._rows(self.train_records(), train=True)

    def eval_sources(self) -> dict[str, Rows]:
        """Rows of each evaluation set; over all rows every token is counted exactly once."""
        self.fit()
        return {
            name: self._rows(records, train=False) for name, records in self.eval_records().items()
        }

    def _rows(self, records: Records, *, train: bool) -> Rows:
        (corpus,) = corpora(records, self.tokenizer, 1, self.cache)
        return self.packing.rows(corpus, self.tokenizer, length=self.length, train=train)


@dataclasses.dataclass
class Text(TextSet):
    """Documents of local files: plain text, JSONL or TSV, also compressed with gzip.

    Attributes:
        train: path or glob of the training files.
        evals: evaluation sets, each 'name=path'.
        field: field of a JSON line that holds the text.
        column: column of a TSV that holds the text, from 0.
        documents: what is one document of plain text: 'file', 'line', or 'paragraph' (up to a blank line).
        line_limit: bytes of the longest line; not for documents='file'.
    """

    train: str = ''
    evals: tuple[str, ...] = ()
    field: str = 'text'
    column: int = 0
    documents: str = 'file'
    line_limit: int = LINE_LIMIT

    def check(self):
        super().check()
        if not self.train:
            raise ValueError(
                "train='': give the text, --config.data.train=FILE (.txt, .jsonl or .tsv, also .gz)"
            )
        named(self.evals)
        if self.documents not in ('file', 'line', 'paragraph'):
            raise ValueError(
                f"documents={self.documents!r}: must be one of 'file', 'line', 'paragraph'"
            )
        if self.column < 0:
            raise ValueError(f'column={self.column}: must be at least 0')

    def _files(self, pattern: str, role: str) -> Files:
        return Files(pattern, (self.field,), (self.column,), self.documents, self.line_limit, role)

    def train_records(self) -> Records:
        return self._files(self.train, 'data.train')

    def eval_records(self) -> dict[str, Records]:
        return {
            name: self._files(path, f'data.evals {name}')
            for name, path in named(self.evals).items()
        }


@dataclasses.dataclass
class StdlibCode(TextSet):
    """The Python source of the running interpreter's standard library: needs no file, no network.

    A file is one document. The held-out files, chosen by a hash of their names, are the evaluation
    set 'valid'. The text is that of this Python version: compare runs on the same one.

    Attributes:
        percent: share of the files that is held out.
        tests: also the library's own tests, which are about as large as the rest.
    """

    percent: int = 5
    tests: bool = False

    def check(self):
        super().check()
        if not 1 <= self.percent <= 50:
            raise ValueError(f'percent={self.percent}: must be from 1 to 50')

    def train_records(self) -> Records:
        return StdlibRecords(held_out=False, percent=self.percent, tests=self.tests)

    def eval_records(self) -> dict[str, Records]:
        return {'valid': StdlibRecords(held_out=True, percent=self.percent, tests=self.tests)}


@dataclasses.dataclass
class TfdsText(TextSet):
    """A text set of TensorFlow Datasets, such as 'lm1b'; each example is one document.

    Attributes:
        name: the set's name and config.
        field: feature that holds the text; 'a/b' for a nested one.
        train_split: split to train on; expressions such as 'train[:10%]' are possible.
        evals: evaluation splits; 'valid=train[90%:]' gives one a name.
        data_dir: where prepared data sets are kept; empty: $JAXDL_DATA or ~/.cache/jaxdl/data.
    """

    name: str = 'lm1b'
    field: str = 'text'
    train_split: str = 'train'
    evals: tuple[str, ...] = ('test',)
    data_dir: str = ''

    def check(self):
        super().check()
        named_splits(self.evals)

    def _split(self, split: str) -> Records:
        return tfds_records(self.name, split, (self.field,), self.data_dir)

    def train_records(self) -> Records:
        return self._split(self.train_split)

    def eval_records(self) -> dict[str, Records]:
        return {name: self._split(split) for name, split in named_splits(self.evals).items()}


def named(pairs: tuple[str, ...]) -> dict[str, str]:
    """Splits 'name=value' texts; raises ValueError where one has another form or a name is double."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition('=')
        if not (equals and value and re.fullmatch(r'[\w.-]+', name)):
            raise ValueError(f"evals: {pair!r} is not of the form 'name=value', such as 'test=…'")
        if name in found:
            raise ValueError(f'evals: {name!r} is there twice; give each set a name of its own')
        found[name] = value
    return found
