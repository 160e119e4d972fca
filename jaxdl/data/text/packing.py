"""How documents become rows of one fixed length, so that a model compiles once.

A packing turns a corpus into a Source: row i is found through an index made at the start, so it is
random access and pure. Rows hold int32 arrays [batch, length]; 'segments' numbers the documents of
a row from 1 and is 0 on padding, and 'positions' counts from 0 in each segment. Nothing attends or
predicts across documents.
"""

import abc
import dataclasses
from typing import Any

import numpy as np

from jaxdl.api import Rows, Source
from jaxdl.data.text.corpus import Corpus
from jaxdl.data.text.tokenizers import Tokenizer
from jaxdl.errors import UserError, at_least

IN_MEMORY = 1 << 28
"""Bytes up to which a set of rows is offered as one block, e.g. to be kept on the device."""


class CorpusRows(Source):
    """Rows that are cut out of a corpus when they are asked for."""

    _all: dict[str, np.ndarray] | None = None

    def in_memory(self) -> dict[str, np.ndarray] | None:
        """All rows as arrays where that takes at most 256 MiB, else None."""
        if self._all is None:
            first = self.fetch(np.zeros(1, np.int64))
            if sum(value.nbytes for value in first.values()) * len(self) > IN_MEMORY:
                return None
            self._all = self.fetch(np.arange(len(self)))
        return self._all


class GroupedRows(CorpusRows):
    """Rows of which each holds some neighbours in a list of pieces: `counts` [rows] of them."""

    def __init__(self, counts: np.ndarray):
        self.first = bounds(counts)

    def __len__(self) -> int:
        return len(self.first) - 1

    def pieces(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(how many pieces each of the rows `ids` has, their numbers row by row)."""
        counts = self.first[ids + 1] - self.first[ids]
        return counts, ranges(self.first[ids], counts)


class DocumentPacking(abc.ABC):
    """How a corpus becomes rows."""

    @abc.abstractmethod
    def check_length(self, length: int) -> None:
        """Raises UserError where rows of `length` tokens are too short."""

    @abc.abstractmethod
    def rows(self, corpus: Corpus, tokenizer: Tokenizer, *, length: int, train: bool) -> CorpusRows:
        """A Source of rows of `length` tokens; `train` is False for an evaluation set."""

    @abc.abstractmethod
    def apart(
        self, corpus: Corpus, tokenizer: Tokenizer, *, length: int
    ) -> tuple[CorpusRows, np.ndarray]:
        """Rows as of an evaluation, but none holds parts of two documents; the document of each."""

    def example(self, length: int, *, sized: bool) -> dict[str, np.ndarray]:
        """One row of zeros with the shapes and dtypes of all; `sized`: token sizes are known."""
        names = ('tokens', 'targets', 'segments', 'positions')
        row: Rows = {name: np.zeros(length, np.int32) for name in names}
        row['target_mask'] = np.zeros(length, np.bool_)
        return {**row, 'bytes': np.zeros((), np.int32)} if sized else row


@dataclasses.dataclass
class ContextPacking(DocumentPacking):
    """A packing of which an evaluation may see more than it counts.

    Attributes:
        context: in evaluation, each later part of a long document sees this many tokens before it, which are not counted again.
    """

    context: int = 0

    def check(self):
        at_least(self, context=0)

    def check_length(self, length: int) -> None:
        if self.context >= length:
            raise UserError(f'packing.context={self.context}: must be below data.length={length}')

    def rows(self, corpus: Corpus, tokenizer: Tokenizer, *, length: int, train: bool) -> CorpusRows:
        self.check_length(length)
        pieces = self.pieces(corpus, length, 0 if train else self.context)
        return PieceRows(corpus, tokenizer, length, *pieces)

    def apart(
        self, corpus: Corpus, tokenizer: Tokenizer, *, length: int
    ) -> tuple[CorpusRows, np.ndarray]:
        begin = corpus.offsets[:-1]
        starts, lengths, skips = cut(begin, corpus.lengths, length, self.context)
        one = np.ones(len(starts), np.int64)
        rows = PieceRows(corpus, tokenizer, length, starts, lengths, skips, one)
        return rows, np.searchsorted(begin, starts, side='right') - 1

    @abc.abstractmethod
    def pieces(self, corpus: Corpus, length: int, context: int) -> tuple[np.ndarray, ...]:
        """(start, length, tokens not to be counted) of each piece; the pieces of each row."""


@dataclasses.dataclass
class Packed(ContextPacking):
    """Whole documents share a row; longer ones are cut into pieces of the row's length.

    Rows are filled best-fit on the histogram of lengths, longest first (Krell et al. 2021,
    arXiv:2107.02027), so little is padding and a large set is packed as fast as a small one.
    """

    def pieces(self, corpus: Corpus, length: int, context: int) -> tuple[np.ndarray, ...]:
        starts, lengths, skips = cut(corpus.offsets[:-1], corpus.lengths, length, context)
        order, counts = pack(lengths[:, None], (length,))
        return starts[order], lengths[order], skips[order], counts


@dataclasses.dataclass
class Concatenated(ContextPacking):
    """The documents one after the other, cut every `length` tokens: no padding but at the end.

    A segment still ends where a document ends. For one long text, such as characters of a novel.
    """

    def pieces(self, corpus: Corpus, length: int, context: int) -> tuple[np.ndarray, ...]:
        total = int(corpus.offsets[-1])
        # Row i counts the predictions from new[i] to new[i + 1].
        new = np.arange(length, max(total, length + 1), length - context, dtype=np.int64)
        new = np.concatenate([[0], new[new < total]])
        stop = np.append(new[1:], total)
        start = np.maximum(new - context, 0)
        start[0] = 0
        # The documents that a row touches, and the part of each that lies in it.
        first = np.searchsorted(corpus.offsets, start, side='right') - 1
        last = np.searchsorted(corpus.offsets, stop, side='left') - 1
        counts = last - first + 1
        row = np.repeat(np.arange(len(start)), counts)
        document = ranges(first, counts)
        begins = np.maximum(corpus.offsets[document], start[row])
        ends = np.minimum(corpus.offsets[document + 1], stop[row])
        skips = np.clip(new[row] - begins, 0, ends - begins)
        return begins, ends - begins, skips, counts


def cut(
    begin: np.ndarray, total: np.ndarray, length: int, context: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts stretches of `total` tokens from `begin` into pieces of at most `length`, in order.

    Returns (start, length, tokens not to be counted) of each piece. Each token is counted in
    exactly one piece; the later pieces of a stretch begin `context` tokens early.
    """
    step = length - context
    counts = 1 + np.maximum(0, -(-(total - length) // step))
    number = ranges(np.zeros(len(counts), np.int64), counts)
    document = np.repeat(np.arange(len(counts)), counts)
    new = np.where(number == 0, 0, length + (number - 1) * step)
    skips = np.where(number == 0, 0, context)
    starts = begin[document] + new - skips
    lengths = np.minimum(begin[document] + total[document] - starts, length)
    return starts, lengths, skips


def bounds(counts: np.ndarray) -> np.ndarray:
    """Where groups of so many neighbours begin, and where the last one ends: int64 [groups + 1]."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Concatenates start, start + 1, … (count numbers) for every pair."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - counts), counts)


def pack(sizes: np.ndarray, capacity: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Packs items of integer `sizes` [items, dims] into rows that hold `capacity` [dims].

    Returns (item numbers, row by row; how many each row has). Best fit on the histogram of sizes:
    items of one size are alike, so rows with the same mix are made together, and the time depends
    on the number of distinct sizes, not on that of items. Deterministic.
    """
    limit = np.asarray(capacity)
    code = np.ravel_multi_index(tuple(sizes.T), tuple(limit + 1))
    codes, counts = np.unique(code, return_counts=True)
    kinds = np.stack(np.unravel_index(codes, tuple(limit + 1)), axis=1)
    # Largest first, by the share of the row that the item takes in its longest dimension.
    share = kinds / limit
    ranking = np.lexsort((share.sum(1), share.max(1)))[::-1]

    gaps = np.zeros((256, len(limit)), np.int64)  # room left in each open mix of items
    mixes: list[tuple[int, tuple[int, ...]]] = []  # (rows with this mix, kinds in it)
    closed: list[tuple[int, tuple[int, ...]]] = []
    smallest = kinds.min(axis=0)
    for kind in ranking.tolist():
        left, size = int(counts[kind]), kinds[kind]
        while left:
            room = gaps[: len(mixes)] - size
            fits = (room >= 0).all(axis=1)
            best = -1
            rows, mix, free = left, (), limit
            if fits.any():
                best = int(np.where(fits, room.sum(axis=1), np.iinfo(np.int64).max).argmin())
                (rows, mix), free = mixes[best], gaps[best].copy()
            # As many of the kind as fit into each row; the last row takes what is left.
            each = min(left, int((free // size).min()))
            used = min(rows, left // each)
            gap = free - each * size
            left -= used * each
            if best >= 0 and used < rows:
                mixes[best] = (rows - used, mix)
            elif best >= 0:  # the last open mix takes the freed place
                gaps[best] = gaps[len(mixes) - 1]
                mixes[best] = mixes[-1]
                mixes.pop()
            mix = (*mix, *[kind] * each)
            if (gap < smallest).any():
                closed.append((used, mix))
                continue
            if len(mixes) == len(gaps):
                gaps = np.concatenate([gaps, np.zeros_like(gaps)])
            gaps[len(mixes)] = gap
            mixes.append((used, mix))

    # Hand out the items: those of one kind in their own order.
    by_kind = np.argsort(code, kind='stable')
    next_item = bounds(counts)[:-1]
    items, row_counts = [], []
    for rows, mix in closed + mixes:
        columns = []
        for kind in mix:
            columns.append(by_kind[next_item[kind] : next_item[kind] + rows])
            next_item[kind] += rows
        items.append(np.stack(columns, axis=1).ravel())
        row_counts.append(np.full(rows, len(mix), np.int64))
    return np.concatenate(items), np.concatenate(row_counts)


@dataclasses.dataclass
class PieceIndex:
    """Where the pieces of some rows lie in the corpus, and where they go in a block of rows.

    Attributes:
        shape: (rows, length) of the block.
        place: [tokens] place in the flat block.
        source: [tokens] start of the piece + position in it.
        position: [tokens] position in the piece.
        segment: [tokens] number of the piece in its row, from 1.
        piece: [tokens] index into the pieces given.
    """

    shape: tuple[int, int]
    place: np.ndarray
    source: np.ndarray
    position: np.ndarray
    segment: np.ndarray
    piece: np.ndarray

    def block(self, values: Any, fill: int, dtype: type = np.int32) -> np.ndarray:
        """[rows, length] with the value of each token [tokens] in its place, else `fill`."""
        flat = np.full(self.shape[0] * self.shape[1], fill, dtype)
        flat[self.place] = values
        return flat.reshape(self.shape)


def lay_out(starts: np.ndarray, lengths: np.ndarray, counts: np.ndarray, length: int) -> PieceIndex:
    """Puts the pieces, `counts` a row, one after the other into rows of `length`."""
    ends = np.cumsum(lengths)
    begins = ends - lengths
    row = np.repeat(np.arange(len(counts)), counts)
    first_piece = np.cumsum(counts) - counts
    column = begins - np.repeat(begins[first_piece], counts)
    piece = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(piece)) - begins[piece]
    number = ranges(np.ones(len(counts), np.int64), counts)
    place = (row * length + column)[piece] + position
    shape = len(counts), length
    return PieceIndex(shape, place, starts[piece] + position, position, number[piece], piece)


class PieceRows(GroupedRows):
    """Rows for next-token prediction: 'tokens', their 'targets', 'target_mask', 'bytes'.

    'target_mask' (bool) marks the predictions that count; over all rows each token of each
    document, and the separator that ends it, is marked exactly once. 'bytes' [batch] is the UTF-8
    size of the marked targets, so total nats / total bytes compares tokenizers.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        length: int,
        starts: np.ndarray,
        lengths: np.ndarray,
        skips: np.ndarray,
        counts: np.ndarray,
    ):
        super().__init__(counts)
        self.corpus, self.length, self.pad = corpus, length, tokenizer.pad
        self.token_bytes = tokenizer.token_bytes()
        self.starts, self.lengths, self.skips = starts, lengths, skips

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        counts, chosen = self.pieces(ids)
        index = lay_out(self.starts[chosen], self.lengths[chosen], counts, self.length)
        targets = self.corpus.ids[index.source + 1]
        counted = index.position >= self.skips[chosen][index.piece]
        rows = {
            'tokens': index.block(self.corpus.ids[index.source], self.pad),
            'targets': index.block(targets, self.pad),
            'target_mask': index.block(counted, 0, np.bool_),
            'segments': index.block(index.segment, 0),
            'positions': index.block(index.position, 0),
        }
        if self.token_bytes is not None:
            sizes = index.block(np.where(counted, self.token_bytes[targets], 0), 0)
            rows['bytes'] = sizes.sum(axis=1, dtype=np.int32)
        return rows
