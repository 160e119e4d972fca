"""Pictures that a user gives to a trained model: files, and folders of files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxdl.api import Inputs, Rows
from jaxdl.data.images.encoded import FilePictures, PictureSource
from jaxdl.data.images.pictures import TARGETS
from jaxdl.errors import UserError


def picture_inputs(given: Any, row: Rows) -> Inputs:
    """The pictures of a path or of several; a folder stands for all pictures in and below it.

    They are turned upright, the shorter side is scaled to that of `row['image']`, and the middle is
    cut out.

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
    names = [str(file) for path in paths for file in _files(path)]
    if not names:
        raise UserError(f'{", ".join(map(str, paths))}: there is no picture in it')
    unknown = np.zeros(len(names), np.int32)
    pictures = FilePictures(Path(), names, unknown.tolist())
    return Inputs(PictureSource(pictures, unknown, image.shape), names)


def _files(path: str | os.PathLike) -> list[Path]:
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f'{path}: there is no such file or folder')
        return [path]
    endings = Image.registered_extensions()
    return sorted(p for p in path.rglob('*') if p.suffix.lower() in endings and p.is_file())
