"""Pictures of states, drawn by the host with a few lines of PIL."""

import math

import numpy as np

# Colours that are told apart in print and by most eyes (Okabe and Ito).
COLOURS = np.array(
    [
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
        (255, 255, 255),
    ],
    np.uint8,
)


def cart_pole(x: float, theta: float) -> np.ndarray:
    """CartPole with the cart at `x` metres and the pole `theta` radians to the right."""
    from PIL import Image, ImageDraw

    width, height, scale = 160, 100, 160 / 4.8
    image = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(image)
    centre, top = width / 2 + x * scale, 78
    draw.line((0, top + 12, width, top + 12), fill='black')
    draw.rectangle((centre - 12, top, centre + 12, top + 11), fill=(60, 60, 60))
    # The pole is a metre long; it is drawn at the scale of the track.
    end = centre + 2 * 0.5 * scale * math.sin(theta), top - 2 * 0.5 * scale * math.cos(theta)
    draw.line((centre, top, *end), fill=tuple(int(c) for c in COLOURS[5]), width=4)
    return np.asarray(image)


def pendulum(theta: float) -> np.ndarray:
    """A pendulum `theta` radians from upright, to the left."""
    from PIL import Image, ImageDraw

    image = Image.new('RGB', (100, 100), 'white')
    draw = ImageDraw.Draw(image)
    end = 50 - 40 * math.sin(theta), 50 - 40 * math.cos(theta)
    draw.line((50, 50, *end), fill=tuple(int(c) for c in COLOURS[5]), width=6)
    draw.ellipse((46, 46, 54, 54), fill='black')
    return np.asarray(image)


def channels(observation: np.ndarray, cell: int = 10) -> np.ndarray:
    """A grid [height, width, channels] of booleans, each channel in a colour of its own."""
    seen = np.asarray(observation) > 0
    picture = np.zeros((*seen.shape[:2], 3), np.uint8)
    for channel in range(seen.shape[2]):
        picture[seen[..., channel]] = COLOURS[channel % len(COLOURS)]
    return picture.repeat(cell, 0).repeat(cell, 1)
