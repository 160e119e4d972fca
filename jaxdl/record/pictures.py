"""Pictures of a run's data and results, as arrays and PNG files."""

import io
from collections.abc import Sequence

import numpy as np


def encode_png(image: np.ndarray) -> bytes:
    """A uint8 image [height, width, 1 or 3] as a PNG file. Raises ValueError for anything else."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(
            f'image must be uint8 [height, width, 1 or 3], not {image.dtype} {image.shape}'
        )
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, 'PNG')
    return buffer.getvalue()


def image_grid(images: np.ndarray, columns: int = 0) -> np.ndarray:
    """Arranges images uint8 [n, height, width, channels] in rows, with thin gaps between them.

    Returns uint8 [height, width, 3], with `columns` pictures in a row, by default about a square;
    channels may be 1 or 3.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f'images must be uint8 [n, height, width, 1 or 3], not {images.dtype} {images.shape}'
        )
    count, height, width, _ = images.shape
    columns = columns or max(1, int(np.ceil(np.sqrt(count))))
    rows = -(-count // columns)
    gap = 2
    grid = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 127, np.uint8)
    for index, image in enumerate(images):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid


def confusion_image(matrix: np.ndarray, class_names: Sequence[str] = ()) -> np.ndarray:
    """Paints counts [true class, predicted class] as uint8 [height, width, 3].

    A cell's colour is its share of its row, so rare classes are as visible as frequent ones. The
    counts, or the percentages of the row where the matrix holds shares instead of counts, are
    written into the cells of up to 20 classes, the names beside up to 40.
    """
    from PIL import Image, ImageDraw, ImageFont

    matrix = np.asarray(matrix, np.float64)
    classes = len(matrix)
    if matrix.shape != (classes, classes) or not classes:
        raise ValueError(f'matrix must be [classes, classes], not {matrix.shape}')
    counted = bool((matrix == matrix.round()).all())
    names = [str(name) for name in class_names] or [str(i) for i in range(classes)]
    if len(names) != classes:
        raise ValueError(f'{len(names)} class names for a matrix of {classes} classes')
    cell = int(np.clip(720 // classes, 4, 48))
    font = ImageFont.load_default(12)
    named = classes <= 40
    margin = 24 + (int(max(font.getlength(name) for name in names)) + 8 if named else 0)
    side = cell * classes
    image = Image.new('RGB', (margin + side + 8, margin + side + 8), 'white')
    draw = ImageDraw.Draw(image)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1e-12)
    # The square root makes small shares visible: the few percent that were predicted wrongly.
    depth = np.sqrt(shares)[..., None]
    colours = (255 + depth * (np.array([0, 68, 136]) - 255)).astype(np.uint8)
    cells = np.kron(colours, np.ones((cell, cell, 1), np.uint8))
    image.paste(Image.fromarray(cells), (margin, margin))
    unit = '' if counted else ' (% of the true class)'
    draw.text((margin + side / 2, 12), f'predicted{unit}', fill='black', font=font, anchor='mm')
    _vertical(image, 'true', (12, margin + side // 2), font)
    for index, name in enumerate(names if named else ()):
        middle = margin + index * cell + cell // 2
        draw.text((margin - 5, middle), name, fill='black', font=font, anchor='rm')
        length = int(font.getlength(name))
        _vertical(image, name, (middle, margin - 5 - length // 2), font)
    if classes <= 20:
        small = ImageFont.load_default(11)
        for row in range(classes):
            for column in range(classes):
                count = matrix[row, column]
                if count:
                    colour = 'white' if depth[row, column, 0] > 0.55 else 'black'
                    place = (margin + column * cell + cell / 2, margin + row * cell + cell / 2)
                    text = f'{count:.0f}' if counted else f'{100 * shares[row, column]:.1f}'
                    draw.text(place, text, fill=colour, font=small, anchor='mm')
    return np.asarray(image)


def _vertical(image, text: str, centre: tuple[int, int], font) -> None:
    from PIL import Image, ImageDraw

    label = Image.new('RGB', (int(font.getlength(text)) + 2, 18), 'white')
    ImageDraw.Draw(label).text((1, 9), text, fill='black', font=font, anchor='lm')
    label = label.rotate(90, expand=True)
    image.paste(label, (centre[0] - label.width // 2, centre[1] - label.height // 2))
