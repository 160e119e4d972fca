"""U-Net, DiT and VAE: what they begin as, what they look at, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.models.dit import DiT, grid_positions
from jaxdl.models.layers import GroupNorm, doubled
from jaxdl.models.stack import stack_layers
from jaxdl.models.unet import UNet
from jaxdl.models.vae import Vae

IMAGES = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
NOISE, LABELS = jnp.array([-1.0, 0.0, 0.9]), jnp.array([0, 2, -1])
MODELS = {
    'unet': UNet(channels=(8, 16), blocks=1, attention=(1,), heads=2, num_classes=3),
    'dit': DiT(width=16, layers=2, heads=2, patch=2, num_classes=3),
}


def moved(tree):
    """The parameters with something in the layers that begin as zeros."""
    return jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), tree)


@pytest.mark.parametrize('name', [pytest.param('unet', marks=pytest.mark.slow), 'dit'])
def test_a_denoiser_begins_as_zero_and_sees_all_its_inputs(name):
    model = MODELS[name]
    model.check()
    variables = model.init(jax.random.key(1), IMAGES, NOISE, LABELS, train=False)
    call = jax.jit(lambda v, *inputs: model.apply(v, *inputs, train=False))
    assert (call(variables, IMAGES, NOISE, LABELS) == 0).all()
    variables = moved(variables)
    plain = call(variables, IMAGES, NOISE, LABELS)
    assert plain.shape == IMAGES.shape and plain.dtype == jnp.float32
    for other in (
        (IMAGES + 1, NOISE, LABELS),
        (IMAGES, NOISE + 0.05, LABELS),
        (IMAGES, NOISE, jnp.array([1, -1, 0])),
    ):
        changed = np.abs(np.asarray(call(variables, *other) - plain)).reshape(3, -1).max(1)
        assert (changed > 1e-4).all(), 'each row depends on it'
    rows = call(variables, IMAGES[1:2], NOISE[1:2], LABELS[1:2])
    np.testing.assert_allclose(rows, plain[1:2], atol=1e-4)  # and on no other row


@pytest.mark.slow
def test_a_scanned_dit_is_the_same():
    model = MODELS['dit']
    variables = moved(model.init(jax.random.key(1), IMAGES, NOISE, LABELS, train=False))
    scanned = model.clone(scan_layers=True, remat='full')
    stacked = {'params': stack_layers(variables['params'])}
    np.testing.assert_allclose(
        scanned.apply(stacked, IMAGES, NOISE, LABELS, train=False),
        model.apply(variables, IMAGES, NOISE, LABELS, train=False),
        atol=1e-5,
    )


def test_dit_b_has_the_papers_parameters():
    """130 million, and what our norms have besides."""
    model = DiT(scan_layers=True, patch=4)
    shapes = jax.eval_shape(
        lambda: model.init(
            jax.random.key(0),
            jnp.zeros((1, 32, 32, 4)),
            jnp.zeros(1),
            jnp.zeros(1, int),
            train=False,
        )
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 128e6 < count < 132e6, count


def test_positions_tell_row_and_column_apart():
    table = grid_positions(4, 6, 16).reshape(24, 16)
    apart = jnp.square(table[:, None] - table).sum(-1) + 9 * jnp.eye(24)
    assert float(apart.min()) > 1e-2


def test_group_norm_is_that_of_torch():
    torch = pytest.importorskip('torch')
    x = np.random.default_rng(0).normal(2, 3, (2, 5, 4, 12)).astype(np.float32)
    layer = GroupNorm(groups=5)  # 4 is the largest number up to it that divides 12
    variables = moved(layer.init(jax.random.key(0), x))
    theirs = torch.nn.functional.group_norm(
        torch.tensor(x.transpose(0, 3, 1, 2)),
        4,
        torch.tensor(np.asarray(variables['params']['scale'])),
        torch.tensor(np.asarray(variables['params']['bias'])),
    )
    np.testing.assert_allclose(
        layer.apply(variables, x), theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5
    )


def test_doubled_repeats_each_pixel():
    x = np.arange(12).reshape(1, 2, 3, 2)
    np.testing.assert_array_equal(doubled(jnp.asarray(x)), x.repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize('grid', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_vae_halves_and_doubles(grid):
    model = Vae(shape=(8, 4, 2), channels=(4, 6), convs=1, latent=3, grid=grid, mixtures=2)
    model.check()
    images = jnp.zeros((5, 8, 4, 2))
    variables = model.init(jax.random.key(0), images, train=False)
    mean, log_std = model.apply(variables, images, train=False, method='encode')
    assert mean.shape == log_std.shape == ((5, 2, 1, 3) if grid else (5, 3))
    assert model.apply(variables, images, train=False).shape == (5, 8, 4, 2, 6)
    with pytest.raises(ValueError, match='set model'):
        model.apply(variables, images[:, :4], train=False)


@pytest.mark.parametrize(('model', 'said'), [
    (UNet(attention=(3,)), 'attention='), (UNet(channels=(6,), attention=(0,)), 'heads=4'),
    (UNet(channels=()), 'channels='), (Vae(shape=(28, 28, 1), channels=(8, 8, 8)), 'shape='),
    (DiT(width=18, heads=3), 'width=18'), (DiT(pre_norm=False), 'pre_norm='),
])  # fmt: skip
def test_what_cannot_be_built_is_named(model, said):
    with pytest.raises(ValueError, match=said):
        model.check()
