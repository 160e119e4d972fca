"""The small CNN: sizes, modes, precision and the mistakes it explains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.models.cnn import Cnn
from tests.models.checks import check_vision_model, parameters


def test_parameter_count_is_the_sum_of_its_layers():
    convolutions = 9 * (3 * 32 + 32 * 64 + 64 * 128) + 2 * (32 + 64 + 128)
    assert parameters(Cnn()) == convolutions + (4 * 4 * 128 + 1) * 128 + 129 * 10
    small = Cnn(channels=(16, 32), convs=2, pools=2, dense=0, num_classes=7)
    expected = 9 * (16 + 16 * 16 + 16 * 32 + 32 * 32) + 2 * (16 * 2 + 32 * 2) + 33 * 7
    assert parameters(small, (28, 28, 1)) == expected


@pytest.mark.parametrize(
    ('model', 'shape'),
    [
        (Cnn(channels=(8, 16), pools=2, dense=16, dropout=0.2), (8, 8, 1)),
        (Cnn(channels=(4, 8, 8), convs=2, dense=0, num_classes=5), (28, 28, 1)),
        (Cnn(channels=(4, 8, 8), dense=8, dtype='bfloat16'), (32, 32, 3)),
    ],
)
def test_trains_and_evaluates(model, shape):
    _, grads = check_vision_model(model, shape, model.num_classes)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads))


def test_dropout_zero_needs_no_key():
    model = Cnn(channels=(4,), pools=1, dense=0)
    images = jnp.ones((2, 8, 8, 1))
    variables = model.init(jax.random.key(0), images, train=False)
    model.apply(variables, images, train=True, mutable=['batch_stats'])


def test_dropout_may_be_traced():
    images = jnp.ones((2, 8, 8, 1))
    variables = Cnn(channels=(4,), pools=1).init(jax.random.key(0), images, train=False)

    @jax.jit
    def run(rate):
        model = Cnn(channels=(4,), pools=1, dropout=rate)
        rngs = {'dropout': jax.random.key(0)}
        return model.apply(variables, images, train=True, rngs=rngs, mutable=['batch_stats'])[0]

    assert not np.allclose(run(0.1), run(0.9))


@pytest.mark.parametrize(
    ('model', 'words'),
    [
        (Cnn(pools=4), r'pools=4: must be in 0\.\.3'),
        (Cnn(channels=()), r'channels=\(\): must be positive'),
        (Cnn(channels=(8, 0)), r'channels=\(8, 0\): must be positive'),
        (Cnn(dense=-1), 'dense=-1: must be at least 0'),
        (Cnn(dropout=1.5), r'dropout=1\.5: must be in \[0, 1\)'),
        (Cnn(dtype='half'), "dtype='half': must be one of"),
        (Cnn(convs=0), 'convs=0: must be at least 1'),
    ],
)
def test_check_explains(model, words):
    with pytest.raises(ValueError, match=words):
        model.check()


def test_too_many_pools_for_the_image():
    model = Cnn(channels=(4,) * 4, pools=4)
    with pytest.raises(ValueError, match='pools=4: images of 8×8 can be halved 3 times'):
        model.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)), train=False)
