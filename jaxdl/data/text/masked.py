"""Rows for masked language models: whole documents packed, or pairs of stretches.

Which tokens are hidden is not decided here but on the device (jaxdl.tasks.masked_lm): a row holds
the true tokens and says which of them may be hidden.
"""

import dataclasses

import numpy as np

from jaxdl.api import Rows
from jaxdl.data.text.corpus import Corpus
from jaxdl.data.text.packing import CorpusRows, DocumentPacking, GroupedRows, cut, lay_out, pack
from jaxdl.data.text.tokenizers import Tokenizer
from jaxdl.errors import UserError


@dataclasses.dataclass
class Masked(DocumentPacking):
    """Rows of BERT's form (arXiv:1810.04805).

    Without next_sentence several documents share a row, each as [cls] tokens [sep] in a segment of
    its own. With it a row is [cls] A [sep] B [sep]: B follows A in the text, or, for half of the
    rows, is a stretch of another document; which is a pure function of (seed, row).

    Attributes:
        next_sentence: make pairs for the next-sentence objective.
        seed: decides the pairs.
    """

    next_sentence: bool = False
    seed: int = 0

    def check_length(self, length: int) -> None:
        if length < 8:
            raise UserError(f'data.length={length}: masked language models need at least 8')

    def rows(self, corpus: Corpus, tokenizer: Tokenizer, *, length: int, train: bool) -> CorpusRows:
        del train  # an evaluation sees the same kind of rows
        self.check_length(length)
        room = length - 3 if self.next_sentence else length - 2
        document = np.flatnonzero(corpus.lengths > 1)  # the separator counts as one
        begin = corpus.offsets[:-1][document] + 1
        starts, lengths, _ = cut(begin, corpus.lengths[document] - 1, room)
        if not len(starts):
            raise UserError('the text has no tokens in it, only characters the tokenizer drops')
        if not self.next_sentence:
            order, counts = pack(lengths[:, None] + 2, (length,))
            return MaskedRows(corpus, tokenizer, length, starts[order], lengths[order], counts)
        owner = np.searchsorted(begin, starts, side='right')
        keep = lengths >= 2
        if len(np.unique(owner[keep])) < 2:
            raise UserError(
                'packing.next_sentence needs at least two documents of two tokens or more; '
                "if the text is one file, set data.source.documents='paragraph' or 'line'"
            )
        return NextSentenceRows(
            corpus, tokenizer, length, starts[keep], lengths[keep], owner[keep], self.seed
        )

    def apart(
        self, corpus: Corpus, tokenizer: Tokenizer, *, length: int
    ) -> tuple[CorpusRows, np.ndarray]:
        if self.next_sentence:
            raise UserError(
                'a model of pairs (packing.next_sentence) predicts rows of arrays only: a .npz file '
                f'with {", ".join(self.example(length, sized=False))}'
            )
        begin = corpus.offsets[:-1] + 1
        starts, lengths, _ = cut(begin, corpus.lengths - 1, length - 2)
        one = np.ones(len(starts), np.int64)
        rows = MaskedRows(corpus, tokenizer, length, starts, lengths, one)
        return rows, np.searchsorted(begin, starts, side='right') - 1

    def example(self, length: int, *, sized: bool) -> dict[str, np.ndarray]:
        del sized
        names = ('tokens', 'segments', 'positions')
        row: Rows = {name: np.zeros(length, np.int32) for name in names}
        row['maskable'] = np.zeros(length, np.bool_)
        row['row'] = np.zeros((), np.int32)
        if self.next_sentence:
            row['token_types'] = np.zeros(length, np.int32)
            row['next_sentence'] = np.zeros((), np.int32)
        return row


class MaskedRows(GroupedRows):
    """'tokens', 'segments', 'positions' [batch, length], 'maskable' (bool: not special), 'row'."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        length: int,
        starts: np.ndarray,
        lengths: np.ndarray,
        counts: np.ndarray,
    ):
        super().__init__(counts)
        self.corpus, self.tokenizer, self.length = corpus, tokenizer, length
        self.starts, self.lengths = starts, lengths

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        counts, chosen = self.pieces(ids)
        lengths = self.lengths[chosen]
        # One place before the piece holds cls, one behind it sep.
        index = lay_out(self.starts[chosen] - 1, lengths + 2, counts, self.length)
        start = index.position == 0
        end = index.position == lengths[index.piece] + 1
        tokens = self.corpus.ids[index.source].astype(np.int32)
        tokens[start], tokens[end] = self.tokenizer.cls, self.tokenizer.sep
        return {
            'tokens': index.block(tokens, self.tokenizer.pad),
            'segments': index.block(index.segment, 0),
            'positions': index.block(index.position, 0),
            'maskable': index.block(~(start | end), 0, np.bool_),
            'row': ids.astype(np.int32),
        }


class NextSentenceRows(CorpusRows):
    """As MaskedRows, with 'token_types' (0 for A, 1 for B) and 'next_sentence' [batch] (1: random)."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        length: int,
        starts: np.ndarray,
        lengths: np.ndarray,
        owner: np.ndarray,
        seed: int,
    ):
        self.corpus, self.tokenizer, self.length, self.seed = corpus, tokenizer, length, seed
        self.starts, self.lengths = starts, lengths
        # The pieces of one document are neighbours: from first_piece up to last_piece.
        self.first_piece = np.searchsorted(owner, owner, side='left')
        self.last_piece = np.searchsorted(owner, owner, side='right')

    def __len__(self) -> int:
        return len(self.starts)

    def pairs(self, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        """(start of A, length of A, start of B, length of B, whether B is random) of rows `ids`."""
        start, length = self.starts[ids], self.lengths[ids]
        split = 1 + draw(self.seed, ids, 0, length - 1)
        random = draw(self.seed, ids, 1, np.full(len(ids), 2)) == 1
        own = self.last_piece[ids] - self.first_piece[ids]
        other = draw(self.seed, ids, 2, len(self) - own)
        other = np.where(other >= self.first_piece[ids], other + own, other)
        size = np.where(random, np.minimum(length - split, self.lengths[other]), length - split)
        shift = draw(self.seed, ids, 3, np.where(random, self.lengths[other] - size, 0) + 1)
        second = np.where(random, self.starts[other] + shift, start + split)
        return start, split, second, size, random

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        start, split, second, size, random = (x[:, None] for x in self.pairs(ids))
        at = np.arange(self.length)[None]
        in_a = (at >= 1) & (at <= split)
        in_b = (at >= split + 2) & (at <= split + 1 + size)
        used = at <= split + size + 2
        source = np.where(in_a, start + at - 1, np.where(in_b, second + at - split - 2, 0))
        tokens = np.where(used, self.tokenizer.sep, self.tokenizer.pad)
        tokens = np.where(in_a | in_b, self.corpus.ids[source], tokens)
        tokens[:, 0] = self.tokenizer.cls
        return {
            'tokens': tokens.astype(np.int32),
            'segments': used.astype(np.int32),
            'positions': np.where(used, at, 0).astype(np.int32),
            'maskable': in_a | in_b,
            'token_types': (used & (at >= split + 2)).astype(np.int32),
            'next_sentence': random[:, 0].astype(np.int32),
            'row': ids.astype(np.int32),
        }


def draw(seed: int, ids: np.ndarray, stream: int, bound: np.ndarray) -> np.ndarray:
    """Random numbers in [0, bound) that depend on (seed, id, stream) alone (SplitMix64)."""
    with np.errstate(over='ignore'):
        x = np.asarray(ids, np.uint64) * np.uint64(8) + np.uint64(stream)
        x += np.uint64(seed % 2**64) * np.uint64(0xD1342543DE82EF95)
        x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return ((x >> np.uint64(11)) % np.asarray(bound, np.uint64)).astype(np.int64)
