"""jaxdl's side of the loader benchmark: its feed, and crop, flip and normalise in a jitted function."""

import itertools

import jax
import numpy as np

from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Mesh
from jaxdl.core.feed import Feed
from jaxdl.core.pipeline import CallIds, Order
from jaxdl.core.step import gather
from jaxdl.data.arrays import ArraySource
from jaxdl.tasks.augment import HorizontalFlip, RandomCrop
from jaxdl.tasks.classification import Classification


def images(count: int) -> dict[str, np.ndarray]:
    """Random images of the sizes of Fashion-MNIST."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 28, 28, 1)).astype(np.uint8)
    return {'image': pixels, 'label': rng.integers(0, 10, count).astype(np.int32)}


def build(case, batch: int, words: list[str], group: int):
    """Returns (a function that brings one batch to the device, facts about it)."""
    placement = words[0]
    task = Classification(
        mean=(0.286,), std=(0.353,), augmentations=(RandomCrop(padding=4), HorizontalFlip())
    )
    source = ArraySource(images(case.sizes['count']))
    feed = Feed(source, batch, mesh_lib.make_mesh(Mesh()), placement=placement)
    stream = feed.training(CallIds([(Order(len(source), batch, 0), 0)]), 2**40, ahead=2)
    key = jax.random.key(0)

    @jax.jit
    def prepare(batch, resident, number):
        batch = task.augment(gather(batch, resident), jax.random.fold_in(key, number))
        return task.inputs(batch)['images'], batch['label']

    number, waiting = itertools.count(), []

    def step():
        rows = stream.next()
        waiting.append(prepare(feed.place(rows), feed.resident, next(number)))
        if len(waiting) > 2:  # as the loop does: the host is two batches ahead
            jax.block_until_ready(waiting.pop(0))

    return step, {'parameters': 0}
