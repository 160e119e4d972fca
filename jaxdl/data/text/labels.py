"""Texts with a label, for sequence classification."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from jaxdl.api import Rows, Source, Task, facts_of
from jaxdl.data.text.corpus import Corpus
from jaxdl.data.text.packing import CorpusRows, lay_out
from jaxdl.data.text.sources import Records
from jaxdl.data.text.text_set import TextSet
from jaxdl.data.text.tokenizers import Tokenizer
from jaxdl.errors import UserError, at_least, nearest


@dataclasses.dataclass
class LabelledTexts(TextSet):
    """Texts with a label; a row is [cls] text [sep], and a longer text keeps its beginning.

    Attributes:
        length: tokens of a row, [cls] and [sep] included.
        classes: the labels' names in order; empty: labels are the numbers from 0.
        num_classes: number of labels where `classes` is empty.
    """

    parts: ClassVar = ('text', 'label')

    length: int = 256
    classes: tuple[str, ...] = ()
    num_classes: int = 2

    def check(self):
        super().check()
        at_least(self, length=3)
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f'classes={self.classes}: a name is there twice')

    def lengths(self) -> dict[str, int]:
        return {'length': self.length}

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

    def class_names(self) -> tuple[str, ...]:
        return self.classes or tuple(map(str, range(self.num_classes)))

    def shown(self, row: Rows) -> str:
        return self.tokenizer.decode(row['tokens'][: row['lengths']])

    def rows_of_texts(self, corpora: Sequence[Corpus], records: Records) -> tuple[Source, None]:
        del records
        (corpus,) = corpora
        unknown = np.zeros(len(corpus.lengths), np.int32)
        return LabelRows(corpus, self.tokenizer, self.length, unknown), None

    def rows(self, records: Records, *, train: bool) -> Source:
        del train  # every text is one row, in evaluation too
        names = self.class_names()
        number = {name: i for i, name in enumerate(names)}
        labels = []
        for place, (_, label) in records.located():
            if label not in number:
                raise UserError(
                    f'{place}: label {label!r} is not one of '
                    f'{", ".join(map(repr, names[:10]))}{nearest(label, names)}; '
                    'set data.classes or data.num_classes'
                )
            labels.append(number[label])
        (corpus,) = self.corpora(records)
        return LabelRows(corpus, self.tokenizer, self.length, np.asarray(labels, np.int32))


class LabelRows(CorpusRows):
    """'tokens' [batch, length], 'lengths' [batch], 'label' [batch]."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, length: int, labels: np.ndarray):
        self.corpus, self.tokenizer, self.length, self.labels = corpus, tokenizer, length, labels

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        start = self.corpus.offsets[ids]
        # The separator before the text becomes cls; the one behind it is kept.
        sizes = np.minimum(self.corpus.offsets[ids + 1] - start + 1, self.length)
        index = lay_out(start, sizes, np.ones(len(ids), np.int64), self.length)
        tokens = index.block(self.corpus.ids[index.source], self.tokenizer.pad)
        tokens[:, 0] = self.tokenizer.cls
        tokens[np.arange(len(ids)), sizes - 1] = self.tokenizer.sep
        return {'tokens': tokens, 'lengths': sizes.astype(np.int32), 'label': self.labels[ids]}
