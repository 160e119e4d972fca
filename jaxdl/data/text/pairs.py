"""Pairs of sentences for translation, as rows of one fixed shape."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxdl.api import Rows, Source
from jaxdl.data.text.corpus import Corpus
from jaxdl.data.text.packing import GroupedRows, lay_out, pack
from jaxdl.data.text.sources import Records
from jaxdl.data.text.text_set import TextSet
from jaxdl.data.text.tokenizers import Tokenizer
from jaxdl.errors import UserError, one_of


@dataclasses.dataclass
class SentencePairs(TextSet):
    """Sentence pairs; training packs several into a row, evaluation keeps each in its own.

    One tokenizer, trained on both languages, serves both sides. A source sentence ends with `sep`;
    the target's input starts with it and its targets end with it.

    Attributes:
        source_length: tokens of a row on the source side, `sep` included.
        target_length: tokens of a row on the target side.
        long: what happens to longer pairs: 'error', or 'drop' leaves them out of training and cuts them in evaluation.
    """

    parts: ClassVar = ('source', 'target')
    texts: ClassVar = 2

    source_length: int = 128
    target_length: int = 128
    long: str = 'error'

    def check(self):
        super().check()
        one_of(self, long=('error', 'drop'))

    def lengths(self) -> dict[str, int]:
        return {'source_length': self.source_length, 'target_length': self.target_length}

    def example(self) -> dict[str, np.ndarray]:
        row: Rows = {'row': np.zeros((), np.int32)}
        for side, length in (('source', self.source_length), ('target', self.target_length)):
            for name in (side, f'{side}_segments', f'{side}_positions'):
                row[name] = np.zeros(length, np.int32)
        row['targets'] = np.zeros(self.target_length, np.int32)
        return {**row, 'bytes': np.zeros((), np.int32)} if self.tokenizer.sized else row

    def rows(self, records: Records, *, train: bool) -> Source:
        """Packed rows in training; else a pair a row, so that row i is pair i of `eval_texts`."""
        source, target = self.corpora(records)
        sizes = np.stack([source.lengths, target.lengths], axis=1)
        lengths = self.source_length, self.target_length
        pairs = self._fitting(records, sizes)
        if not train:
            return self._apart(source, target)
        if not len(pairs):
            raise UserError(
                f'no training pair fits source_length={self.source_length} and '
                f'target_length={self.target_length}; the shortest have '
                f'{sizes[:, 0].min()} and {sizes[:, 1].min()} tokens'
            )
        order, counts = pack(sizes[pairs], lengths)
        return PairRows(source, target, self.tokenizer, lengths, pairs[order], counts)

    def rows_of_texts(self, corpora: Sequence[Corpus], records: Records) -> tuple[Source, None]:
        source, target = corpora
        self._fitting(records, np.stack([source.lengths, target.lengths], axis=1))
        return self._apart(source, target), None

    def _apart(self, source: Corpus, target: Corpus) -> 'PairRows':
        """A pair a row."""
        pairs = np.arange(len(source.lengths))
        lengths = self.source_length, self.target_length
        return PairRows(source, target, self.tokenizer, lengths, pairs, np.ones_like(pairs))

    def eval_names(self) -> list[str]:
        """The names of the evaluation sets."""
        return list(self.eval_records())

    def eval_texts(self, name: str) -> list[tuple[str, str]]:
        """The pairs (source, reference) of an evaluation set as text, in the order of its rows."""
        return [(pair[0], pair[1]) for pair in self.eval_records()[name]]

    def _fitting(self, records: Records, sizes: np.ndarray) -> np.ndarray:
        """The pairs that fit a row; raises UserError for the first other one if long='error'."""
        limits = np.array([self.source_length, self.target_length])
        fits = np.all(sizes <= limits, axis=1)
        if self.long == 'error' and not fits.all():
            worst = int(np.argmin(fits))
            side = int(np.argmax(sizes[worst] > limits))
            name = ('source', 'target')[side]
            raise UserError(
                f'{records.where(worst)}: {sizes[worst, side]} {name} tokens, more than '
                f'{name}_length={limits[side]}; {(~fits).sum()} of {len(fits)} pairs are too long.\n'
                f"Raise it (the longest has {sizes[:, side].max()}), or set data.long='drop' to train "
                'without them and to cut them in evaluation'
            )
        return np.flatnonzero(fits)


class PairRows(GroupedRows):
    """Rows of sentence pairs: pair j of a row is segment j on both sides.

    'source', 'source_segments', 'source_positions' [batch, source_length]; 'target' (the decoder's
    input), 'targets' (what it predicts), 'target_segments', 'target_positions' [batch,
    target_length]; 'bytes' [batch], the UTF-8 size of the targets; 'row' [batch].
    """

    def __init__(
        self,
        source: Corpus,
        target: Corpus,
        tokenizer: Tokenizer,
        lengths: tuple[int, int],
        pairs: np.ndarray,
        counts: np.ndarray,
    ):
        super().__init__(counts)
        self.source, self.target, self.lengths = source, target, lengths
        self.pad, self.token_bytes = tokenizer.pad, tokenizer.token_bytes()
        self.pairs = pairs

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        counts, chosen = self.pieces(ids)
        pairs = self.pairs[chosen]
        rows: dict[str, np.ndarray] = {}
        for name, corpus, length in (
            ('source', self.source, self.lengths[0]),
            ('target', self.target, self.lengths[1]),
        ):
            sizes = np.minimum(corpus.offsets[pairs + 1] - corpus.offsets[pairs], length)
            index = lay_out(corpus.offsets[pairs], sizes, counts, length)
            following = corpus.ids[index.source + 1]
            if name == 'source':
                rows['source'] = index.block(following, self.pad)
            else:
                rows['target'] = index.block(corpus.ids[index.source], self.pad)
                rows['targets'] = index.block(following, self.pad)
                if self.token_bytes is not None:
                    sizes = index.block(self.token_bytes[following], 0)
                    rows['bytes'] = sizes.sum(axis=1, dtype=np.int32)
            rows[f'{name}_segments'] = index.block(index.segment, 0)
            rows[f'{name}_positions'] = index.block(index.position, 0)
        rows['row'] = ids.astype(np.int32)
        return rows
