"""Records of text from TensorFlow Datasets, such as lm1b, wmt14_translate or imdb_reviews."""

import dataclasses
import operator
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxdl.data import store
from jaxdl.data.splits import resolve, split_name
from jaxdl.data.text.files import Records, decode
from jaxdl.data.text.tokenizers import digest
from jaxdl.errors import UserError, nearest


def named_splits(evals: tuple[str, ...]) -> dict[str, str]:
    """{name: split expression}; an expression without 'name=' is its own name.

    Raises ValueError where two sets have the same name.
    """
    found = dict(map(split_name, evals))
    if len(found) < len(evals):
        raise ValueError(f'evals={evals}: two evaluation sets have the same name')
    return found


def tfds_records(name: str, split: str, fields: tuple[str, ...], data_dir: str) -> Records:
    """Text features of a split; prepares the set first, with its official builder, if it was not.

    Raises UserError where the set, the split or a feature does not exist.
    """
    from jaxdl.data import prepare

    root = store.data_dir(data_dir)
    builder = prepare.official_builder(name, root)
    if not pathlib.Path(builder.data_dir).is_dir():
        prepare.prepare_official(name, root)
        builder = prepare.official_builder(name, root)
    shards = {part: info.shard_lengths for part, info in builder.info.splits.items()}
    if shards:
        resolve(split, shards, dataset=name)
    try:
        source = builder.as_data_source(split)
    except NotImplementedError:
        raise UserError(
            f'{name}: {builder.data_dir} is in a format without random access; remove it, '
            f'then: {store.prepare_command(name, root)}'
        ) from None
    if not len(source):
        raise UserError(f'{name}: split {split!r} is empty')
    return TfdsRecords(source, f'{builder.info.full_name} {split}', fields)


@dataclasses.dataclass(frozen=True)
class TfdsRecords:
    """Text features of one split of a TensorFlow Datasets set that has been prepared.

    Attributes:
        source: random access to the examples, e.g. of tfds.data_source.
        identity: name, version and split; with the number of examples it decides the content.
        fields: features that make a record; 'a/b' is feature b of the nested feature a.
    """

    source: Any
    identity: str
    fields: tuple[str, ...]

    def key(self) -> str:
        # The prepared files of a version never change, so they are not read again to be hashed.
        return digest('tfds 1', self.identity, len(self.source), self.fields)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        for index in range(len(self.source)):
            row = self.source[index]
            yield tuple(self._text(row, field, index) for field in self.fields)

    def where(self, index: int) -> str:
        return f'{self.identity} example {index}'

    def _text(self, row: Any, field: str, index: int) -> str:
        value = row
        for part in field.split('/'):
            if not isinstance(value, dict) or part not in value:
                names = list(value) if isinstance(value, dict) else []
                raise UserError(
                    f'{self.where(index)}: has no feature {field!r}, only '
                    f'{", ".join(map(repr, names))}{nearest(part, names)}'
                )
            value = value[part]
        if isinstance(value, str):
            return value
        if isinstance(value, bytes):
            return decode(value, self.where(index))
        try:
            return str(operator.index(value))
        except TypeError:
            raise UserError(f'{self.where(index)}: feature {field!r} is no text') from None
