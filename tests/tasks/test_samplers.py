"""Samplers and likelihood on data that is one Gaussian or two, whose score is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.tasks import samplers

MEAN, STD = jnp.array([0.4, -0.3]), jnp.array([0.5, 0.2])
# Two Gaussians: weights, means and one deviation.
WEIGHTS, MEANS, WIDTH = jnp.array([0.3, 0.7]), jnp.array([[-1.0, 0.5], [0.8, -0.2]]), 0.3
TOP = 20.0


def one(x, sigma):
    """E[x₀ | x] for N(MEAN, STD²)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def two(x, sigma):
    """E[x₀ | x] for the mixture."""
    variance = WIDTH**2 + sigma**2
    apart = x[:, None] - MEANS
    share = jax.nn.softmax(jnp.log(WEIGHTS) - jnp.square(apart).sum(-1) / (2 * variance))
    each = MEANS + WIDTH**2 / variance * apart
    return (share[..., None] * each).sum(1)


def log_density_two(x, sigma):
    variance = WIDTH**2 + sigma**2
    square = jnp.square(x[:, None] - MEANS).sum(-1)
    logs = jnp.log(WEIGHTS) - square / (2 * variance) - jnp.log(2 * jnp.pi * variance)
    return jax.nn.logsumexp(logs, axis=1)


def exact(x):
    """Where the ODE leads from x at TOP, for one Gaussian: along quantiles."""
    return MEAN + (x - MEAN) * STD / jnp.sqrt(STD**2 + TOP**2)


def start(count=6):
    return TOP * jax.random.normal(jax.random.key(1), (count, 2))


@pytest.mark.parametrize(
    ('name', 'order'), [('euler', 1), ('ddim', 1), ('heun', 2), ('dpmpp_2m', 2)]
)
def test_a_sampler_converges_to_the_exact_solution_with_its_order(name, order):
    x, errors = start(), []
    for steps in (40, 80):
        found, seen = samplers.sample(name, one, x, samplers.karras(steps, 0.002, TOP))
        assert seen.shape == (steps, *x.shape)
        errors.append(float(jnp.abs(found - exact(x)).max()))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.3), errors
    assert errors[1] < {1: 0.05, 2: 0.01}[order]


@pytest.mark.parametrize('name', samplers.SAMPLERS)
def test_evaluations_are_counted(name):
    seen = []

    def counted(x, sigma):
        jax.debug.callback(lambda s: seen.append(float(s)), sigma)
        return one(x, sigma)

    jax.block_until_ready(samplers.sample(name, counted, start(1), samplers.karras(7, 0.01, TOP)))
    jax.effects_barrier()
    assert len(seen) == samplers.EVALUATIONS[name](7)


@pytest.mark.parametrize(
    ('name', 'options'),
    [('heun', {}), ('dpmpp_2m', {}), ('ddim', {'key': jax.random.key(3), 'eta': 1.0})],
    ids=['heun', 'dpmpp_2m', 'ddpm'],
)
def test_samples_of_two_gaussians_have_their_moments(name, options):
    x = TOP * jax.random.normal(jax.random.key(0), (20_000, 2))
    steps = 250 if options else 80
    run = jax.jit(
        lambda x: samplers.sample(name, two, x, samplers.karras(steps, 0.01, TOP), **options)[0]
    )
    found = np.asarray(run(x))
    mean = np.asarray(WEIGHTS @ MEANS)
    apart = np.asarray(MEANS) - mean
    covariance = (np.asarray(WEIGHTS)[:, None] * apart).T @ apart + WIDTH**2 * np.eye(2)
    np.testing.assert_allclose(found.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(found.T), covariance, atol=0.03)
    assert (found[:, 0] < 0).mean() == pytest.approx(0.3, abs=0.02)


def test_the_schedules_fall_to_zero():
    for sigmas in (
        samplers.karras(9, 0.01, 5.0),
        samplers.straight(9, 5.0),
        samplers.karras(1, 1.0, 5.0),
    ):
        assert (np.diff(sigmas) < 0).all() and sigmas[-1] == 0
        assert float(sigmas[0]) == pytest.approx(5.0, rel=1e-4)
    t = samplers.straight(4, 3.0) / (1 + samplers.straight(4, 3.0))
    np.testing.assert_allclose(np.diff(t), -0.75 / 4, rtol=1e-5)


@pytest.mark.parametrize('density', ['one', 'two'])
def test_the_likelihood_is_the_exact_one(density):
    low = 0.02
    x = jnp.array([[0.3, -0.2], [-0.9, 0.4], [0.0, 0.0], [1.2, -0.6]])
    # Even in ln σ, where the equation changes most evenly, from where the data's mean is nothing.
    sigmas = jnp.geomspace(1e4, low, 200)
    if density == 'one':
        variance = STD**2 + low**2
        wanted = -0.5 * (jnp.square(x - MEAN) / variance + jnp.log(2 * jnp.pi * variance)).sum(1)
    else:
        wanted = log_density_two(x, low)
    found = samplers.log_likelihood({'one': one, 'two': two}[density], x, sigmas)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    # One probe is exact where the denoiser's derivative is diagonal, and right in the mean elsewhere.
    keys = jax.random.split(jax.random.key(0), 1 if density == 'one' else 200)
    denoise, every = (one, 1) if density == 'one' else (two, 4)
    many = jax.vmap(lambda key: samplers.log_likelihood(denoise, x, sigmas[::every], key=key))
    np.testing.assert_allclose(many(keys).mean(0), wanted, atol=1e-3 if every == 1 else 0.1)


def test_guidance_follows_the_ode_and_is_not_the_tilted_density():
    """Class N(a, s²) in all data N(0, 1): the guided denoiser is linear, so its ODE is solved."""
    a, s, strength = 0.8, 0.4, 3.0

    def conditional(x, sigma):
        return (s**2 * x + sigma**2 * a) / (s**2 + sigma**2)

    def free(x, sigma):
        return x / (1 + sigma**2)

    # dx/dσ = σ (w (x - a) / (s² + σ²) + (1 - w) x / (1 + σ²)): linear in x. The factor is
    # f(σ) = (s² + σ²)^(w/2) (1 + σ²)^((1-w)/2), the rest an integral of one variable.
    x = TOP * jnp.linspace(-1.5, 1.5, 7)[:, None]
    grid = np.linspace(0, TOP, 400_001)
    f = (s**2 + grid**2) ** (strength / 2) * (1 + grid**2) ** ((1 - strength) / 2)
    inner = grid * -strength * a / (s**2 + grid**2) / f
    integral = ((inner[1:] + inner[:-1]) / 2 * np.diff(grid)).sum()
    wanted = f[0] * (np.asarray(x) / f[-1] - integral)
    denoise = samplers.guided(conditional, free, strength)
    found, _ = samplers.heun(denoise, x, samplers.karras(400, 0.002, TOP))
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    # p(x) p(class | x)^w is N(w a / s² / precision, 1 / precision).
    precision = strength / s**2 + 1 - strength
    spread = float((wanted[-1, 0] - wanted[0, 0]) / 3)
    assert (
        abs(spread - precision**-0.5) > 0.05
        or abs(wanted[3, 0] - strength * a / s**2 / precision) > 0.05
    )
    plain, _ = samplers.heun(
        samplers.guided(conditional, free, 1.0), x, samplers.karras(40, 0.002, TOP)
    )
    alone, _ = samplers.heun(conditional, x, samplers.karras(40, 0.002, TOP))
    np.testing.assert_allclose(plain, alone, atol=1e-5)


def test_inpainting_keeps_what_is_known():
    known, mask = jnp.array([0.7, 0.0]), jnp.array([False, True])
    x = start(4) + known * ~mask
    sigmas = samplers.karras(200, 0.002, TOP)
    found, _ = samplers.heun(samplers.inpainted(one, known, mask), x, sigmas)
    np.testing.assert_allclose(found[:, 0], 0.7, atol=1e-4)
    free, _ = samplers.heun(one, x, sigmas)
    np.testing.assert_allclose(found[:, 1], free[:, 1], atol=1e-4)
