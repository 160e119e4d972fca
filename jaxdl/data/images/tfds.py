"""Image data sets through TFDS, without TensorFlow.

The sets of jaxdl.data.images.catalogue come from builders of jaxdl's own and are read as stored arrays;
every other name is a data set of TFDS with its official builder.
"""

import dataclasses
import pathlib
import sys
from typing import Any

import numpy as np

from jaxdl.api import DataSet, Inputs, Rows, Source, Task, facts_of
from jaxdl.data import store
from jaxdl.data.arrays import slices
from jaxdl.data.cached import entry_of
from jaxdl.data.images import catalogue
from jaxdl.data.images.originals import ImageSet
from jaxdl.data.splits import resolve, split_name
from jaxdl.data.valid import Valid
from jaxdl.errors import UserError, at_least, nearest


@dataclasses.dataclass
class Tfds(DataSet):
    """A TFDS data set: batches of 'image' uint8 [batch, height, width, channels] and 'label' int32.

    Other data sets keep the names of their features; those that are text or vary in length are left
    out. Sets of at most `in_memory_bytes` are decoded once and kept in memory.

    Attributes:
        name: data set, as digits, mnist, fashion_mnist, cifar10, cifar100, or any name of TFDS.
        train: split expression of the training set, such as 'train' or 'train[:90%]'.
        evals: split expressions of the evaluation sets; 'valid=train[90%:]' gives one a name.
        data_dir: where prepared data sets are kept; empty: $JAXDL_DATA or ~/.cache/jaxdl/data.
        version: version of the data set; empty: the newest.
        features: features to keep; empty: all of fixed shape that are numbers.
        image_size: side in pixels for sets whose images vary in size: the shorter side is scaled to it and the middle cut out.
        in_memory_bytes: decoded size up to which a set is kept in memory.
        valid: the part of the training examples that is held out as the set 'valid'.
    """

    name: str = 'digits'
    train: str = 'train'
    evals: tuple[str, ...] = ('test',)
    data_dir: str = ''
    version: str = ''
    features: tuple[str, ...] = ()
    image_size: int = 0
    in_memory_bytes: int = 2 * 1024**3
    valid: Valid = dataclasses.field(default_factory=Valid)

    def check(self):
        """Raises ValueError where a field cannot be right whatever the data set."""
        if not self.name:
            raise ValueError("name='': give a data set, such as 'digits'")
        at_least(self, image_size=0, in_memory_bytes=0)
        names = [split_name(entry)[0] for entry in self.evals]
        if len(set(names)) < len(names):
            raise ValueError(f'evals={self.evals}: two evaluation sets have the same name')

    def train_source(self) -> Source:
        """Returns the training set; prepares the data set first if that was not done yet."""
        return self.valid.train(self._source(self.train))

    def eval_sources(self) -> dict[str, Source]:
        """Returns the evaluation sets by name."""
        sets = {name: self._source(expression) for name, expression in map(split_name, self.evals)}
        return self.valid.evals(lambda: self._source(self.train), sets)

    def example(self) -> dict[str, np.ndarray] | None:
        """One example of zeros, known without the files; None: the set itself has to be read."""
        spec = self._image_set()
        if spec is not None:
            zeros = {'image': np.zeros(spec.shape, np.uint8)}
            zeros |= {name: np.zeros((), np.int32) for name in spec.classes}
            return {name: zeros[name] for name in zeros if name in (self.features or zeros)}
        from jaxdl.data import records

        features = self._declared()
        layout = records.layout_of(features, self.features, self.image_size, dataset=self.name)
        return {n: np.zeros(layout.shapes[n], layout.dtypes[n]) for n in layout.shapes}

    def inputs_from(self, given: Any, row: Rows) -> Inputs:
        """Pictures: a file, a folder of them, or a list of paths."""
        from jaxdl.data.images.given import picture_inputs

        return picture_inputs(given, row)

    def fingerprint(self, *, train: bool = True) -> dict[str, str]:
        """{'<set> <split>': what is known of its bytes}; preparing a set again changes nothing."""
        del train
        spec = self._image_set()
        if spec is None:
            splits = self._builder().info.splits
            return {
                f'{self.name} {split}': f'{info.num_examples} examples, {info.num_bytes} bytes'
                for split, info in splits.items()
            }
        if spec.embedded is not None:
            return {
                f'{self.name} {split}': ','.join(
                    str(entry_of(rows[n])['crc32']) for n in sorted(rows)
                )
                for split, rows in spec.embedded().items()
            }
        try:
            folder = store.image_set_folder(self._root(), spec.name, spec.version)
            splits = self._read_splits(spec, folder)
        except store.DamagedFile:
            splits = None
        if splits is None:  # it is read in another way, or prepared when it is
            return {f'{self.name} {split}': '' for split in spec.counts}
        return {
            f'{self.name} {split}': ','.join(
                str(stored.arrays[name]['crc32']) for name in sorted(stored.arrays)
            )
            for split, stored in splits.items()
        }

    def check_with(self, model: Any, task: Task) -> None:
        """Raises UserError where the task has another number of classes than this data set."""
        names = self.class_names()
        wanted = task.ranges(facts_of(model).limits()).get('label')
        if names and wanted is not None and wanted != len(names):
            raise UserError(
                f'--config.task.num_classes={wanted}: {self.name} has {len(names)} classes; '
                f'set the task and the model to {len(names)}'
            )

    def class_names(self) -> tuple[str, ...]:
        spec = self._image_set()
        if spec is not None:
            return spec.classes.get('label', ())
        features = self._declared()
        return tuple(getattr(features['label'], 'names', None) or ()) if 'label' in features else ()

    def _root(self) -> pathlib.Path:
        return store.data_dir(self.data_dir)

    def _full_name(self) -> str:
        """The name with the version, as TFDS and `prepare` understand it."""
        official = self.version and self._image_set() is None
        return f'{self.name}:{self.version}' if official else self.name

    def _image_set(self) -> ImageSet | None:
        spec = catalogue.IMAGE_SETS.get(self.name)
        return spec if spec and self.version in ('', spec.version) else None

    def _source(self, expression: str) -> Source:
        spec = self._image_set()
        if spec is None:
            return self._records(self._builder(), expression)
        if self.image_size:
            size = 'x'.join(map(str, spec.shape[:2]))
            raise UserError(
                f'image_size={self.image_size}: is for images that vary in size; '
                f'those of {self.name} are {size}; leave it at 0'
            )
        unknown = [name for name in self.features if name not in ('image', *spec.classes)]
        if unknown:
            known = ('image', *spec.classes)
            raise UserError(
                f'{self.name} has no feature {unknown[0]!r}, it has {", ".join(known)}'
                f'{nearest(unknown[0], known)}'
            )
        if spec.embedded is not None:
            arrays = spec.embedded()
            shards = {split: (len(rows['image']),) for split, rows in arrays.items()}
            return self._slices(arrays, resolve(expression, shards, dataset=self.name))
        return self._stored(spec, expression)

    def _stored(self, spec: ImageSet, expression: str) -> Source:
        """Reads the arrays that were stored when the set was prepared; TFDS is not even imported."""
        root = self._root()
        folder = store.image_set_folder(root, spec.name, spec.version)
        try:
            splits = self._read_splits(spec, folder)
        except store.DamagedFile as error:
            print(f'{error}; reading the records instead', file=sys.stderr)
            return self._records(self._open(folder), expression)
        if splits is None:
            from jaxdl.data import prepare

            print(prepare.prepare_image_set(spec, root), file=sys.stderr)
            splits = self._read_splits(spec, folder)
            if splits is None:
                raise UserError(f'{folder}: vanished after it was prepared')
        ranges = resolve(
            expression, {n: s.shard_lengths for n, s in splits.items()}, dataset=self.name
        )
        names = {split for split, _, _ in ranges}
        if sum(splits[name].nbytes for name in names) > self.in_memory_bytes:
            return self._records(self._open(folder), expression)
        arrays = {}
        for name in names:
            try:
                arrays[name] = splits[name].load()
            except store.DamagedFile as error:
                print(f'{error}; reading the records instead', file=sys.stderr)
                return self._records(self._open(folder), expression)
        return self._slices(arrays, ranges)

    def _read_splits(
        self, spec: ImageSet, folder: pathlib.Path
    ) -> dict[str, store.StoredSplit] | None:
        """What is stored of each split; None if the set is not prepared."""
        try:
            splits = {split: store.read_split(folder, split) for split in spec.counts}
        except store.DamagedShard as error:
            fix = store.prepare_command(self.name, self._root())
            raise UserError(f'{error}\nprepare the data set again: {fix}') from None
        return None if None in splits.values() else splits  # pyright: ignore[reportReturnType]

    def _slices(self, arrays, ranges) -> Source:
        """The ranges of the splits' arrays, with the features that are wanted."""
        if self.features:
            arrays = {s: {n: rows[n] for n in self.features} for s, rows in arrays.items()}
        return slices(arrays, ranges)

    def _records(self, builder: Any, expression: str) -> Source:
        from jaxdl.data import records

        return records.open_source(
            builder,
            expression,
            dataset=self.name,
            features=self.features,
            image_size=self.image_size,
            in_memory_bytes=self.in_memory_bytes,
            command=store.prepare_command(self._full_name(), self._root()),
        )

    def _open(self, folder: pathlib.Path) -> Any:
        """The TFDS builder of a prepared folder."""
        import tensorflow_datasets as tfds

        try:
            return tfds.builder_from_directory(folder)
        except Exception as error:  # whatever TFDS meets in a damaged description of the set
            fix = store.prepare_command(self.name, self._root())
            raise UserError(
                f'{folder}: its description cannot be read ({type(error).__name__}); remove it, '
                f'then: {fix}'
            ) from None

    def _declared(self) -> Any:
        """The features that TFDS declares for the set, which need not be prepared."""
        from jaxdl.data import prepare

        return prepare.official_builder(self._full_name(), self._root()).info.features

    def _builder(self) -> Any:
        """TFDS's own builder of the set, prepared if it was not yet."""
        from jaxdl.data import prepare

        root, name = self._root(), self._full_name()
        builder = prepare.official_builder(name, root)
        if not pathlib.Path(builder.data_dir).is_dir():
            prepare.prepare_official(name, root)
            builder = prepare.official_builder(name, root)
        return builder
