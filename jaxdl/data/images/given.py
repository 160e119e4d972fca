"""Pictures that a user gives to a trained model: files, and folders of files."""

import concurrent.futures
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jaxdl.api import Inputs, Rows, Source
from jaxdl.data.images.pictures import TARGETS, NotUnderstoodError, open_picture
from jaxdl.data.records import fitted
from jaxdl.errors import UserError


def picture_inputs(given: Any, row: Rows) -> Inputs:
    """The pictures of a path or of several; a folder stands for all pictures in and below it.

    One of another size than `row['image']` is scaled by its shorter side, and its middle is cut out.

    Raises:
        UserError: a path does not exist or holds no picture, or the model takes no pictures.
    """
    image = np.asarray(row.get('image', 0))
    if image.ndim != 3 or image.dtype != np.uint8 or image.shape[-1] not in TARGETS:
        raise UserError(
            f"the model's images are {image.dtype}{list(image.shape)}, no pictures of 8 bits; give "
            'them as arrays: a .npz file'
        )
    paths = [given] if isinstance(given, str | os.PathLike) else list(given)
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise UserError(f'{", ".join(map(str, paths))}: there is no picture in it')
    return Inputs(PictureFiles(files, image.shape), [str(file) for file in files])


def _files(path: str | os.PathLike) -> list[Path]:
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f'{path}: there is no such file or folder')
        return [path]
    endings = Image.registered_extensions()
    return sorted(p for p in path.rglob('*') if p.suffix.lower() in endings and p.is_file())


class PictureFiles(Source):
    """'image' uint8 [rows, *shape], read when it is asked for."""

    def __init__(self, files: Sequence[Path], shape: tuple[int, ...]):
        self.files, self.shape = list(files), shape

    def __len__(self) -> int:
        return len(self.files)

    def fetch(self, ids: np.ndarray) -> Rows:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            rows = list(pool.map(self._read, (self.files[i] for i in ids)))
        return {'image': np.stack(rows)}

    def _read(self, path: Path) -> np.ndarray:
        try:
            picture = ImageOps.exif_transpose(open_picture(path.read_bytes(), self.shape[-1]))
        except (OSError, NotUnderstoodError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f'{path}: is no picture that can be read ({error})') from None
        height, width = self.shape[:2]
        if picture.size == (width, height):
            return np.asarray(picture).reshape(self.shape)
        return fitted(picture, self.shape)
