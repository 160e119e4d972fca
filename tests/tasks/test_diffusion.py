"""Parametrisations, weights and noise of diffusion models against the formulas of their papers."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.data.synthetic import SyntheticImages
from jaxdl.errors import UserError
from jaxdl.models.applied import Applied
from jaxdl.models.denoiser import Denoiser, Latent
from jaxdl.models.unet import UNet
from jaxdl.models.vae import Vae
from jaxdl.tasks import diffusion
from jaxdl.tasks.diffusion import Diffusion, LogNormal, Sampling, Uniform

SIGMA = jnp.array([0.01, 0.3, 1.0, 7.0])


@pytest.mark.parametrize('kind', diffusion.PARAMETRISATIONS)
def test_a_perfect_output_makes_a_perfect_denoiser(kind):
    """What the papers call the target, in their own variables, gives x₀ back."""
    clean, noise = np.random.default_rng(0).normal(size=(2, 4))
    x = clean + np.asarray(SIGMA) * noise
    sigma = np.asarray(SIGMA)
    alpha, beta = 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
    data = 0.5
    root = np.sqrt(sigma**2 + data**2)
    target, seen = {
        'epsilon': (noise, alpha * clean + beta * noise),
        'v': (alpha * noise - beta * clean, alpha * clean + beta * noise),
        'flow': (noise - clean, (clean + sigma * noise) / (1 + sigma)),
        'edm': ((clean * root**2 - data**2 * x) / (sigma * data * root), x / root),
    }[kind]
    skip, out, into = diffusion.coefficients(kind, SIGMA, data)
    np.testing.assert_allclose(skip * x + out * target, clean, atol=2e-5)
    np.testing.assert_allclose(into * x, seen, rtol=1e-5)


def test_noise_levels_are_distributed_as_they_say():
    u = (jnp.arange(20_000) + 0.5) / 20_000
    logs = jnp.log(LogNormal(mean=-1.0, std=0.7).sigma(u))
    assert float(logs.mean()) == pytest.approx(-1.0, abs=1e-3)
    assert float(logs.std()) == pytest.approx(0.7, abs=5e-3)
    sigma = Uniform().sigma(u)
    np.testing.assert_allclose(sigma / (1 + sigma), u, atol=1e-5)
    np.testing.assert_allclose(
        jnp.arctan(Uniform(of='angle').sigma(u)) / (jnp.pi / 2), u, atol=1e-5
    )


class Zero(Denoiser, nn.Module):
    """Says zero everywhere, so that a loss is the mean square of the target."""

    @nn.compact
    def __call__(self, images, noise, labels, *, train):
        return images * self.param('factor', nn.initializers.zeros, ())


def batch_of(count=4000):
    image = np.random.default_rng(0).choice([64, 191], (count, 2, 2, 1)).astype(np.uint8)
    return {
        'image': jnp.asarray(image),
        'id': jnp.arange(count),
        'label': jnp.zeros(count, jnp.int32),
    }


def loss_of(task, batch, model=None):
    model = model or Zero()
    params = {'factor': jnp.zeros(())}
    return float(task.evaluate(Applied(model, params, {}, None), batch)['loss'].value())


def test_losses_are_those_of_the_targets():
    batch = batch_of()
    power = float(jnp.square(batch['image'] / 127.5 - 1).mean())
    # ε has variance 1, a velocity that of the noise and the data; EDM's target is about 1 for
    # data of the deviation that it is told.
    assert loss_of(Diffusion(parametrisation='epsilon'), batch) == pytest.approx(1, abs=0.05)
    assert loss_of(Diffusion(parametrisation='flow'), batch) == pytest.approx(1 + power, abs=0.05)
    task = Diffusion(parametrisation='edm', sigma_data=power**0.5)
    assert loss_of(task, batch) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(('kind', 'weight'), [
    ('epsilon', lambda snr: min(snr, 5) / snr),
    ('v', lambda snr: min(snr, 5) / (snr + 1)),
])  # fmt: skip
def test_min_snr_weighs_as_in_the_paper(kind, weight):
    batch = batch_of(64)
    for sigma in (0.1, 1.0, 6.0):
        sampling = Sampling(sigma_min=sigma * 0.9999, sigma_max=sigma)
        plain = Diffusion(parametrisation=kind, sampling=sampling)
        weighted = dataclasses.replace(plain, weighting='min_snr')
        found = loss_of(weighted, batch) / loss_of(plain, batch)
        assert found == pytest.approx(weight(sigma**-2), rel=1e-3)


def test_training_spreads_levels_and_drops_labels_whatever_the_devices_see():
    batch = batch_of(1000)
    task = Diffusion(label_dropout=0.25)
    found = task.augment(batch, jax.random.key(0))
    gaps = np.diff(np.sort(found['level']))
    np.testing.assert_allclose(gaps, 1e-3, atol=1e-5)
    assert (np.asarray(found['label']) == -1).mean() == pytest.approx(0.25, abs=0.05)
    kept = dataclasses.replace(task, label_dropout=0.0).augment(batch, jax.random.key(0))
    assert (kept['label'] == 0).all()
    apply = Applied(Zero(), {'factor': jnp.zeros(())}, {}, None)
    whole = task.losses(apply, found, jax.random.key(1))['loss']
    parts = [
        task.losses(apply, jax.tree.map(lambda x, i=i: x[i::2], found), jax.random.key(i))['loss']
        for i in range(2)
    ]
    assert float(whole.value()) == pytest.approx(float(parts[0].merge(parts[1]).value()), rel=1e-5)


@pytest.fixture(scope='module')
def small():
    model = UNet(channels=(8,), blocks=1, num_classes=3)
    data = SyntheticImages(num_examples=8, num_eval_examples=4, shape=(8, 8, 1), num_classes=3)
    images = jnp.zeros((1, 8, 8, 1))
    variables = model.init(
        jax.random.key(0), images, jnp.zeros(1), jnp.zeros(1, jnp.int32), train=False
    )
    noisy = jax.tree.map(
        lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), variables
    )
    return model, noisy, data


@pytest.mark.slow
def test_what_is_drawn_depends_on_its_options(small):
    model, variables, data = small
    task = Diffusion(sampling=Sampling(sampler='euler', steps=3))

    def draw(n=4, **options):
        drawn = task.draw(model, variables, data, n, **options)
        assert drawn.images.shape == (n, 8, 8, 1) and drawn.images.dtype == np.uint8
        return drawn.images

    plain = draw()
    np.testing.assert_array_equal(draw(2), plain[:2])  # a picture does not depend on how many
    assert (draw(seed=1) != plain).any()
    one = draw(label=1)
    np.testing.assert_array_equal(one[1], plain[1])
    assert (one[0] != plain[0]).any(), 'the class is seen'
    assert (draw(label=1, guidance=3.0) != one).any()
    assert (draw(sampler='heun') != plain).any() and (draw(steps=5) != plain).any()
    assert '5 evaluations' in task.draw(model, variables, data, 1, sampler='heun', steps=3).note
    assert '6 evaluations' in task.draw(model, variables, data, 1, guidance=2.0).note
    walk = draw(4, interpolate=4, label=0).astype(int)
    assert np.abs(np.diff(walk, axis=0)).max() < np.abs(walk[0] - walk[-1]).max() + 60
    given = np.full((8, 8, 1), 200, np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    filled = draw(inpaint=given, mask=mask)
    assert (filled[:, 4:] == 200).all() and (filled[:, :4] != 200).any()
    for options, said in (
        ({'label': 3}, '--class=3'),
        ({'sampler': 'hein'}, "did you mean 'heun'"),
    ):
        with pytest.raises(UserError, match=said):
            draw(**options)
    with pytest.raises(UserError, match='--class: the model was trained without classes'):
        task.draw(model.clone(num_classes=0), variables, data, 1, label=1)


@pytest.mark.slow
def test_an_evaluation_shows_samples_and_the_last_one_more(small):
    model, variables, data = small
    task = Diffusion(sampling=Sampling(steps=2, sampler='ddim', eta=0.5), shown=2, likelihood=2)
    beats = []
    found = task.generate(model, variables, data, final=False, beat=lambda: beats.append(1))
    assert beats and set(found.pictures) == {'samples'}
    assert found.pictures['samples'].shape == (24, 16, 1)
    found = task.generate(model, variables, data, final=True, beat=lambda: None)
    assert set(found.pictures) == {'samples', 'trajectories', 'interpolations'}
    assert (
        0 < found.scores['test/likelihood'] < 30 and 'Hutchinson' in found.notes['test/likelihood']
    )


@pytest.mark.slow
def test_a_latent_model_trains_on_what_its_autoencoder_sees():
    vae = Vae(shape=(8, 8, 1), channels=(4,), convs=1, latent=2, grid=True)
    model = Latent(autoencoder=vae, denoiser=UNet(channels=(8,), blocks=1), scale=0.5)
    task = Diffusion(sigma_data=1.0, sampling=Sampling(sampler='euler', steps=2))
    batch = {
        'image': jnp.asarray(
            SyntheticImages(num_examples=4, shape=(8, 8, 1))
            .train_source()
            .fetch(np.arange(4))['image']
        )
    }
    batch['id'] = jnp.arange(4)
    variables = model.init(jax.random.key(0), **task.inputs(batch), train=False)
    assert set(variables['params']) == {'autoencoder', 'denoiser'}
    alone = vae.init(jax.random.key(0), task.inputs(batch)['images'], train=False)['params']
    assert jax.tree.structure(alone) == jax.tree.structure(variables['params']['autoencoder'])

    def loss(params):
        return task.losses(
            Applied(model, params, {}, None),
            task.augment(batch, jax.random.key(0)),
            jax.random.key(1),
        )['loss'].total

    grads = jax.grad(loss)(variables['params'])
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads['autoencoder']))
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(grads['denoiser']))
    z = model.apply(variables, task.inputs(batch)['images'], train=False, method='encode')
    mean, _ = vae.apply(
        {'params': variables['params']['autoencoder']},
        task.inputs(batch)['images'],
        train=False,
        method='encode',
    )
    np.testing.assert_allclose(z, 0.5 * mean, rtol=1e-6)
    data = SyntheticImages(num_examples=4, num_eval_examples=2, shape=(8, 8, 1))
    assert task.draw(model, variables, data, 2).images.shape == (2, 8, 8, 1)
    with pytest.raises(UserError, match='--inpaint: this model draws in a latent space'):
        task.draw(
            model,
            variables,
            data,
            1,
            inpaint=np.zeros((8, 8, 1), np.uint8),
            mask=np.ones((8, 8), bool),
        )
