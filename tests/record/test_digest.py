"""A digest is a formula of the values and their places, whatever the sharding, type or shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Mesh
from jaxdl.record.digest import SMALL, Digest


def formula(values: np.ndarray) -> int:
    """MurmurHash3's finaliser of each word and its place, in numpy."""
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    words = values.ravel().view(f'u{values.dtype.itemsize}').astype(np.uint64)
    x = words ^ ((np.arange(words.size, dtype=np.uint64) * 0x9E3779B9 + 0x7F4A7C15) % 2**32)
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return int((x ^ (x >> 16)).sum() % 2**32)


def digest(*arrays) -> list[int]:
    return Digest([jnp.asarray(array) for array in arrays]).values().tolist()


def random(shape, dtype=np.float32) -> np.ndarray:
    bits = np.random.default_rng(0).integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    return bits % 2 == 0 if dtype == np.bool_ else bits.view(dtype).reshape(shape)


SHAPES = [(), (1,), (0,), (7, 3), (3, 3, 16, 8), (48, 64, 64), (SMALL + 1,), (2, 101, 1009)]


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16, np.int8, np.bool_], ids=str)
def test_the_formula(dtype):
    shapes = SHAPES if dtype == np.float32 else SHAPES[:6]
    arrays = [random(shape, dtype) for shape in shapes]
    assert digest(*arrays) == [formula(array.reshape(-1)) for array in arrays]


SPECS = {
    (16, 8): [(), ('data',), ('fsdp', 'data'), (('data', 'fsdp'),), (None, 'data')],
    (64, 64, 256): [('data',), ('fsdp', None, 'data'), (None, ('data', 'fsdp'))],
}


SMALLER, LARGE = SPECS


@pytest.mark.parametrize('shape', [SMALLER, pytest.param(LARGE, marks=pytest.mark.slow)], ids=str)
def test_no_sharding_changes_it(shape):
    mesh = mesh_lib.make_mesh(Mesh(data=4, fsdp=2))
    values = random(shape)
    assert values.size < SMALL or values.size / 8 > SMALL, 'each part is added up like the whole'
    places = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in SPECS[shape]]
    found = Digest([jax.device_put(values, place) for place in places]).values()
    assert set(found.tolist()) == {formula(values)}


def test_exchanged_values_count():
    values = random((16, 8))
    swapped = values.copy()
    swapped[[0, 1]] = values[[1, 0]]
    negative = values.copy()
    negative[3, 3] *= -1
    found = digest(values, swapped, negative, values.T.copy())
    assert len(set(found)) == 4


def test_every_single_bit_counts():
    bits = np.eye(32 * 15, dtype=np.uint8).reshape(-1, 15, 32)  # one of each changed array
    words = np.packbits(bits, axis=2, bitorder='little').view(np.uint32)[..., 0]
    changed = digest(*words)
    assert digest(np.zeros(15, np.uint32))[0] not in changed


def test_what_is_given_away_at_once_was_read_first():
    """The devices read the values as they were, though the next program overwrites them."""
    give = jax.jit(lambda x: x + 1, donate_argnums=0)
    values = random((512, 1024), np.int32)
    array = jnp.asarray(values)
    for step in range(5):
        started = Digest([array])
        array = give(array)
        assert started.values()[0] == formula(values + np.int32(step))
