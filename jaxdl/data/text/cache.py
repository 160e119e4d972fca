"""Text turned into ids once: flat arrays on disk that later starts only map into memory.

A corpus of D documents is one array `ids` and D + 1 offsets. Document k stands between two
separators: ids[offsets[k]] is the separator before it and ids[offsets[k + 1]] the one after, so
both the inputs and the targets of any stretch are plain slices of one array.
"""

import array
import dataclasses
import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from jaxdl.data.text.files import Records
from jaxdl.data.text.tokenizers import Tokenizer, digest, write_atomically
from jaxdl.errors import UserError

BATCH = 1 << 22
"""Characters that are handed to the tokenizer at once."""

VERIFY = 1 << 28
"""Bytes up to which the cached ids are checked in full; larger files by their ends and length."""


def cache_root(folder: str = '') -> Path:
    """The folder for derived data: `folder`, or $JAXDL_CACHE, or jaxdl in the user's cache folder."""
    if folder or os.environ.get('JAXDL_CACHE'):
        return Path(folder or os.environ['JAXDL_CACHE']).expanduser()
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(base) / 'jaxdl'


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

    @property
    def lengths(self) -> np.ndarray:
        """Predictions in each document, int64 [documents]: its tokens and the separator after it."""
        return np.diff(self.offsets)

    def tokens(self, document: int) -> np.ndarray:
        """The ids of one document without separators."""
        return self.ids[self.offsets[document] + 1 : self.offsets[document + 1]]


def corpora(records: Records, tokenizer: Tokenizer, columns: int, folder: str = '') -> list[Corpus]:
    """Returns one corpus for each of the first `columns` columns, from the cache where it can.

    The cache is keyed by the text's and the tokenizer's hashes, written whole or not at all, and
    checked when it is read; what is damaged is made again.
    """
    root = cache_root(folder) / 'text'
    keys = [
        digest('corpus 1', records.key(), tokenizer.fingerprint(), column)[:32]
        for column in range(columns)
    ]
    found = [_load(root / key, tokenizer) for key in keys]
    if all(corpus is not None for corpus in found):
        return [corpus for corpus in found if corpus is not None]
    try:
        root.mkdir(parents=True, exist_ok=True)
        _build([root / key for key in keys], records, tokenizer)
    except OSError as error:
        raise UserError(
            f'the tokenised text cannot be written to {root} ({error.strerror}); '
            'set JAXDL_CACHE to a folder with space'
        ) from None
    built = [_load(root / key, tokenizer) for key in keys]
    if any(corpus is None for corpus in built):
        raise UserError(f'the tokenised text in {root} cannot be read back; is the disk full?')
    return [corpus for corpus in built if corpus is not None]


def _load(path: Path, tokenizer: Tokenizer) -> Corpus | None:
    """The corpus at `path`.*, or None where it is missing, damaged or half written."""
    try:
        meta = json.loads(path.with_suffix('.json').read_bytes())
        ids = np.load(path.with_suffix('.ids.npy'), mmap_mode='r')
        offsets = np.load(path.with_suffix('.offsets.npy'))
        if (len(ids), len(offsets)) != (meta['ids'], meta['offsets']):
            return None
        if zlib.crc32(offsets.data) != meta['offsets_crc'] or _checksum(ids) != meta['ids_crc']:
            return None
        return Corpus(ids, offsets, tokenizer.sep, meta['bytes'])
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _checksum(ids: np.ndarray) -> int:
    if ids.nbytes <= VERIFY:
        return zlib.crc32(ids.data)
    part = (1 << 24) // ids.itemsize
    return zlib.crc32(ids[-part:].data, zlib.crc32(ids[:part].data))


def _build(paths: list[Path], records: Records, tokenizer: Tokenizer) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    writers = [_Writer(path, dtype, tokenizer.sep) for path in paths]
    try:
        for batch in _batches(records):
            for column, writer in enumerate(writers):
                writer.add([record[column] for record in batch], tokenizer)
        for writer in writers:
            writer.finish()
    finally:
        for writer in writers:
            writer.discard()


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


class _Writer:
    """Appends documents to a .npy file whose length is known only at the end."""

    def __init__(self, path: Path, dtype: np.dtype, sep: int):
        self.path, self.dtype, self.sep = path, dtype, sep
        tag = f'{os.getpid()}.{threading.get_ident()}'
        self.partial = path.with_name(f'.{path.name}.{tag}.tmp')
        self.file = open(self.partial, 'wb')
        self.lengths = array.array('q')
        self.bytes = 0
        self.count = 0
        self._header()
        self._write(np.array([sep], dtype))

    def _header(self) -> None:
        # numpy leaves room in the header for any length along the first axis, so the true length
        # can be written over the first guess without moving the data.
        header = {'descr': self.dtype.str, 'fortran_order': False, 'shape': (self.count,)}
        self.file.seek(0)
        np.lib.format.write_array_header_1_0(self.file, header)

    def _write(self, ids: np.ndarray) -> None:
        self.file.write(ids.tobytes())
        self.count += len(ids)

    def add(self, texts: list[str], tokenizer: Tokenizer) -> None:
        ids, lengths = tokenizer.encode_many(texts)
        self.bytes += sum(len(text.encode()) for text in texts)
        ends = np.cumsum(lengths + 1)
        flat = np.full(ends[-1], self.sep, self.dtype)
        keep = np.ones(len(flat), bool)
        keep[ends - 1] = False
        flat[keep] = ids
        self._write(flat)
        self.lengths.extend((lengths + 1).tolist())

    def finish(self) -> None:
        self._header()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        offsets = np.concatenate([[0], np.cumsum(np.asarray(self.lengths, np.int64))])
        offsets = offsets.astype(np.int64)
        ids = np.load(self.partial, mmap_mode='r')
        meta = {
            'ids': len(ids),
            'offsets': len(offsets),
            'ids_crc': _checksum(ids),
            'offsets_crc': zlib.crc32(offsets.data),
            'bytes': self.bytes,
        }
        os.replace(self.partial, self.path.with_suffix('.ids.npy'))
        buffer = self.partial.with_suffix('.offsets')
        with open(buffer, 'wb') as file:
            np.save(file, offsets)
        os.replace(buffer, self.path.with_suffix('.offsets.npy'))
        # Last, so that a reader who finds it finds the rest too.
        write_atomically(self.path.with_suffix('.json'), json.dumps(meta).encode())

    def discard(self) -> None:
        self.file.close()
        self.partial.unlink(missing_ok=True)
