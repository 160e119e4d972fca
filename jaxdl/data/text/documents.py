"""Documents for language models, as rows of tokens."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxdl.api import Source
from jaxdl.data.text.corpus import Corpus
from jaxdl.data.text.packing import DocumentPacking, Packed
from jaxdl.data.text.sources import Records
from jaxdl.data.text.text_set import TextSet
from jaxdl.data.text.tokenizers import Bytes, Tokenizer


@dataclasses.dataclass
class Documents(TextSet):
    """Documents; how they share rows is said by the packing.

    Attributes:
        length: tokens of a row.
        packing: Packed(), Concatenated() or, for masked language models, Masked().
    """

    tokenizer: Tokenizer = dataclasses.field(default_factory=Bytes)
    length: int = 256
    packing: DocumentPacking = dataclasses.field(default_factory=Packed)

    def check(self):
        super().check()
        self.packing.check_length(self.length)

    def lengths(self) -> dict[str, int]:
        return {'length': self.length}

    def example(self) -> dict[str, np.ndarray]:
        return self.packing.example(self.length, sized=self.tokenizer.sized)

    def rows_of_texts(
        self, corpora: Sequence[Corpus], records: Records
    ) -> tuple[Source, np.ndarray]:
        del records
        (corpus,) = corpora
        return self.packing.apart(corpus, self.tokenizer, length=self.length)

    def rows(self, records: Records, *, train: bool) -> Source:
        (corpus,) = self.corpora(records)
        return self.packing.rows(corpus, self.tokenizer, length=self.length, train=train)
