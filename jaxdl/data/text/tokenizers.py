"""Tokenizers: bytes, byte-level BPE trained on the run's own text, and WordPiece vocabularies.

A tokenizer is a small dataclass of settings, so it sits in a config; what it learns is state
beside the fields, which `fit` or `load` fills and `save` writes into a run's folder. A document
never contains special tokens: `<sep>` written in a text is five ordinary characters.
"""

import abc
import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdl.data import cached
from jaxdl.data.text.reading import digest, read_text
from jaxdl.errors import UserError, at_least
from jaxdl.files import expanded

FILE = 'tokenizer.json'


class Tokenizer(abc.ABC):
    """What every tokenizer offers; ids are below `vocab_size`.

    `sep` ends every document and also starts it (GPT-2's use of one token for both), `pad` fills
    rows, `cls` starts a row of a masked language model and `mask` hides a token there.
    """

    vocab_size: int
    pad: int
    sep: int
    cls: int
    mask: int

    @property
    def fitted(self) -> bool:
        """Whether it needs to learn nothing more."""
        return True

    @property
    def sized(self) -> bool:
        """Whether token_bytes gives a table."""
        return True

    def read(self) -> None:
        """Takes what is known without a text, such as a published vocabulary, unless it was taken."""

    def fit(self, texts: Callable[[], Iterable[str]], *, key: str, cache: Path) -> None:
        """Learns from `texts()` unless already learned; `key` is a hash of those texts."""
        del texts, key, cache  # Bytes has nothing to learn.

    @abc.abstractmethod
    def encode_many(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of all texts, one after the other [tokens], and each length [texts]."""

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids [tokens] of one text as int32, without special tokens."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(
                f'{text[:40]!r}: holds half a UTF-16 character or bytes that are not UTF-8; '
                'give the text in UTF-8'
            ) from None
        return self.encode_many([text])[0].astype(np.int32)

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; special tokens are dropped, broken UTF-8 becomes U+FFFD."""

    def token_bytes(self) -> np.ndarray | None:
        """UTF-8 bytes of each id [vocab_size], 0 for special tokens; None where this is unknown."""
        return None

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """What `load` needs, as plain JSON values."""

    @abc.abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; raises ValueError where the settings do not match."""

    def fingerprint(self) -> str:
        """A hash of everything that decides the ids: two equal ones give equal ids for any text."""
        return digest(json.dumps(self.state(), sort_keys=True))

    def describe(self) -> str:
        return f'{type(self).__name__} of {self.vocab_size} tokens, {self.fingerprint()[:12]}'

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `tokenizer.json` into `folder`, whole or not at all. Raises OSError."""
        content = {
            'tokenizer': type(self).__name__,
            'description': self.describe(),
            'fingerprint': self.fingerprint(),
            'state': self.state(),
        }
        cached.write_object(Path(folder) / FILE, content)

    def load(self, folder: str | os.PathLike) -> None:
        """Takes the state from a folder that `save` wrote.

        Raises UserError where the file is missing, damaged or of another kind of tokenizer.
        """
        content = _read(Path(folder) / FILE)
        if content['tokenizer'] != type(self).__name__:
            raise UserError(
                f'{Path(folder) / FILE} holds {content["description"]}, but the config asks for '
                f'{type(self).__name__}; a model only understands the tokenizer it was trained with'
            )
        try:
            self.restore(content['state'])
        except UserError:
            raise
        except Exception as error:  # a state of any other form; the library's own errors too
            raise UserError(f'{Path(folder) / FILE}: {error}') from None


def keep(tokenizer: Tokenizer, folder: str | os.PathLike) -> None:
    """Saves a fitted tokenizer into a run's folder, or compares it with the one already there.

    Raises UserError where they differ: the weights of that run belong to the other tokenizer.
    """
    path = Path(folder) / FILE
    if not path.exists():
        tokenizer.save(folder)
        return
    content = _read(path)
    if content['fingerprint'] != tokenizer.fingerprint():
        raise UserError(
            f'{path} holds {content["description"]}, but this run has {tokenizer.describe()}: the '
            'text or the settings it was trained on changed.\nThe checkpoint fits only its own '
            'tokenizer; use the old text and settings, or another workdir.'
        )


@dataclasses.dataclass
class Bytes(Tokenizer):
    """One token per UTF-8 byte (ids 0 to 255), then sep, pad, cls and mask: 260 ids in all."""

    def __post_init__(self):
        self.vocab_size = 260
        self.sep, self.pad, self.cls, self.mask = 256, 257, 258, 259

    def encode_many(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [text.encode() for text in texts]
        ids = np.frombuffer(b''.join(encoded), np.uint8).astype(np.uint16)
        return ids, np.fromiter(map(len, encoded), np.int64, len(encoded))

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in map(int, ids) if i < 256).decode(errors='replace')

    def token_bytes(self) -> np.ndarray:
        return (np.arange(self.vocab_size) < 256).astype(np.int32)

    def state(self) -> dict[str, Any]:
        return {'format': 1}

    def restore(self, state: dict[str, Any]) -> None:
        if state != self.state():
            raise ValueError(f'format {state.get("format")} is unknown to this version')


class LibraryTokenizer(Tokenizer):
    """What a tokenizer of the `tokenizers` library shares, once it has learned or read something."""

    _engine: Any = None

    @property
    def fitted(self) -> bool:
        return self._engine is not None

    def engine(self) -> Any:
        """The library's own object."""
        if self._engine is None:
            raise RuntimeError(f'{type(self).__name__} has learned nothing: call fit or load first')
        return self._engine

    def encode_many(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        # The batch call spreads the texts over threads and leaves out character offsets.
        encoded = self.engine().encode_batch_fast(list(texts), add_special_tokens=False)
        arrays = [np.asarray(e.ids, np.uint32) for e in encoded]
        ids = np.concatenate(arrays) if arrays else np.zeros(0, np.uint32)
        return ids, np.fromiter(map(len, arrays), np.int64, len(arrays))


@dataclasses.dataclass
class Bpe(LibraryTokenizer):
    """Byte-level byte pair encoding trained on the training text (Sennrich et al. 2016).

    Any text encodes and decodes exactly. Ids: pad, sep, cls, mask, then 256 bytes, then merges.
    The same text and settings give the same tokenizer, whichever way it is read.

    Attributes:
        vocab_size: ids in all, the 4 special tokens and 256 bytes included; a small text may fill fewer.
        train_bytes: the tokenizer is trained on about this many bytes from the start of the training text.
    """

    vocab_size: int = 8192
    train_bytes: int = 100_000_000

    def __post_init__(self):
        self.pad, self.sep, self.cls, self.mask = range(SPECIALS)
        self._merges: list[tuple[str, str]] = []
        self._pieces: list[bytes] = []

    def check(self):
        if not SPECIALS + 256 <= self.vocab_size <= 1 << 24:
            raise ValueError(f'vocab_size={self.vocab_size}: must be from 260 to 16777216')
        at_least(self, train_bytes=1)

    def fit(self, texts: Callable[[], Iterable[str]], *, key: str, cache: Path) -> None:
        if self._engine is not None:
            return
        self.check()
        folder = cache / f'bpe-{digest("2", key, self.vocab_size, self.train_bytes)[:32]}'
        if (folder / FILE).exists():
            try:
                return self.load(folder)
            except UserError:
                pass  # A damaged copy in the cache is made anew.
        self._build(_learn(_first(texts(), self.train_bytes), self.vocab_size - SPECIALS))
        with cached.writing(cache):
            self.save(folder)

    def _build(self, merges: list[tuple[str, str]]) -> None:
        """Makes the encoder: the ids are the bytes in order, then the merges in order."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        alphabet = byte_alphabet()
        vocab = {symbol: i for i, symbol in enumerate(alphabet)}
        for left, right in merges:
            vocab.setdefault(left + right, len(vocab))
        self._engine = Tokenizer(models.BPE(vocab, merges))
        self._engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._merges = merges
        byte_of = {symbol: byte for byte, symbol in enumerate(alphabet)}
        self._pieces = [bytes(byte_of[symbol] for symbol in token) for token in vocab]

    def encode_many(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        parts = [_cut(text) for text in texts]
        ids, lengths = super().encode_many([part for cut in parts for part in cut])
        ends = np.cumsum([0, *lengths])[np.cumsum([0, *map(len, parts)])]
        return ids + np.uint32(SPECIALS), np.diff(ends)

    def decode(self, ids: Iterable[int]) -> str:
        self.engine()
        size = len(self._pieces)
        found = (i - SPECIALS for i in map(int, ids))
        return b''.join(self._pieces[i] for i in found if 0 <= i < size).decode(errors='replace')

    def token_bytes(self) -> np.ndarray:
        self.engine()
        table = np.zeros(self.vocab_size, np.int32)
        table[SPECIALS : SPECIALS + len(self._pieces)] = [len(piece) for piece in self._pieces]
        return table

    def state(self) -> dict[str, Any]:
        self.engine()
        return {'format': 1, 'vocab_size': self.vocab_size, 'merges': self._merges}

    def restore(self, state: dict[str, Any]) -> None:
        if state.get('format') != 1:
            raise ValueError(f'format {state.get("format")} is unknown to this version')
        if state['vocab_size'] != self.vocab_size:
            raise ValueError(
                f'the saved tokenizer has vocab_size={state["vocab_size"]}, the config '
                f'{self.vocab_size}; a model only understands the tokenizer it was trained with'
            )
        self._build([tuple(pair) for pair in state['merges']])


@dataclasses.dataclass
class WordPiece(LibraryTokenizer):
    """BERT's WordPiece over a published vocabulary file, one token a line (arXiv:1810.04805).

    Decoding gives normalised text, not the original, so bits per byte are not defined.

    Attributes:
        vocab: path of a `vocab.txt` with [PAD], [UNK], [CLS], [SEP] and [MASK] in it.
        lowercase: lower-case the text and strip accents, as the uncased models do.
    """

    vocab: str = 'vocab.txt'
    lowercase: bool = True

    def __post_init__(self):
        self._tokens: list[str] = []

    @property
    def sized(self) -> bool:
        return False

    def fit(self, texts: Callable[[], Iterable[str]], *, key: str, cache: Path) -> None:
        del texts, key, cache
        self.read()

    def read(self) -> None:
        if self._engine is not None:
            return
        try:
            text = read_text(Path(expanded(self.vocab)))
        except UserError as error:
            raise UserError(f'data.tokenizer.vocab={self.vocab!r}: {error}') from None
        lines = text.removesuffix('\n').split('\n')
        self._build([line.removesuffix('\r') for line in lines])

    def _build(self, tokens: list[str]) -> None:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

        index = {token: i for i, token in enumerate(tokens)}
        for token in ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'):
            if token not in index:
                raise UserError(f'data.tokenizer.vocab={self.vocab!r}: has no line {token}')
        engine = Tokenizer(models.WordPiece(index, unk_token='[UNK]'))
        engine.normalizer = normalizers.BertNormalizer(
            lowercase=self.lowercase, strip_accents=self.lowercase
        )
        engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        engine.decoder = decoders.WordPiece()
        self._engine, self._tokens = engine, tokens
        self.vocab_size = len(tokens)
        self.pad, self.cls = index['[PAD]'], index['[CLS]']
        self.sep, self.mask = index['[SEP]'], index['[MASK]']

    def decode(self, ids: Iterable[int]) -> str:
        engine = self.engine()
        special = {self.pad, self.cls, self.sep, self.mask}
        return engine.decode([i for i in map(int, ids) if i not in special])

    def state(self) -> dict[str, Any]:
        self.engine()
        return {'format': 1, 'lowercase': self.lowercase, 'tokens': self._tokens}

    def restore(self, state: dict[str, Any]) -> None:
        if state.get('format') != 1:
            raise ValueError(f'format {state.get("format")} is unknown to this version')
        if state['lowercase'] != self.lowercase:
            raise ValueError(f'saved with lowercase={state["lowercase"]}, the config differs')
        self._build(list(state['tokens']))


SPECIALS = 4
"""Ids that Bpe keeps for pad, sep, cls and mask."""

LONGEST_WORD = 1 << 10
"""Bytes after which a word is cut when byte pairs are learned."""

PART = 1 << 16
"""Characters after which a long document is cut for the threads."""


def byte_alphabet() -> list[str]:
    """The printable character that stands for each of the 256 bytes (GPT-2's table)."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = iter(range(256, 512))
    return [chr(byte if byte in kept else next(moved)) for byte in range(256)]


def _cut(text: str) -> list[str]:
    """Cuts a long text where it cannot change a token: before white space that follows a word.

    GPT-2's splitting pattern starts a new piece there in any case, so the ids stay the same.
    """
    if len(text) <= PART:
        return [text]
    parts, start = [], 0
    while len(text) - start > PART:
        end = start + PART
        while end < len(text) and not (text[end] in ' \n' and text[end - 1].isalnum()):
            end += 1
        parts.append(text[start:end])
        start = end
    if start < len(text):
        parts.append(text[start:])
    return parts


def _first(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Yields texts, the last one cut, until about `limit` bytes."""
    for text in texts:
        for part in _cut(text):
            size = len(part.encode())
            yield part if size <= limit else part[:limit]
            limit -= size
            if limit <= 0:
                return


def _learn(texts: Iterable[str], size: int) -> list[tuple[str, str]]:
    """The merges of byte pairs, at most as many as make `size` tokens.

    The library learns in a thread of its own, so that this one hears signals meanwhile.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE())
    # Its time grows with the square of the longest word, so words are cut; none of a language is
    # that long.
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.FixedLength(length=LONGEST_WORD),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    errors: list[BaseException] = []
    done = threading.Event()

    def learn() -> None:
        try:
            engine.train_from_iterator(texts, trainer)
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=learn, name='learn byte pairs', daemon=True).start()
    done.wait()
    if errors:
        raise errors[0]
    # The library's own words, not a file's.
    return [tuple(pair) for pair in json.loads(engine.to_str())['model']['merges']]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = cached.read_object(path)
    except FileNotFoundError:
        raise UserError(f'{path}: no tokenizer can be read (there is no such file)') from None
    if {'tokenizer', 'description', 'fingerprint', 'state'} - set(content):
        raise cached.DamagedFile(f'{path} is damaged: not a saved tokenizer')
    return content
