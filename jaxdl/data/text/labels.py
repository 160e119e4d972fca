"""Texts with a label, for sequence classification."""

import abc
import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxdl.api import Task, facts_of
from jaxdl.data.text.cache import Corpus, corpora
from jaxdl.data.text.files import LINE_LIMIT, Files, Records
from jaxdl.data.text.language import named
from jaxdl.data.text.packing import Rows, lay_out
from jaxdl.data.text.tfds import named_splits, tfds_records
from jaxdl.data.text.tokenized import Tokenized
from jaxdl.data.text.tokenizers import Bpe, Tokenizer
from jaxdl.errors import UserError, nearest


@dataclasses.dataclass
class LabelSet(Tokenized):
    """Texts with a label; a row is [cls] text [sep], and a longer text keeps its beginning.

    Attributes:
        tokenizer: trained on the training texts unless it has a vocabulary.
        length: tokens of a row, [cls] and [sep] included.
        classes: the labels' names in order; empty: labels are the numbers from 0.
        num_classes: number of labels where `classes` is empty.
        cache: folder for tokenised text; empty: $JAXDL_CACHE or the user's cache folder.
    """

    tokenizer: Tokenizer = dataclasses.field(default_factory=Bpe)
    length: int = 256
    classes: tuple[str, ...] = ()
    num_classes: int = 2
    cache: str = ''

    def check(self):
        if self.length < 3:
            raise ValueError(f'length={self.length}: must be at least 3')
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f'classes={self.classes}: a name is there twice')

    @abc.abstractmethod
    def eval_records(self) -> dict[str, Records]:
        """The evaluation pairs by name."""

    def training_texts(self, records: Records) -> Iterable[str]:
        return (record[0] for record in records)

    def example(self) -> dict[str, np.ndarray]:
        return {
            'tokens': np.zeros(self.length, np.int32),
            'lengths': np.zeros((), np.int32),
            'label': np.zeros((), np.int32),
        }

    def check_with(self, model: Any, task: Task) -> None:
        """Raises UserError where the model has fewer classes than there are labels, or as above."""
        super().check_with(model, task)
        have, need = facts_of(model).limits().classes, len(self.classes) or self.num_classes
        if have is not None and have < need:
            raise UserError(
                f'--config.model.num_classes={have}: the data has {need} labels; '
                f'give --config.model.num_classes={need}'
            )

    def train_source(self) -> Rows:
        self.fit()
        return self._rows(self.train_records())

    def eval_sources(self) -> dict[str, Rows]:
        self.fit()
        return {name: self._rows(records) for name, records in self.eval_records().items()}

    def _rows(self, records: Records) -> 'LabelRows':
        names = self.classes or tuple(map(str, range(self.num_classes)))
        number = {name: i for i, name in enumerate(names)}
        labels = []
        for index, (_, label) in enumerate(records):
            if label not in number:
                raise UserError(
                    f'{records.where(index)}: label {label!r} is not one of '
                    f'{", ".join(map(repr, names[:10]))}{nearest(label, names)}; '
                    'set data.classes or data.num_classes'
                )
            labels.append(number[label])
        (corpus,) = corpora(records, self.tokenizer, 1, self.cache)
        return LabelRows(corpus, self.tokenizer, self.length, np.asarray(labels, np.int32))


@dataclasses.dataclass
class LabelledText(LabelSet):
    """Labelled texts of local TSV or JSONL files, also gzip.

    Attributes:
        train: path or glob of the training files.
        evals: evaluation sets, each 'name=path'.
        columns: columns of a TSV that hold text and label, from 0.
        fields: fields of a JSON line that hold text and label.
        line_limit: bytes of the longest line.
    """

    train: str = ''
    evals: tuple[str, ...] = ()
    columns: tuple[int, int] = (0, 1)
    fields: tuple[str, str] = ('text', 'label')
    line_limit: int = LINE_LIMIT

    def check(self):
        super().check()
        named(self.evals)
        if not self.train:
            raise ValueError(
                "train='': give the texts, --config.data.train=FILE (.tsv or .jsonl, also .gz)"
            )
        if len(self.columns) != 2 or len(self.fields) != 2:
            raise ValueError('columns and fields must name two: text and label')

    def _files(self, pattern: str, role: str) -> Files:
        return Files(pattern, self.fields, self.columns, 'line', self.line_limit, role)

    def train_records(self) -> Records:
        return self._files(self.train, 'data.train')

    def eval_records(self) -> dict[str, Records]:
        return {
            name: self._files(path, f'data.evals {name}')
            for name, path in named(self.evals).items()
        }


@dataclasses.dataclass
class TfdsLabelledText(LabelSet):
    """A labelled text set of TensorFlow Datasets, such as 'imdb_reviews'.

    Attributes:
        name: the set's name and config.
        text: feature that holds the text.
        label: feature that holds the label.
        train_split: split to train on; expressions such as 'train[:90%]' are possible.
        evals: evaluation splits; 'valid=train[90%:]' gives one a name.
        data_dir: where prepared data sets are kept; empty: $JAXDL_DATA or ~/.cache/jaxdl/data.
    """

    name: str = 'imdb_reviews'
    text: str = 'text'
    label: str = 'label'
    train_split: str = 'train'
    evals: tuple[str, ...] = ('test',)
    data_dir: str = ''

    def check(self):
        super().check()
        named_splits(self.evals)

    def _split(self, split: str) -> Records:
        return tfds_records(self.name, split, (self.text, self.label), self.data_dir)

    def train_records(self) -> Records:
        return self._split(self.train_split)

    def eval_records(self) -> dict[str, Records]:
        return {name: self._split(split) for name, split in named_splits(self.evals).items()}


class LabelRows(Rows):
    """'tokens' [batch, length], 'lengths' [batch], 'label' [batch]."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, length: int, labels: np.ndarray):
        self.corpus, self.tokenizer, self.length, self.labels = corpus, tokenizer, length, labels

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        start = self.corpus.offsets[ids]
        # The separator before the text becomes cls; the one behind it is kept.
        sizes = np.minimum(self.corpus.lengths[ids] + 1, self.length)
        layout = lay_out(start, sizes, np.ones(len(ids), np.int64), self.length)
        tokens = np.full((len(ids), self.length), self.tokenizer.pad, np.int32)
        tokens.reshape(-1)[layout.place] = self.corpus.ids[layout.source]
        tokens[:, 0] = self.tokenizer.cls
        tokens[np.arange(len(ids)), sizes - 1] = self.tokenizer.sep
        return {
            'tokens': tokens,
            'lengths': sizes.astype(np.int32),
            'label': self.labels[ids],
        }
