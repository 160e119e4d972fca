"""ViT: published sizes, patches, pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.models.stack import stack_layers
from jaxdl.models.vit import ViT, vit_b, vit_s, vit_ti

SMALL = dict(width=32, layers=2, heads=4, num_classes=10, patch=4)


def count(model, side=224) -> int:
    images = jnp.zeros((1, side, side, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    return sum(x.size for x in jax.tree.leaves(shapes))


def make(model, side=8):
    images = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(1), images, train=False))()
    kernel = variables['params']['head']['kernel']
    variables['params']['head']['kernel'] = jax.random.normal(jax.random.key(2), kernel.shape)
    return images, variables


def test_published_sizes():
    # DeiT's table: 5.7, 22 and 86.6 million; the exact numbers are timm's.
    assert count(vit_ti()) == 5_717_416
    assert count(vit_s()) == 22_050_664
    assert count(vit_b()) == 86_567_656
    assert count(vit_b(scan_layers=True)) == 86_567_656


@pytest.mark.slow
def test_patches_are_linear_maps_of_pixels():
    model = ViT(**SMALL)
    images, variables = make(model)
    params = variables['params']
    _, found = model.apply(
        variables, images, train=False, capture_intermediates=True, mutable=['intermediates']
    )
    got = found['intermediates']['patches']['__call__'][0]
    kernel = params['patches']['kernel'].reshape(-1, 32)
    for row in range(2):
        for column in range(2):
            cut = images[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(2, -1)
            want = cut @ kernel + params['patches']['bias']
            np.testing.assert_allclose(got[:, row, column], want, atol=1e-5)


def test_positions_tell_patches_apart():
    images, variables = make(ViT(**SMALL))
    model = ViT(**SMALL)
    moved = jnp.roll(images, 4, axis=1)
    flat = jax.tree.map(lambda x: x, variables)
    flat['params']['positions'] = jnp.zeros_like(flat['params']['positions'])
    same = [model.apply(flat, x, train=False) for x in (images, moved)]
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)
    other = [model.apply(variables, x, train=False) for x in (images, moved)]
    assert np.abs(other[0] - other[1]).max() > 1e-3


@pytest.mark.parametrize('pooling', ['class', 'mean'])
def test_scanned_equals_plain(pooling):
    model = ViT(**SMALL, pooling=pooling)
    model.check()
    images, variables = make(model)
    logits = model.apply(variables, images, train=False)
    assert logits.shape == (2, 10) and logits.dtype == jnp.float32
    other = model.clone(scan_layers=True, remat='full')
    params = stack_layers(variables['params'])
    got = other.apply({'params': params}, images, train=False)
    np.testing.assert_allclose(got, logits, atol=1e-5)
    assert ('class_token' in variables['params']) == (pooling == 'class')


def test_wrong_sizes():
    for change in (dict(pooling='max'), dict(positions='rotary'), dict(patch=0)):
        with pytest.raises(ValueError, match=next(iter(change))):
            ViT(**{**SMALL, **change}).check()
    with pytest.raises(ValueError, match='patch=4'):
        ViT(**SMALL).init(jax.random.key(0), jnp.zeros((1, 10, 8, 3)), train=False)
