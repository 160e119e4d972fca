"""Images as generative models see them: scaled, with noise of their own, in grids."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.api import Batch, DataSet

CALL = 256  # pictures that one call of a model draws


def scaled(images: jax.Array) -> jax.Array:
    """uint8 images in [-1, 1]; floats as they are."""
    return images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images


def as_bytes(images: np.ndarray | jax.Array) -> np.ndarray:
    """Images in [-1, 1] as uint8."""
    return np.clip(np.rint((np.asarray(images) + 1) * 127.5), 0, 255).astype(np.uint8)


def tiled(images: np.ndarray, columns: int) -> np.ndarray:
    """[n, height, width, channels] as one picture of that many columns; they divide n."""
    _, height, width, channels = images.shape
    grid = images.reshape(-1, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(-1, columns * width, channels)


def with_draws(batch: Batch, rng: jax.Array) -> Batch:
    """The batch with a random number for each row, 'draw', from which `row_keys` follow.

    Given in `augment`, before a batch is cut, so that the parts of an accumulated step have the
    noise that they would have together.
    """
    return {**batch, 'draw': jax.random.bits(rng, (len(batch['image']),))}


def row_keys(batch: Batch, salt: int = 0) -> jax.Array:
    """A random key for each row: of its own for each training step, in evaluation from its id."""
    key = jax.random.key(salt)
    rows = batch['draw'] if 'draw' in batch else batch['id'].astype(jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def id_keys(batch: Batch, key: jax.Array | None = None) -> jax.Array:
    """A random key for each row, from its id and `key`, or from the id alone."""
    key = jax.random.key(0) if key is None else key
    ids = batch['id'] if 'id' in batch else jnp.arange(len(batch['image']))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, ids)


def normals(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal numbers [keys, *shape], each row from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def starts(n: int, shape: tuple[int, ...], *, seed: int, interpolate: int = 0) -> jax.Array:
    """Normal numbers [n, *shape]; row i does not depend on n.

    With `interpolate` each so many rows are a walk between two, along a circle, which keeps the
    length of a normal vector.
    """
    key = jax.random.key(seed)

    def drawn(salt: int, count: int) -> jax.Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(key, salt), jnp.arange(count)
        )
        return normals(keys, shape)

    if not interpolate:
        return drawn(0, n)
    ends = [drawn(salt, n // interpolate)[:, None] for salt in (0, 1)]
    angle = jnp.linspace(0, jnp.pi / 2, interpolate).reshape(1, -1, *(1 for _ in shape))
    return (jnp.cos(angle) * ends[0] + jnp.sin(angle) * ends[1]).reshape(n, *shape)


def in_parts(
    call: Callable[..., Any], *arrays: jax.Array, beat: Callable[[], None] = lambda: None
) -> np.ndarray:
    """`call` of the rows of `arrays`, at most CALL at a time and always as many."""
    count = len(arrays[0])
    size, found = min(count, CALL), []
    for start in range(0, count, size):
        parts = [array[start : start + size] for array in arrays]
        missing = size - len(parts[0])
        filled = [jnp.pad(part, ((0, missing), *[(0, 0)] * (part.ndim - 1))) for part in parts]
        found.append(np.asarray(call(*filled))[: size - missing])
        beat()
    return np.concatenate(found)


def image_shape(data: DataSet) -> tuple[int, int, int]:
    """Height, width and channels of an image of the data set."""
    example = data.example()
    image = example['image'] if example else real_images(data, 1)[0]
    height, width, channels = image.shape
    return height, width, channels


def real_images(data: DataSet, count: int) -> np.ndarray:
    """The first `count` images of the first evaluation set, or of the training set without one."""
    source = next(iter(data.eval_sources().values()), None) or data.train_source()
    return source.fetch(np.arange(min(count, len(source))))['image']
