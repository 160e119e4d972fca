"""Batches on the mesh: the same whatever the placement."""

import jax
import numpy as np
import pytest

from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Mesh
from jaxdl.core.feed import Feed
from jaxdl.core.pipeline import CallIds, Order
from jaxdl.core.step import gather
from jaxdl.data.arrays import ArraySource
from jaxdl.errors import UserError


def arrays(size=40):
    rng = np.random.default_rng(0)
    return {
        'image': rng.integers(0, 256, (size, 4, 4, 1)).astype(np.uint8),
        'label': np.arange(size, dtype=np.int32),
    }


class OnDisk(ArraySource):
    """The same rows, of a set that is not in memory."""

    def in_memory(self):
        return None


def batches(source, placement, *, calls=1, workers=0, start=3, stop=9):
    mesh = mesh_lib.make_mesh(Mesh(), jax.devices()[:4])
    feed = Feed(source, 8, mesh, placement=placement)
    order = Order(len(source), 8, seed=5)
    stream = feed.training(
        CallIds([(order, start)], calls), (stop - start) // calls, ahead=2, workers=workers
    )
    try:
        found = []
        for _ in range(start, stop, calls):
            batch = gather(feed.place(stream.next()), feed.resident)
            found.append({name: np.asarray(value) for name, value in batch.items()})
        return feed, found
    finally:
        stream.close()


def same(one, two):
    for first, second in zip(one, two, strict=True):
        assert set(first) == set(second)
        for name in first:
            assert first[name].dtype == second[name].dtype
            np.testing.assert_array_equal(first[name], second[name])


def test_every_placement_gives_the_same_batches():
    expected = [
        {name: values[ids] for name, values in {**arrays(), 'id': np.arange(40, dtype=np.int32)}.items()}
        for ids in (Order(40, 8, seed=5).batch(index) for index in range(3, 9))
    ]  # fmt: skip
    for placement, resolved in (
        ('auto', 'device'), ('device', 'device'), ('host', 'host'), ('stream', 'stream'),
    ):  # fmt: skip
        feed, found = batches(ArraySource(arrays()), placement)
        assert feed.placement == resolved
        same(found, expected)
    feed, found = batches(OnDisk(arrays()), 'auto', workers=1)
    assert feed.placement == 'stream'
    same(found, expected)


@pytest.mark.parametrize('placement', ['device', 'host', 'stream'])
def test_several_batches_in_one_call(placement):
    _, single = batches(ArraySource(arrays()), 'host')
    mesh = mesh_lib.make_mesh(Mesh(), jax.devices()[:4])
    feed = Feed(ArraySource(arrays()), 8, mesh, placement=placement)
    stream = feed.training(CallIds([(Order(40, 8, seed=5), 3)], 3), 2, ahead=2)
    try:
        for call in range(2):
            batch = feed.place(stream.next())
            for index in range(3):
                one = gather({k: v[index] for k, v in batch.items()}, feed.resident)
                same([{k: np.asarray(v) for k, v in one.items()}], [single[3 * call + index]])
    finally:
        stream.close()


def test_a_set_on_disk_has_no_place_in_memory():
    with pytest.raises(UserError, match=r"placement='device'.*use 'stream' or 'auto'"):
        batches(OnDisk(arrays()), 'device')


def test_an_empty_set():
    with pytest.raises(UserError, match='the data set is empty'):
        batches(ArraySource({'x': np.zeros((0, 2))}), 'auto')
