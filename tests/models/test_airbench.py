"""The airbench network: published form, whitening, views, modes and mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.models.airbench import Airbench, dirac_or_torch, stacked_views, whitening_kernel
from tests.models.checks import check_vision_model, count, parameters, random_variables, shapes

SMALL = Airbench(widths=(8, 16, 16))


def _images(count=64, size=32, seed=0):
    """Smooth images with correlated channels, as real ones are."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, size + 4, size + 4, 3)) + 2 * rng.normal(
        size=(count, size + 4, size + 4, 1)
    )
    smooth = sum(noise[:, i : i + size, j : j + size] for i in range(5) for j in range(5)) / 10
    return smooth.astype(np.float32)


@pytest.mark.parametrize(
    ('model', 'trained'),
    [
        # 9 · (products of channels) + classifier + BatchNorm biases + whitening biases.
        (Airbench(), 9 * (24 * 64 + 64**2 + 64 * 256 + 3 * 256**2) + 2560 + 2 * 576 + 24),
        (
            Airbench(widths=(128, 512, 512), convs=3),
            9 * (24 * 128 + 2 * 128**2 + 128 * 512 + 5 * 512**2) + 5120 + 3 * 1152 + 24,
        ),
    ],
)
def test_size(model, trained):
    assert parameters(model) == trained
    assert count(shapes(model)['whitening']) == 2 * 2 * 3 * 24


def test_default_has_the_papers_197_million_parameters():
    total = parameters(Airbench()) + count(shapes(Airbench())['whitening'])
    assert round(total / 1e6, 2) == 1.97


@pytest.mark.parametrize(
    ('model', 'shape'),
    [
        (SMALL.clone(convs=3), (32, 32, 3)),
        (SMALL.clone(dtype='bfloat16', num_classes=5), (28, 28, 1)),
    ],
)
def test_trains_and_evaluates(model, shape):
    check_vision_model(model, shape, model.num_classes)


def test_whitening_makes_patches_white():
    images = _images()
    kernel = np.asarray(whitening_kernel(jnp.asarray(images), 2, 0.0), np.float64)
    assert kernel.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(kernel[..., :12], -kernel[..., 12:])
    patches = np.concatenate(
        [images[:, i : 31 + i, j : 31 + j] for i in range(2) for j in range(2)], -1
    ).reshape(-1, 12)
    responses = patches.astype(np.float64) @ kernel.reshape(12, 24)[:, :12]
    np.testing.assert_allclose(responses.T @ responses / len(responses), np.eye(12), atol=2e-2)
    # Directions of the largest variance, whose filters are the smallest, come first.
    assert (np.diff(np.linalg.norm(kernel.reshape(12, 24)[:, :12], axis=0)) > 0).all()


def test_whitening_epsilon_bounds_the_filters():
    kernel = whitening_kernel(jnp.asarray(_images(2)), 2, 5e-4)
    assert float(jnp.sqrt(jnp.square(kernel).sum((0, 1, 2)).max())) <= 5e-4**-0.5


def test_whitening_without_content_is_that_of_natural_images():
    plain = whitening_kernel(jnp.full((2, 8, 8, 3), -1.9), 2, 5e-4)
    np.testing.assert_array_equal(plain, whitening_kernel(jnp.zeros((4, 9, 9, 3)), 2, 5e-4))
    norms = np.linalg.norm(np.asarray(plain).reshape(12, 24), axis=0)
    assert norms[0] < 0.35 and 5 < norms.max() <= 5e-4**-0.5


def test_whitening_is_set_at_initialisation_and_never_after():
    images = jnp.asarray(_images(8, 12))
    variables = jax.jit(lambda x: SMALL.init(jax.random.key(0), x, train=False))(images)
    kernel = variables['whitening']['kernel']
    np.testing.assert_allclose(kernel, whitening_kernel(images, 2, 5e-4), atol=1e-2)

    @jax.jit
    def train(images):
        mutable = ['batch_stats', 'whitening']
        return SMALL.apply(variables, images, train=True, mutable=mutable)[1]

    np.testing.assert_array_equal(train(3 * images[::-1])['whitening']['kernel'], kernel)


def test_whitening_is_the_same_for_a_split_batch():
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    images = jnp.asarray(_images(64))
    split = jax.device_put(images, NamedSharding(mesh, PartitionSpec('data')))
    run = jax.jit(lambda x: whitening_kernel(x, 2, 5e-4))
    one, many = run(images), run(split)
    # Directions of nearly equal variance turn a little with each rounding; none changes its sign.
    np.testing.assert_allclose(one, many, atol=2e-2 * float(jnp.abs(one).max()))


def test_convolutions_start_as_the_identity_where_they_can():
    for outputs in (3, 6):
        make = jax.jit(dirac_or_torch, static_argnums=1)
        kernel = np.asarray(make(jax.random.key(0), (3, 3, 4, outputs)))
        for channel in range(min(outputs, 4)):
            passes = np.zeros((3, 3, 4))
            passes[1, 1, channel] = 1
            np.testing.assert_array_equal(kernel[..., channel], passes)
    assert 0.1 < np.abs(kernel[..., 4:]).max() <= 1 / 6


@pytest.mark.parametrize('views', [2, 6])
def test_views_are_averaged_logits(views):
    images = _images(3)
    variables = random_variables(SMALL, (32, 32, 3))
    one = jax.jit(lambda x: SMALL.apply(variables, x, train=False))

    def mirrored(x):
        return (one(x) + one(x[:, :, ::-1])) / 2

    expected = mirrored(images)
    if views == 6:
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='reflect')
        shifted = mirrored(padded[:, :32, :32]) + mirrored(padded[:, 2:, 2:])
        expected = expected / 2 + shifted / 4
    many = SMALL.clone(views=views)
    found = jax.jit(lambda x: many.apply(variables, x, train=False))(images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert sum(stacked_views(jnp.asarray(images), views)[1]) == 1
    assert parameters(many) == parameters(SMALL)


@pytest.mark.parametrize(
    ('model', 'words'),
    [
        (Airbench(widths=(64, 256)), r'widths=\(64, 256\): must be three'),
        (Airbench(convs=4), 'convs=4: must be one of 2, 3'),
        (Airbench(views=3), 'views=3: must be one of 1, 2, 6'),
        (Airbench(logit_scale=0.0), r'logit_scale=0\.0: must be above 0'),
        (Airbench(whitening_epsilon=-1.0), r'whitening_epsilon=-1\.0: must be above 0'),
        (Airbench(momentum=1.0), r'momentum=1\.0: must be in \[0, 1\)'),
    ],
)
def test_check_explains(model, words):
    with pytest.raises(ValueError, match=words):
        model.check()


def test_images_that_are_too_small_are_explained():
    with pytest.raises(ValueError, match='at least 9×9 pixels; these have 8×8'):
        SMALL.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)), train=False)
