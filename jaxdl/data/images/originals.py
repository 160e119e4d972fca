"""What is known of an image data set whose original files jaxdl reads itself."""

import dataclasses
import gzip
import hashlib
import io
import pathlib
import zlib
from collections.abc import Callable

import numpy as np

from jaxdl.errors import UserError

LARGEST = 2**30  # bytes of an unpacked file; CIFAR has 184 MB

Arrays = dict[str, dict[str, np.ndarray]]  # split -> feature -> rows


@dataclasses.dataclass(frozen=True)
class Download:
    """A file on the network: its address, size in bytes and SHA-256."""

    url: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        return self.url.rsplit('/', 1)[-1]


@dataclasses.dataclass(frozen=True)
class Check:
    """Whether one original file is the published one, by its checksum."""

    file: str
    published: bool


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """What is known of a data set: its shape, its classes, and where its files come from.

    `classes` maps each label feature to its class names. `counts` are the published sizes. `find`
    returns the original files in a folder, or raises UserError that says which are missing;
    `read` turns them (or the downloaded files, keyed by file name) into arrays. `embedded` loads a set that
    comes with an installed package and needs no preparation.
    """

    name: str
    version: str
    title: str
    homepage: str
    shape: tuple[int, int, int]
    classes: dict[str, tuple[str, ...]]
    counts: dict[str, int]
    downloads: tuple[Download, ...]
    find: Callable[[pathlib.Path], dict[str, pathlib.Path]]
    read: Callable[[dict[str, pathlib.Path]], tuple[Arrays, list[Check]]]
    embedded: Callable[[], Arrays] | None = None


def check_arrays(spec: ImageSet, arrays: Arrays) -> None:
    """Raises UserError unless every split has images of the set's shape and labels in range."""
    for split in spec.counts:
        rows = arrays[split]
        image = rows['image']
        if image.shape[1:] != spec.shape or image.dtype != np.uint8 or not len(image):
            raise UserError(
                f'{spec.name}: the {split} images are {image.dtype} {list(image.shape)}, '
                f'they must be uint8 [n, {", ".join(map(str, spec.shape))}]; are these its files?'
            )
        for feature, names in spec.classes.items():
            label = rows[feature]
            if label.shape != image.shape[:1]:
                raise UserError(
                    f'{spec.name}: {split} has {len(image)} images but {list(label.shape)} values of '
                    f'{feature!r}; the files do not belong together'
                )
            if label.min() < 0 or label.max() >= len(names):
                raise UserError(
                    f'{spec.name}: {feature!r} of {split} reaches from {label.min()} to '
                    f'{label.max()}, allowed are 0 to {len(names) - 1}; are these its files?'
                )


def read_bytes(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None


def unpacked(data: bytes, where: pathlib.Path) -> bytes:
    """The content of a gzip file, as a whole since only its end holds its checksum; else `data`.

    Raises:
        UserError: it is damaged, or larger than any of the data sets.
    """
    if data[:2] != b'\x1f\x8b':
        return data
    try:
        plain = gzip.GzipFile(fileobj=io.BytesIO(data)).read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f'{where}: damaged gzip file ({error}); copy or download it again'
        ) from None
    if len(plain) > LARGEST:
        raise UserError(f'{where}: unpacks to more than {LARGEST:,} bytes; is this the right file?')
    return plain


def md5_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
