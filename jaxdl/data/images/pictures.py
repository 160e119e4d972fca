"""Encoded pictures (PNG, JPEG, …) as arrays, whatever mode and depth they are stored in."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps


class NotUnderstoodError(ValueError):
    """A picture that is whole, but in a form with no known range or meaning."""


TARGETS = {1: 'L', 2: 'LA', 3: 'RGB', 4: 'RGBA'}  # channels -> mode

# How Pillow's modes become one of TARGETS: the modes on the way, each by Pillow's own conversion.
# A palette may hold transparency, so it passes through RGBA; La and RGBa are premultiplied.
_WAYS = {
    '1': ('L',),
    'L': (),
    'LA': (),
    'La': ('LA',),
    'P': ('RGBA',),
    'PA': ('RGBA',),
    'RGB': (),
    'RGBX': ('RGB',),
    'RGBA': (),
    'RGBa': ('RGBA',),
    'YCbCr': ('RGB',),
    'HSV': ('RGB',),
}


def open_picture(
    data: bytes, channels: int, *, upright: bool = False, least: int = 0
) -> Image.Image:
    """The picture in the mode of TARGETS with so many channels; an alpha channel without room falls.

    CMYK and LAB become sRGB, by the picture's own colour profile where it has one; 16-bit greys
    become 8 bits. Only the first frame counts. `upright` turns it as its EXIF entry says. With
    `least` a JPEG file may be decoded at 1/2, 1/4 or 1/8 of its size, which is faster, as long as
    each side keeps 2 * least pixels.

    Raises:
        NotUnderstoodError: its mode has no known range or meaning.
        OSError: it is damaged.
    """
    picture: Any = Image.open(io.BytesIO(data))
    if least:
        picture.draft(None, (2 * least, 2 * least))
    picture.load()
    if upright:
        ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode in ('CMYK', 'LAB'):
        picture = _by_profile(picture)
    elif (grey := _grey16(picture)) is not None:
        picture = Image.fromarray(np.rint(grey / 257).astype(np.uint8))
    elif picture.mode not in _WAYS:
        raise NotUnderstoodError(
            _refusal(picture, f'allowed are {", ".join(_WAYS)}, CMYK, LAB and I;16')
        )
    for mode in (*_WAYS[picture.mode], TARGETS[channels]):
        picture = picture if picture.mode == mode else picture.convert(mode)
    return picture


def picture_array(data: bytes, shape: tuple[int, ...], dtype: Any, *, mask: bool) -> np.ndarray:
    """The picture as an array of this shape [height, width, channels], uint8 or uint16.

    A `mask` holds the numbers of classes: indices of a palette stay what they are. 16 bits must be
    stored as such.

    Raises:
        NotUnderstoodError: it has another size, or is none of that kind.
        OSError: it is damaged.
    """
    if mask or dtype == np.uint16:
        picture: Any = Image.open(io.BytesIO(data))
        picture.load()
        if dtype == np.uint16:
            array = _grey16(picture)
        else:
            array = np.asarray(picture) if picture.mode in ('1', 'L', 'P') else None
        if array is None:
            raise NotUnderstoodError(
                _refusal(picture, 'a mask must be L or P, 16 bits must be I;16')
            )
        array = array.astype(dtype)
    else:
        array = np.asarray(open_picture(data, shape[-1]))
    if array.shape[:2] != shape[:2]:
        size = [f'{height}x{width}' for height, width, *_ in (array.shape, shape)]
        raise NotUnderstoodError(f'the picture is {size[0]}, not {size[1]} as the data set says')
    return array.reshape(shape)


def _refusal(picture: Any, allowed: str) -> str:
    return (
        f'a {picture.format} picture of mode {picture.mode} cannot be read without a guess; '
        f'convert it to RGB or L ({allowed})'
    )


def _grey16(picture: Any) -> np.ndarray | None:
    """Greys of 16 bits as uint16 [height, width]; None for any other picture."""
    if picture.mode.startswith('I;16'):
        return np.asarray(picture).astype(np.uint16)
    # Pillow reads PGM files of 16 bits as mode I, scaled to 65535.
    if picture.mode == 'I' and picture.format in ('PNG', 'PPM'):
        return np.asarray(picture).astype(np.uint16)
    return None


def _by_profile(picture: Any) -> Image.Image:
    """A CMYK or LAB picture as RGB."""
    profile = picture.info.get('icc_profile')
    if picture.mode == 'CMYK' and not profile:
        return picture.convert('RGB')  # Pillow has undone Adobe's inversion
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else _profile('LAB')
        result = ImageCms.profileToProfile(picture, source, _profile('sRGB'), outputMode='RGB')
    except ImageCms.PyCMSError as error:
        raise NotUnderstoodError(
            f'the colour profile of the picture cannot be used: {error}'
        ) from None
    assert result is not None
    return result


@functools.cache
def _profile(name: Any) -> Any:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name))
