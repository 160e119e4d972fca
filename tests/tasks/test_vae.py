"""The bound of a VAE against a formula in numpy and scipy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxdl.core.learner import Applied
from jaxdl.models.vae import Vae
from jaxdl.tasks import pictures
from jaxdl.tasks.augment import HorizontalFlip
from jaxdl.tasks.vae import VariationalAutoencoder, log_probability

LEVELS = 17


def test_the_probabilities_of_all_levels_sum_to_one():
    outputs = 3 * jax.random.normal(jax.random.key(0), (50, 6))
    values = np.linspace(-1, 1, LEVELS)
    logs = [log_probability(outputs, jnp.full(50, value), LEVELS) for value in values]
    np.testing.assert_allclose(np.exp(logs).sum(0), 1, rtol=1e-5)
    # Also where the mass is far away, or a scale tiny, a logarithm is finite and has a gradient.
    far = jnp.array([[0.0, 1.0, -9.0], [0.0, -0.9, 6.0]])
    value, slope = jax.value_and_grad(
        lambda o: log_probability(o, jnp.full(2, -1.0), LEVELS).sum()
    )(far)
    assert np.isfinite(value) and np.isfinite(slope).all()


def by_hand(outputs, images):
    """log probability [...] by the cumulative distribution, in float64."""
    logits, means, scales = np.split(np.asarray(outputs, np.float64), 3, axis=-1)
    index = np.rint((np.asarray(images, np.float64) + 1) / 2 * (LEVELS - 1))[..., None]
    edges = [
        (2 * (index + shift) / (LEVELS - 1) - 1 - means) / np.exp(scales) for shift in (-0.5, 0.5)
    ]
    low = np.where(index == 0, 0, scipy.special.expit(edges[0]))
    high = np.where(index == LEVELS - 1, 1, scipy.special.expit(edges[1]))
    return np.log((scipy.special.softmax(logits, -1) * (high - low)).sum(-1))


@pytest.fixture(scope='module')
def made():
    model = Vae(shape=(8, 8, 1), channels=(4, 8), convs=1, latent=3, mixtures=2)
    rng = np.random.default_rng(0)
    image = np.rint(rng.integers(0, LEVELS, (6, 8, 8, 1)) * 255 / (LEVELS - 1)).astype(np.uint8)
    batch = {
        'image': jnp.asarray(image),
        'id': jnp.arange(6) + 40,
        'mask': jnp.array([1.0] * 5 + [0]),
    }
    variables = model.init(jax.random.key(0), pictures.scaled(batch['image']), train=False)
    return model, variables['params'], batch


def test_the_bound_is_that_of_the_formula(made):
    model, params, batch = made
    task = VariationalAutoencoder(levels=LEVELS, importance=3)
    found = {
        k: float(v.value())
        for k, v in task.evaluate(Applied(model, params, {}, None), batch).items()
    }
    images = pictures.scaled(batch['image'])
    variables = {'params': params}
    mean, log_std = map(np.asarray, model.apply(variables, images, train=False, method='encode'))
    std = np.exp(log_std)

    def log_likelihood(noise):
        outputs = model.apply(variables, mean + std * noise, train=False, method='decode')
        return by_hand(outputs, images).sum((1, 2, 3))

    noise = [np.asarray(pictures.normals(pictures.row_keys(batch, i), (3,))) for i in range(4)]
    bits = 1 / (64 * math.log(2))
    kl = (0.5 * (mean**2 + std**2 - 1) - log_std).sum(1)[:5].mean() * bits
    reconstruction = -log_likelihood(noise[0])[:5].mean() * bits
    assert found['kl'] == pytest.approx(kl, rel=1e-4)
    assert found['reconstruction'] == pytest.approx(reconstruction, rel=1e-4)
    assert found['bound'] == pytest.approx(kl + reconstruction, rel=1e-4)
    logs = [
        log_likelihood(n)
        + scipy.stats.norm.logpdf(mean + std * n).sum(1)
        - scipy.stats.norm.logpdf(mean + std * n, mean, std).sum(1)
        for n in noise[1:]
    ]
    weighted = -(scipy.special.logsumexp(logs, axis=0) - math.log(3))[:5].mean() * bits
    assert found['importance_weighted_3'] == pytest.approx(weighted, rel=1e-4)
    assert task.derived({'latent_square': 4.0}) == {'latent_std': 2.0}


def test_the_evaluation_depends_on_the_rows_alone_and_training_on_the_step(made):
    model, params, batch = made
    task = VariationalAutoencoder(
        levels=LEVELS, importance=2, beta=0.5, augmentations=(HorizontalFlip(),)
    )
    apply = Applied(model, params, {}, None)
    whole = task.evaluate(apply, batch)
    parts = [
        task.evaluate(apply, jax.tree.map(lambda x, rows=rows: x[rows], batch))
        for rows in (slice(2), slice(2, 6))
    ]
    for name, value in whole.items():
        assert float(value.value()) == pytest.approx(
            float(parts[0][name].merge(parts[1][name]).value()), rel=1e-5
        )
    batch = {k: v for k, v in batch.items() if k != 'mask'}
    steps = [task.augment(batch, jax.random.key(seed)) for seed in (0, 0, 1)]
    losses = [float(task.losses(apply, step, jax.random.key(9))['bound'].value()) for step in steps]
    assert losses[0] == losses[1] != losses[2]
    found = task.losses(apply, steps[0], jax.random.key(9))
    values = {k: float(v.value()) for k, v in found.items()}
    assert values['loss'] == pytest.approx(values['reconstruction'] + 0.5 * values['kl'], rel=1e-5)
