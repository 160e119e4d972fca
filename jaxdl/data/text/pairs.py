"""Pairs of sentences for translation, as rows of one fixed shape."""

import abc
import dataclasses
from collections.abc import Iterable

import numpy as np

from jaxdl.data.text.cache import Corpus, corpora
from jaxdl.data.text.files import LINE_LIMIT, Files, Records
from jaxdl.data.text.language import named
from jaxdl.data.text.packing import Rows, lay_out, pack, ranges
from jaxdl.data.text.tfds import named_splits, tfds_records
from jaxdl.data.text.tokenized import Tokenized
from jaxdl.data.text.tokenizers import Bpe, Tokenizer
from jaxdl.errors import UserError


@dataclasses.dataclass
class PairSet(Tokenized):
    """Sentence pairs; training packs several into a row, evaluation keeps each in its own.

    One tokenizer, trained on both languages, serves both sides. A source ends with `sep`; the
    target's input starts with it and its targets end with it.

    Attributes:
        tokenizer: the tokenizer of both sides.
        source_length: tokens of a row on the source side, `sep` included.
        target_length: tokens of a row on the target side.
        long: what happens to longer pairs: 'error', or 'drop' leaves them out of training and cuts them in evaluation.
        cache: folder for tokenised text; empty: $JAXDL_CACHE or the user's cache folder.
    """

    tokenizer: Tokenizer = dataclasses.field(default_factory=Bpe)
    source_length: int = 128
    target_length: int = 128
    long: str = 'error'
    cache: str = ''

    def check(self):
        for name in ('source_length', 'target_length'):
            if getattr(self, name) < 2:
                raise ValueError(f'{name}={getattr(self, name)}: must be at least 2')
        if self.long not in ('error', 'drop'):
            raise ValueError(f"long={self.long!r}: must be 'error' or 'drop'")

    @abc.abstractmethod
    def eval_records(self) -> dict[str, Records]:
        """The evaluation pairs by name."""

    def training_texts(self, records: Records) -> Iterable[str]:
        return (text for pair in records for text in pair)

    def example(self) -> dict[str, np.ndarray]:
        row = {'row': np.zeros((), np.int32)}
        for side, length in (('source', self.source_length), ('target', self.target_length)):
            for name in (side, f'{side}_segments', f'{side}_positions'):
                row[name] = np.zeros(length, np.int32)
        row['targets'] = np.zeros(self.target_length, np.int32)
        return {**row, 'bytes': np.zeros((), np.int32)} if self.tokenizer.sized else row

    def train_source(self) -> Rows:
        """Packed rows of the training pairs."""
        self.fit()
        records = self.train_records()
        source, target = corpora(records, self.tokenizer, 2, self.cache)
        sizes = np.stack([source.lengths, target.lengths], axis=1)
        pairs = self._fitting(records, sizes)
        if not len(pairs):
            raise UserError(
                f'no training pair fits source_length={self.source_length} and '
                f'target_length={self.target_length}; the shortest have '
                f'{sizes[:, 0].min()} and {sizes[:, 1].min()} tokens'
            )
        order, counts = pack(sizes[pairs], (self.source_length, self.target_length))
        return self._rows(source, target, pairs[order], counts)

    def eval_sources(self) -> dict[str, Rows]:
        """One pair a row, in the files' order, so that row i is pair i of `eval_texts`."""
        self.fit()
        found = {}
        for name, records in self.eval_records().items():
            source, target = corpora(records, self.tokenizer, 2, self.cache)
            self._fitting(records, np.stack([source.lengths, target.lengths], axis=1))
            pairs = np.arange(len(source.lengths))
            found[name] = self._rows(source, target, pairs, np.ones(len(pairs), np.int64))
        return found

    def eval_names(self) -> list[str]:
        """The names of the evaluation sets."""
        return list(self.eval_records())

    def eval_texts(self, name: str) -> list[tuple[str, str]]:
        """The pairs (source, reference) of an evaluation set as text, in the order of its rows."""
        return [(pair[0], pair[1]) for pair in self.eval_records()[name]]

    def _rows(self, source, target, pairs, counts) -> 'PairRows':
        lengths = self.source_length, self.target_length
        return PairRows(source, target, self.tokenizer, lengths, pairs, counts)

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


@dataclasses.dataclass
class Pairs(PairSet):
    """Sentence pairs from local TSV or JSONL files, also gzip.

    Attributes:
        train: path or glob of the training pairs.
        evals: evaluation sets, each 'name=path'.
        columns: columns of a TSV that hold source and target, from 0.
        fields: fields of a JSON line that hold source and target.
        line_limit: bytes of the longest line.
    """

    train: str = ''
    evals: tuple[str, ...] = ()
    columns: tuple[int, int] = (0, 1)
    fields: tuple[str, str] = ('source', 'target')
    line_limit: int = LINE_LIMIT

    def check(self):
        super().check()
        named(self.evals)
        if not self.train:
            raise ValueError(
                "train='': give the pairs, --config.data.train=FILE (.tsv or .jsonl, also .gz)"
            )
        if len(self.columns) != 2 or len(self.fields) != 2:
            raise ValueError('columns and fields must name two: source and target')

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
class TfdsPairs(PairSet):
    """Sentence pairs of a TensorFlow Datasets translation set, such as 'wmt14_translate/de-en'.

    Attributes:
        name: the set's name and config.
        source: feature of the source language.
        target: feature of the target language.
        train_split: split to train on; expressions such as 'train[:10%]' are possible.
        evals: evaluation splits; 'valid=train[90%:]' gives one a name.
        data_dir: where prepared data sets are kept; empty: $JAXDL_DATA or ~/.cache/jaxdl/data.
    """

    name: str = 'wmt14_translate/de-en'
    source: str = 'en'
    target: str = 'de'
    train_split: str = 'train'
    evals: tuple[str, ...] = ('valid=validation', 'test')
    data_dir: str = ''

    def check(self):
        super().check()
        named_splits(self.evals)

    def _split(self, split: str) -> Records:
        return tfds_records(self.name, split, (self.source, self.target), self.data_dir)

    def train_records(self) -> Records:
        return self._split(self.train_split)

    def eval_records(self) -> dict[str, Records]:
        return {name: self._split(split) for name, split in named_splits(self.evals).items()}


class PairRows(Rows):
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
        self.source, self.target, self.lengths = source, target, lengths
        self.pad, self.token_bytes = tokenizer.pad, tokenizer.token_bytes()
        self.pairs = pairs
        self.first = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return len(self.first) - 1

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        counts = self.first[ids + 1] - self.first[ids]
        pairs = self.pairs[ranges(self.first[ids], counts)]
        rows: dict[str, np.ndarray] = {}
        for name, corpus, length in (
            ('source', self.source, self.lengths[0]),
            ('target', self.target, self.lengths[1]),
        ):
            sizes = np.minimum(corpus.offsets[pairs + 1] - corpus.offsets[pairs], length)
            layout = lay_out(corpus.offsets[pairs], sizes, counts, length)

            def full(values, fill, layout=layout, length=length):
                flat = np.full(len(ids) * length, fill, np.int32)
                flat[layout.place] = values
                return flat.reshape(len(ids), length)

            following = corpus.ids[layout.source + 1]
            if name == 'source':
                rows['source'] = full(following, self.pad)
            else:
                rows['target'] = full(corpus.ids[layout.source], self.pad)
                rows['targets'] = full(following, self.pad)
                if self.token_bytes is not None:
                    sizes = full(self.token_bytes[following], 0)
                    rows['bytes'] = sizes.sum(axis=1, dtype=np.int32)
            rows[f'{name}_segments'] = full(layout.segment, 0)
            rows[f'{name}_positions'] = full(layout.position, 0)
        rows['row'] = ids.astype(np.int32)
        return rows
