"""Random changes of a batch of images, made on the device inside the training step.

Each is a small dataclass, called as `augmentation(batch, rng) -> batch`, pure and of static shape.
A task applies several in order, each with a key of its own. A batch holds 'image' [batch, height,
width, channels], uint8 or float, whose dtype and units never change, 'label' [batch] and,
optionally, 'mask' [batch] (0 marks a padding row).

Mixup and CutMix leave 'label' alone and add 'label_b' [batch], the other image's label, and 'mix'
[batch] float32, the weight of 'label'; the loss is mix · loss(label) + (1 - mix) · loss(label_b).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.errors import above_zero, at_least, one_of

Batch = dict[str, Any]

MODES = ('reflect', 'zeros', 'edge')


@dataclass
class RandomCrop:
    """Pads every side and cuts a window of the old size at a random place, as for CIFAR.

    This shifts an image by up to `padding` pixels each way, every whole offset being equally likely.

    Attributes:
        padding: pixels added to every side, below the image's own size for 'reflect'.
        mode: what the padding shows: reflect (mirrored, without the border pixel), zeros or edge.
    """

    padding: int = 4
    mode: str = 'reflect'

    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        at_least(self, padding=1)
        one_of(self, mode=MODES)

    def draw(self, rng: jax.Array, count: int) -> jax.Array:
        """Offsets [count, 2] (down, right) in -padding..padding, at which the window is cut."""
        return jax.random.randint(rng, (count, 2), -self.padding, self.padding + 1)

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        self.check()
        images = _images(batch, self)
        if self.mode == 'reflect' and self.padding >= min(images.shape[1:3]):
            size = '×'.join(map(str, images.shape[1:3]))
            raise ValueError(f'padding={self.padding}: images of {size} cannot be reflected so far')
        return {**batch, 'image': cut(images, self.draw(rng, len(images)), self.mode)}


def cut(images: jax.Array, offsets: jax.Array, mode: str) -> jax.Array:
    """Windows of the images' own size at `offsets` [batch, 2]; outside is filled as `mode` says."""
    for axis in (1, 2):
        size = images.shape[axis]
        index = jnp.arange(size) + offsets[:, axis - 1, None]
        inside = (index >= 0) & (index < size)
        if mode == 'reflect':
            index = (size - 1) - jnp.abs((size - 1) - jnp.abs(index))
        images = _gather(images, jnp.clip(index, 0, size - 1), axis)
        if mode == 'zeros':
            shape = [len(images), 1, 1, 1]
            shape[axis] = size
            images = jnp.where(inside.reshape(shape), images, jnp.zeros((), images.dtype))
    return images


@dataclass
class RandomTranslate:
    """Shifts each image by a random distance, fractions of a pixel included, the edge repeated.

    The image is interpolated linearly, so this blurs a little: for small images, where one whole
    pixel (see RandomCrop) is already a large step.

    Attributes:
        pixels: the greatest shift down, up, left and right.
    """

    pixels: float = 1.0

    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        above_zero(self, 'pixels')

    def draw(self, rng: jax.Array, count: int) -> jax.Array:
        """Offsets [count, 2] (down, right), uniform in ±pixels."""
        return jax.random.uniform(rng, (count, 2), minval=-self.pixels, maxval=self.pixels)

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        self.check()
        images = _images(batch, self)
        offsets = self.draw(rng, len(images))
        whole = jnp.floor(offsets).astype(jnp.int32)
        part = offsets - whole
        moved = jnp.zeros(images.shape, jnp.float32)
        for down in (0, 1):
            for right in (0, 1):
                weight = jnp.abs(1 - down - part[:, 0]) * jnp.abs(1 - right - part[:, 1])
                corner = cut(images, whole + jnp.asarray([down, right]), 'edge')
                moved += weight[:, None, None, None] * corner
        return {**batch, 'image': _as(moved, images.dtype)}


@dataclass
class HorizontalFlip:
    """Mirrors each image left to right with a probability.

    Attributes:
        probability: share of the images that are mirrored.
    """

    probability: float = 0.5

    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        if not 0 < self.probability <= 1:
            raise ValueError(f'probability={self.probability}: must be in (0, 1]')

    def draw(self, rng: jax.Array, count: int) -> jax.Array:
        """Which images are mirrored, [count] booleans."""
        return jax.random.bernoulli(rng, self.probability, (count,))

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        self.check()
        images = _images(batch, self)
        column = jnp.arange(images.shape[2])
        flip = self.draw(rng, len(images))[:, None]
        return {**batch, 'image': _gather(images, jnp.where(flip, column[::-1], column), 2)}


@dataclass
class Cutout:
    """Fills a square around a random pixel of each image (arXiv:1708.04552).

    The centre is uniform over the image, and the part of the square that hangs over the border is
    lost, so fewer than size² pixels change there.

    Attributes:
        size: side of the square in pixels.
        fill: value put there, in the image's units: one number, or one for each channel.
    """

    size: int = 8
    fill: tuple[float, ...] = (0.0,)

    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        at_least(self, size=1)

    def draw(self, rng: jax.Array, count: int, height: int, width: int) -> jax.Array:
        """The centres [count, 2] (row, column)."""
        return jax.random.randint(rng, (count, 2), 0, jnp.asarray([height, width]))

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        self.check()
        images = _images(batch, self)
        count, height, width, channels = images.shape
        if len(self.fill) not in (1, channels):
            raise ValueError(f'fill={self.fill}: must hold 1 or {channels} numbers')
        low = self.draw(rng, count, height, width) - self.size // 2
        box = _box(low, low + self.size, height, width)
        return {**batch, 'image': jnp.where(box, _as(jnp.asarray(self.fill), images.dtype), images)}


@dataclass
class Mixup:
    """Blends each image with another one of the batch by a weight drawn from Beta(alpha, alpha).

    From arXiv:1710.09412, with one weight for each image. The other image is the previous row of
    the batch, whose order is random already; padding rows neither give nor take.

    Attributes:
        alpha: both parameters of the Beta distribution; 1 is uniform, near 0 hardly mixes.
    """

    alpha: float = 0.2

    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        above_zero(self, 'alpha')

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        self.check()
        images = _images(batch, self)
        mix = jax.random.beta(rng, self.alpha, self.alpha, (len(images),), jnp.float32)
        mix = jnp.where(_both_valid(batch, len(images)), mix, 1.0)
        weight = mix[:, None, None, None]
        blend = weight * images + (1 - weight) * _other(images)
        # where, not a product alone: a padding row may hold nan, and 0 * nan is nan.
        blend = jnp.where(weight < 1, _as(blend, images.dtype), images)
        return _with_pair(batch, blend, mix, self)


@dataclass
class CutMix:
    """Replaces a random rectangle of each image by that part of another one (arXiv:1905.04899).

    The rectangle covers a share of the area drawn from Beta(alpha, alpha) and has the image's
    proportions; its centre is uniform and it is clipped at the border. 'mix' is the share of pixels
    that stay. The other image is chosen as in Mixup.

    Attributes:
        alpha: both parameters of the Beta distribution; 1 is uniform.
    """

    alpha: float = 1.0

    def check(self) -> None:
        """Raises ValueError for a field out of range."""
        above_zero(self, 'alpha')

    def __call__(self, batch: Batch, rng: jax.Array) -> Batch:
        self.check()
        images = _images(batch, self)
        count, height, width, _ = images.shape
        area_key, centre_key = jax.random.split(rng)
        area = jax.random.beta(area_key, self.alpha, self.alpha, (count, 1), jnp.float32)
        size = jnp.asarray([height, width])
        extent = jnp.round(jnp.sqrt(area) * size).astype(jnp.int32)
        low = jax.random.randint(centre_key, (count, 2), 0, size) - extent // 2
        box = _box(low, low + extent, height, width)
        box &= _both_valid(batch, count)[:, None, None, None]
        mix = 1 - box.mean((1, 2, 3), dtype=jnp.float32)
        return _with_pair(batch, jnp.where(box, _other(images), images), mix, self)


def _images(batch: Batch, who: Any) -> jax.Array:
    if 'image' not in batch or jnp.ndim(batch['image']) != 4:
        found = jnp.shape(batch['image']) if 'image' in batch else sorted(batch)
        raise ValueError(
            f"{type(who).__name__} needs 'image' [batch, height, width, channels]; found {found}"
        )
    return jnp.asarray(batch['image'])


def _gather(images: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """Rows (axis 1) or columns (axis 2) of each image by `index` [batch, size], all within it.

    No padded copy is formed: on a CPU this is twice as fast as a dynamic slice of padded images.
    The barrier keeps the gather a copy of bytes; fused into the arithmetic after it, which XLA's
    CPU compiler does, it is computed for each element and takes two to four times as long.
    """
    shape = [len(images), 1, 1, 1]
    shape[axis] = index.shape[1]
    index = index.reshape(shape)
    images = jnp.take_along_axis(images, index, axis, mode='promise_in_bounds')
    return jax.lax.optimization_barrier(images)


def _as(values: jax.Array, dtype: Any) -> jax.Array:
    """`values` in `dtype`, rounded to the nearest where that holds integers."""
    return (jnp.round(values) if jnp.issubdtype(dtype, jnp.integer) else values).astype(dtype)


def _box(low: jax.Array, high: jax.Array, height: int, width: int) -> jax.Array:
    """True where low <= (row, column) < high, [batch, height, width, 1]."""
    row, column = jnp.arange(height)[:, None], jnp.arange(width)
    inside_rows = (row >= low[:, 0, None, None]) & (row < high[:, 0, None, None])
    inside_columns = (column >= low[:, 1, None, None]) & (column < high[:, 1, None, None])
    return (inside_rows & inside_columns)[..., None]


def _other(values: jax.Array) -> jax.Array:
    # A roll by one row moves one row between neighbouring shards; a permutation would move all.
    return jnp.roll(values, 1, axis=0)


def _both_valid(batch: Batch, count: int) -> jax.Array:
    valid = jnp.asarray(batch.get('mask', jnp.ones(count))) > 0
    return valid & _other(valid)


def _with_pair(batch: Batch, images: jax.Array, mix: jax.Array, who: Any) -> Batch:
    if 'mix' in batch:
        raise ValueError(f'{type(who).__name__}: Mixup or CutMix may appear only once')
    return {**batch, 'image': images, 'label_b': _other(jnp.asarray(batch['label'])), 'mix': mix}
