"""Examples in ArrayRecord shards, decoded when they are asked for or once into memory."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from jaxdl.api import Source
from jaxdl.data import store
from jaxdl.data.arrays import ArraySource, slices
from jaxdl.data.images.pictures import TARGETS, NotUnderstoodError, open_picture, picture_array
from jaxdl.data.splits import resolve
from jaxdl.data.threads import in_chunks, pool
from jaxdl.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class RecordLayout:
    """The features that are kept.

    Attributes:
        shapes: of each feature.
        dtypes: of each feature.
        pictures: those that are encoded pictures, with what is done to them: 'resized' to fit,
            'mask' of class numbers, or nothing ('').
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]
    pictures: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def row_bytes(self) -> int:
        """Bytes of one decoded example."""
        return sum(
            int(np.prod(self.shapes[name], dtype=np.int64)) * self.dtypes[name].itemsize
            for name in self.shapes
        )

    def empty(self, rows: int) -> dict[str, np.ndarray]:
        """Returns uninitialised arrays [rows, ...]."""
        return {n: np.empty((rows, *self.shapes[n]), self.dtypes[n]) for n in self.shapes}

    def write(self, out: dict[str, np.ndarray], place: int, example: dict[str, Any]) -> None:
        """Writes one decoded example into row `place`."""
        for name, array in out.items():
            value, kind = example[name], self.pictures.get(name)
            if kind is not None and isinstance(value, bytes):
                value = self._picture(value, name, kind)
            elif kind == 'resized':  # data that tfds.testing.mock_data makes up
                value = fitted(Image.fromarray(value.squeeze()), self.shapes[name])
            array[place] = value

    def _picture(self, data: bytes, name: str, kind: str) -> np.ndarray:
        shape = self.shapes[name]
        if kind == 'resized':
            return fitted(open_picture(data, shape[-1]), shape)
        return picture_array(data, shape, self.dtypes[name], mask=kind == 'mask')


def layout_of(
    features: Any, wanted: tuple[str, ...], image_size: int, *, dataset: str
) -> RecordLayout:
    """Chooses the features of a TFDS set that fit into arrays; all of those if none are wanted.

    Raises UserError where a wanted feature does not exist or fits no array, or where `image_size`
    is missing or not needed.
    """
    import tensorflow_datasets as tfds

    unknown = [name for name in wanted if name not in features]
    if unknown:
        raise UserError(
            f'{dataset} has no feature {unknown[0]!r}, it has {", ".join(features)}'
            f'{nearest(unknown[0], features)}'
        )
    shapes, dtypes, pictures, varying = {}, {}, {}, {}
    for name in wanted or features:
        feature = features[name]
        info = feature.get_tensor_info()
        if not hasattr(info, 'shape') or isinstance(feature, tfds.features.Dataset):
            varying[name] = 'nested'
            continue
        dtype, shape = np.dtype(info.np_dtype), tuple(info.shape)
        image = isinstance(feature, tfds.features.Image)
        if image and shape[-1] not in (None, *TARGETS):
            varying[name] = f'a picture of {shape[-1]} channels'
        elif image and dtype == np.uint16 and shape[-1] != 1:
            varying[name] = 'a picture of 16 bits in several channels'
        elif dtype.kind not in 'biuf' or isinstance(feature, tfds.features.Text):
            varying[name] = 'text'
        elif None not in shape:
            label = isinstance(feature, tfds.features.ClassLabel)
            shapes[name], dtypes[name] = shape, np.dtype(np.int32) if label else dtype
            # Floats are stored as four bytes a pixel, which TFDS puts together.
            if image and dtype != np.float32:
                pictures[name] = 'mask' if isinstance(feature, tfds.features.LabeledImage) else ''
        elif not image or dtype != np.uint8:
            varying[name] = f'of shape {shape}'
        elif isinstance(feature, tfds.features.LabeledImage):
            varying[name] = 'a mask that varies in size'
        elif image_size:
            shapes[name], dtypes[name] = (image_size, image_size, shape[-1] or 3), dtype
            pictures[name] = 'resized'
        else:
            raise UserError(
                f'{dataset}: {name!r} varies in size {shape}; '
                'set image_size, as --config.data.image_size=224'
            )
    bad = next((name for name in wanted if name in varying), None)
    if bad or not shapes:
        bad = bad or next(iter(varying))
        raise UserError(f'{dataset}: feature {bad!r} is {varying[bad]} and fits no array')
    if image_size and 'resized' not in pictures.values():
        raise UserError(
            f'image_size={image_size}: is for images that vary in size; those of {dataset} do not; '
            'leave it at 0'
        )
    return RecordLayout(shapes, dtypes, pictures)


def fitted(picture: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    """Scales the shorter side of a picture to shape[0] and cuts out the middle: uint8 of `shape`."""
    width, height = picture.size
    shorter = min(width, height)
    left, top = (width - shorter) // 2, (height - shorter) // 2
    picture = picture.crop((left, top, left + shorter, top + shorter))
    picture = picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(shape)


class RecordSource(Source):
    """Rows of a TFDS data source, decoded by a few threads whenever they are fetched.

    Reading many rows at once is several times faster than one by one, but the data that
    tfds.testing.mock_data makes up can only be read one by one: `batched` False.
    """

    def __init__(self, records: Any, layout: RecordLayout, *, dataset: str, batched: bool = True):
        self._records = records
        self._batched = batched
        self._layout = layout
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._records)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole set once decoded."""
        return len(self) * self._layout.row_bytes

    def in_memory(self) -> None:
        """Returns None: the set is decoded as it is needed."""
        return None

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the decoded rows `ids`, in that order, as arrays [len(ids), ...].

        Raises UserError that names the file where a row cannot be read.
        """
        out = self._layout.empty(len(ids))

        def decode(start: int, stop: int) -> None:
            wanted = [int(i) for i in ids[start:stop]]
            try:
                examples = (
                    self._records.__getitems__(wanted)
                    if self._batched
                    else (self._records[row] for row in wanted)
                )
                for place, example in enumerate(examples, start):
                    self._layout.write(out, place, example)
            except Exception as error:
                raise self._failure(wanted, error) from error

        in_chunks(len(ids), decode)
        return out

    def stages(self, ids: np.ndarray) -> Iterator[tuple[str, Callable[[], tuple[int, int]]]]:
        """(name, function) of what `fetch` does with the rows `ids`, in one thread.

        Each function does its stage once and returns (records, bytes).
        """
        raw = getattr(self._records, 'data_source', None)
        features = getattr(getattr(self._records, 'dataset_info', None), 'features', None)
        if not self._batched or raw is None or features is None:
            return
        wanted = [int(i) for i in ids]

        def read() -> tuple[int, int]:
            return len(wanted), sum(map(len, raw.__getitems__(wanted)))

        yield 'read', read
        texts = raw.__getitems__(wanted)

        out = self._layout.empty(len(wanted))

        def decode() -> tuple[int, int]:
            for place, text in enumerate(texts):
                example = features.deserialize_example_np(text, decoders=self._records.decoders)
                self._layout.write(out, place, example)
            return len(wanted), sum(array.nbytes for array in out.values())

        yield 'decode', decode

    def _failure(self, ids: list[int], error: Exception) -> UserError:
        """Finds the row that cannot be read, and its file."""
        for row in ids:
            try:
                self._layout.write(self._layout.empty(1), 0, self._records[row])
            except Exception as single:
                error = single
                break
        else:
            row = ids[0]
        reason = str(error).strip().splitlines()
        # What is whole and not understood says itself what to do (see pictures.py).
        damaged = not isinstance(error, NotUnderstoodError)
        return UserError(
            f'{self._dataset}: example {row} in {self._file(row)} cannot be read: '
            f'{reason[0] if reason else type(error).__name__}'
            + '\nthe file is damaged; remove its folder and prepare the data set again'
            * damaged
        )

    def _file(self, row: int) -> str:
        for instruction in instructions(self._records):
            if row < instruction.take:
                return str(instruction.filename)
            row -= instruction.take
        return 'the data source'


def instructions(records: Any) -> list[Any]:
    """Returns which rows of which shard files a TFDS data source reads; [] for one without files."""
    from tensorflow_datasets.core.data_sources import base

    try:
        return list(base.file_instructions(records.dataset_info, records.split))
    except (AttributeError, KeyError, ValueError, TypeError):
        return []


def check_shards(records: Any, *, dataset: str, command: str) -> None:
    """Raises UserError unless each shard exists and has its records; cut files show up here."""
    from array_record.python.array_record_module import (  # pyright: ignore[reportMissingImports]
        ArrayRecordReader,
    )

    def check(instruction: Any) -> str:
        path = pathlib.Path(instruction.filename)
        if not path.is_file():
            return f'{path} is missing'
        try:
            reader = ArrayRecordReader(str(path))
            found = reader.num_records()
            reader.close()
        except Exception as error:
            return f'{path} cannot be read ({error})'
        if found != instruction.examples_in_shard:
            return f'{path} has {found} records, not {instruction.examples_in_shard}'
        return ''

    for problem in pool().map(check, instructions(records)):
        if problem:
            raise UserError(f'{dataset}: {problem}\nremove its folder, then: {command}')


def open_source(
    builder: Any,
    expression: str,
    *,
    dataset: str,
    features: tuple[str, ...],
    image_size: int,
    in_memory_bytes: int,
    command: str,
) -> Source:
    """Opens a split expression of a prepared TFDS data set.

    Up to `in_memory_bytes` it is decoded once, and the arrays are stored beside the shards; larger
    sets stay on disk. `command` is what prepares the set, for messages.
    """
    import tensorflow_datasets as tfds

    layout = layout_of(builder.info.features, features, image_size, dataset=dataset)
    shards = {name: split.shard_lengths for name, split in builder.info.splits.items()}
    # Without any split (mocked data) there is nothing to check the expression against.
    ranges = resolve(expression, shards, dataset=dataset) if shards else []

    skipped = {name: tfds.decode.SkipDecoding() for name in layout.pictures}

    def read(part: str) -> RecordSource:
        try:
            records = builder.as_data_source(part, decoders=skipped if shards else None)
        except NotImplementedError:
            raise UserError(
                f'{dataset}: {builder.data_dir} is in a format without random access; remove it '
                f'(or choose another --data_dir), then: {command}'
            ) from None
        if shards:
            check_shards(records, dataset=dataset, command=command)
        return RecordSource(records, layout, dataset=dataset, batched=bool(shards))

    def whole(split: str) -> dict[str, np.ndarray]:
        return stored_or_decoded(pathlib.Path(builder.data_dir), split, layout, read, shards[split])

    source = read(expression)
    if source.nbytes > in_memory_bytes:
        return source
    total = sum(sum(shards[split]) for split in {split for split, _, _ in ranges})
    if not ranges or total * layout.row_bytes > in_memory_bytes:
        return ArraySource(source.fetch(np.arange(len(source))))
    return slices({split: whole(split) for split, _, _ in ranges}, ranges)


def stored_or_decoded(
    folder: pathlib.Path, split: str, layout: RecordLayout, read: Any, shard_lengths: Any
) -> dict[str, np.ndarray]:
    """Returns a whole split from the arrays stored beside its shards, decoding and storing it if new."""
    key = split
    if layout.pictures:  # the word tells them from arrays that TFDS decoded, in earlier revisions
        key += '-pictures'
    resized = [
        layout.shapes[name][0] for name, kind in layout.pictures.items() if kind == 'resized'
    ]
    if resized:
        key += f'-{max(resized)}px'
    with contextlib.suppress(store.DamagedFile):
        stored = store.read_split(folder, key)
        if stored is not None and set(layout.shapes) <= set(stored.arrays):
            return stored.load(layout.shapes)
    source = read(split)
    arrays = source.fetch(np.arange(len(source)))
    with contextlib.suppress(OSError):  # a folder that only others may write to
        store.write_split(folder, split, arrays, shard_lengths, key=key)
    return arrays
