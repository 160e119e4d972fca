"""Data sets of somebody's own pictures: a folder of folders, a table, tar shards."""

import abc
import dataclasses
import functools
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxdl.api import Inputs, Rows, Source
from jaxdl.data import classes
from jaxdl.data.images import encoded
from jaxdl.data.images.encoded import FilePictures, Pictures
from jaxdl.data.images.given import picture_inputs
from jaxdl.data.images.pictures import TARGETS
from jaxdl.data.kept_classes import KeptClasses
from jaxdl.data.splits import named_paths
from jaxdl.data.tables import files
from jaxdl.data.text.reading import digest
from jaxdl.data.valid import NAME, Valid
from jaxdl.errors import UserError, at_least, one_of
from jaxdl.files import expanded

EVALS = (NAME, 'val', 'validation', 'test')  # sub-folders that are evaluation sets


@dataclasses.dataclass(kw_only=True)
class OwnPictures(KeptClasses, abc.ABC):
    """Pictures with labels: 'image' uint8 [batch, image_size, image_size, channels], 'label' int32.

    Every mode and depth that jaxdl.data.images.pictures knows; an orientation in EXIF is applied.
    The shorter side is scaled to image_size, and the middle is cut out.

    Attributes:
        image_size: side of the pictures in pixels.
        channels: 3 for colour, 1 for grey; 4 and 2 keep an alpha channel.
        classes: names of the labels in the order of their numbers; empty: those of the training examples, in the order of jaxdl.data.classes.
        valid: the part of the training examples that is held out as the set 'valid'.
        in_memory_bytes: decoded size up to which a set is decoded once, cached and kept in memory; larger ones are decoded as they are needed.
        cache: folder for decoded pictures; empty: $JAXDL_CACHE or the user's cache folder.
    """

    image_size: int = 64
    channels: int = 3
    classes: tuple[str, ...] = ()
    valid: Valid = dataclasses.field(default_factory=Valid)
    in_memory_bytes: int = 2 * 1024**3
    cache: str = ''

    def check(self):
        at_least(self, image_size=1, in_memory_bytes=0)
        one_of(self, channels=tuple(TARGETS))
        self.check_classes()

    @abc.abstractmethod
    def eval_names(self) -> tuple[str, ...]:
        """The evaluation sets besides those that are held out."""

    @abc.abstractmethod
    def pictures(self, name: str) -> Pictures:
        """The pictures of 'train' or of an evaluation set."""

    def read_classes(self) -> tuple[str, ...]:
        pictures = self.pictures('train')
        labels = classes.label_texts(pictures.labels(), pictures.where)
        return pictures.names() or classes.in_order(labels)

    def train_source(self) -> Source:
        return self.valid.train(self._source('train'))

    def eval_sources(self) -> dict[str, Source]:
        sets = {name: self._source(name) for name in self.eval_names()}
        return self.valid.evals(lambda: self._source('train'), sets)

    def example(self) -> Rows:
        shape = (self.image_size, self.image_size, self.channels)
        return {'image': np.zeros(shape, np.uint8), 'label': np.zeros((), np.int32)}

    def inputs_from(self, given: Any, row: Rows) -> Inputs:
        """Pictures: a file, a folder of them, or a list of paths."""
        return picture_inputs(given, row)

    def fingerprint(self, *, train: bool = True) -> dict[str, str]:
        """Of names, sizes and labels, and where they were decoded once, of the decoded pictures."""
        sets = [*(['train'] if train or self.valid.share else []), *self.eval_names()]
        found = {}
        for name in sets:
            pictures = self.pictures(name)
            entry = encoded.stored_entry(encoded.decoded_file(pictures, self._shape, self.cache))
            labels = classes.label_texts(pictures.labels(), pictures.where)
            size = len(pictures) * int(np.prod(self._shape))
            if size > self.in_memory_bytes:
                found[name] = digest(pictures.stamp(times=False), *labels)
            else:  # until they are decoded it is not known
                found[name] = digest(entry, *labels) if entry else ''
        return {name if name == 'train' else f'eval/{name}': text for name, text in found.items()}

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, self.channels

    def _source(self, name: str) -> Source:
        pictures, names = self.pictures(name), self.class_names()
        labels = classes.label_texts(pictures.labels(), pictures.where)
        if stored := pictures.names():
            labels = _stored_names(labels, stored, pictures)
        numbers = classes.numbered(labels, names, pictures.where)
        return encoded.opened(pictures, numbers, self._shape, self.cache, self.in_memory_bytes)


def _stored_names(labels: np.ndarray, names: tuple[str, ...], pictures: Pictures) -> np.ndarray:
    """The names of labels that are numbers of stored classes."""
    places = classes.numbered(labels, tuple(map(str, range(len(names)))), pictures.where)
    return np.array(names, np.str_)[places]


# ---- a folder ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class ImageFolder(OwnPictures):
    """A folder of pictures: each sub-folder is a class, with all files in and below it.

    Where it holds a folder 'train', the classes are inside that, and its neighbours 'valid', 'val',
    'validation' and 'test' are evaluation sets. Hidden files are left out; any other file must be a
    picture.

    Attributes:
        folder: the folder.
    """

    places: ClassVar = ('folder', 'cache')

    folder: str = ''

    def check(self):
        if not self.folder:
            raise ValueError("folder='': give the folder of pictures, --config.data.folder=DIR")
        super().check()

    @property
    def _root(self) -> Path:
        root = Path(expanded(self.folder))
        if not root.is_dir():
            raise UserError(
                f'--config.data.folder={self.folder}: {"is a file" if root.is_file() else "no such folder"}; '
                'give a folder with a sub-folder of pictures for each class'
            )
        return root

    def eval_names(self) -> tuple[str, ...]:
        root = self._root
        if not (root / 'train').is_dir():
            return ()
        return tuple(name for name in EVALS if (root / name).is_dir())

    def pictures(self, name: str) -> Pictures:
        root = self._root
        if (root / 'train').is_dir():
            root = root / name
        names, labels = _listed(str(root))
        return FilePictures(root, names, labels)


@functools.lru_cache(maxsize=8)
def _listed(root: str) -> tuple[list[str], list[str]]:
    """(the files inside, the class of each), by name.

    Raises:
        UserError: there is none, or a file lies outside the folders of the classes.
    """
    names, labels, loose = [], [], []
    for folder, folders, inner in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        inside = os.path.relpath(folder, root)
        for name in sorted(inner):
            if name.startswith('.'):
                continue
            if inside == '.':
                loose.append(name)
            else:
                names.append(f'{inside}/{name}')
                labels.append(inside.split('/')[0])
    if not names:
        what = f'{len(loose)} files but no folder' if loose else 'nothing'
        raise UserError(
            f'--config.data.folder: {root} holds {what}; it needs a sub-folder of pictures for each '
            'class, or a table of paths and labels: --config=images:table'
        )
    if loose:
        raise UserError(f'{Path(root) / loose[0]}: lies in no folder of a class; move or remove it')
    return names, labels


# ---- tables and shards --------------------------------------------------------------------------------


@dataclasses.dataclass
class ImageTable(OwnPictures):
    """Pictures of Parquet or Arrow files, of CSV or JSON lines with paths, or of tar shards.

    Parquet and Arrow hold the encoded pictures as bytes, or as Hugging Face's `datasets` does; a
    folder of its `save_to_disk` may be given. A path in a CSV, TSV or JSONL file is relative to that
    file. In tar shards as of WebDataset `image` and `label` are endings of members.

    Attributes:
        train: path or glob of the training files; `~` is the home folder; read in name order.
        evals: evaluation sets, each 'name=path'.
        image: the column of pictures, or in tar shards their endings, as 'jpg;png'.
        label: the column of labels, or in tar shards an ending, as 'cls', or 'json/KEY'.
    """

    places: ClassVar = ('train', 'evals', 'cache')

    train: str = ''
    evals: tuple[str, ...] = ()
    image: str = 'image'
    label: str = 'label'

    def check(self):
        if not self.train:
            raise ValueError(
                "train='': give the files, --config.data.train=PATTERN (.parquet, .arrow, .csv, .jsonl, .tar)"
            )
        named_paths(self.evals)
        super().check()

    def eval_names(self) -> tuple[str, ...]:
        return tuple(named_paths(self.evals))

    def pictures(self, name: str) -> Pictures:
        pattern = self.train if name == 'train' else named_paths(self.evals)[name]
        role = 'data.train' if name == 'train' else f'data.evals {name}'
        paths = files.find(pattern, role)
        return _pictures(tuple((path, files.stamp(path)) for path in paths), self.image, self.label)


@functools.lru_cache(maxsize=8)
def _pictures(paths: tuple[tuple[Path, Any], ...], image: str, label: str) -> Pictures:
    pictures = encoded.table_pictures([path for path, _ in paths], image, label)
    if not len(pictures):
        raise UserError(f'{paths[0][0]}: holds no rows')
    return pictures
