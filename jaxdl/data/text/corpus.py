"""Text turned into ids once: flat arrays on disk that later starts only map into memory.

A corpus of D documents is one array `ids` and D + 1 offsets. Document k stands between two
separators: ids[offsets[k]] is the separator before it and ids[offsets[k + 1]] the one after, so
both the inputs and the targets of any stretch are plain slices of one array.
"""

import array
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxdl.data import cached
from jaxdl.data.text.reading import digest
from jaxdl.data.text.sources import Records
from jaxdl.data.text.tokenizers import Tokenizer
from jaxdl.errors import UserError
from jaxdl.files import needed_cache_folder, replacing

BATCH = 1 << 22
"""Characters that are handed to the tokenizer at once."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents as ids.

    Attributes:
        ids: [tokens + documents + 1] uint16 or uint32, with a separator around every document.
        offsets: int64 [documents + 1] places of the separators.
        sep: the separator's id.
        size: UTF-8 bytes of all documents.
    """

    ids: np.ndarray
    offsets: np.ndarray
    sep: int
    size: int

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Tokenizer) -> 'Corpus':
        """Few texts, in memory alone."""
        dtype = _dtype(tokenizer)
        flat, lengths = _separated(texts, tokenizer, dtype)
        ids = np.concatenate([np.array([tokenizer.sep], dtype), flat])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(ids, offsets, tokenizer.sep, sum(len(text.encode()) for text in texts))

    @property
    def lengths(self) -> np.ndarray:
        """Predictions in each document, int64 [documents]: its tokens and the separator after it."""
        return np.diff(self.offsets)

    def tokens(self, document: int) -> np.ndarray:
        """The ids of one document without separators."""
        return self.ids[self.offsets[document] + 1 : self.offsets[document + 1]]


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def _separated(
    texts: Sequence[str], tokenizer: Tokenizer, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """(the ids of all texts with a separator after each, the length of each with its separator)."""
    ids, lengths = tokenizer.encode_many(texts)
    ends = np.cumsum(lengths + 1)
    flat = np.full(ends[-1], tokenizer.sep, dtype)
    keep = np.ones(len(flat), bool)
    keep[ends - 1] = False
    flat[keep] = ids
    return flat, lengths + 1


def corpora(records: Records, tokenizer: Tokenizer, columns: int, folder: str = '') -> list[Corpus]:
    """Returns one corpus for each of the first `columns` columns, from the cache where it can.

    The cache is keyed by the text's and the tokenizer's hashes, written whole or not at all, and
    checked when it is read; what is damaged is made again.
    """
    root = needed_cache_folder(folder) / 'text'
    key = records.key(), tokenizer.fingerprint()
    paths = [root / digest('corpus 2', *key, column)[:32] for column in range(columns)]
    found = [corpus for path in paths if (corpus := _load(path, tokenizer.sep))]
    if len(found) < columns:
        with cached.writing(root):
            _build(paths, records, tokenizer)
        found = [corpus for path in paths if (corpus := _load(path, tokenizer.sep))]
    if len(found) < columns:
        raise UserError(f'the tokenised text in {root} cannot be read back; is the disk sound?')
    return found


def _load(path: Path, sep: int) -> Corpus | None:
    """The corpus at `path`.*, or None where it is missing, damaged or half written."""
    try:
        meta = cached.read_object(path.with_suffix('.json'))
        ids = cached.read_array(path.with_suffix('.ids.npy'), meta['ids'], mapped=True)
        offsets = cached.read_array(path.with_suffix('.offsets.npy'), meta['offsets'])
        return Corpus(ids, offsets, sep, meta['bytes'])
    except (FileNotFoundError, cached.DamagedFile, KeyError):
        return None


def _build(paths: list[Path], records: Records, tokenizer: Tokenizer) -> None:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(replacing(path.with_suffix('.ids.npy'))) for path in paths]
        writers = [_IdsWriter(file, tokenizer) for file in files]
        for batch in _batches(records):
            for column, writer in enumerate(writers):
                writer.add([record[column] for record in batch])
        for writer in writers:
            writer.finish()
    for path, writer in zip(paths, writers, strict=True):
        ids = np.load(path.with_suffix('.ids.npy'), mmap_mode='r')
        offsets = cached.write_array(path.with_suffix('.offsets.npy'), np.cumsum(writer.lengths))
        meta = {'ids': cached.entry_of(ids), 'offsets': offsets, 'bytes': writer.bytes}
        # Last, so that a reader who finds it finds the rest too.
        cached.write_object(path.with_suffix('.json'), meta)


def _batches(records: Iterable[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    batch, size = [], 0
    for record in records:
        batch.append(record)
        size += sum(map(len, record))
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _IdsWriter:
    """Appends documents to a .npy file whose length is known only at the end.

    Attributes:
        lengths: 0, then the tokens of each document with its separator.
        bytes: UTF-8 bytes of all documents.
    """

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer):
        self.file, self.tokenizer = file, tokenizer
        self.dtype = _dtype(tokenizer)
        self.lengths = array.array('q', [0])
        self.bytes, self.count = 0, 0
        self._header()
        self._write(np.array([tokenizer.sep], self.dtype))

    def _header(self) -> None:
        # A header for any length is as long, so the true one is written over the first guess.
        self.file.seek(0)
        self.file.write(cached.npy_header(self.dtype, (self.count,)))

    def _write(self, ids: np.ndarray) -> None:
        self.file.write(ids.tobytes())
        self.count += len(ids)

    def add(self, texts: list[str]) -> None:
        flat, lengths = _separated(texts, self.tokenizer, self.dtype)
        self.bytes += sum(len(text.encode()) for text in texts)
        self._write(flat)
        self.lengths.extend(lengths.tolist())

    def finish(self) -> None:
        self._header()
