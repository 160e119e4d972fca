"""Attacks against their definitions, adversarial training against its formulas, certificates."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxdl.core import config as config_lib
from jaxdl.errors import UserError
from jaxdl.models.applied import Applied
from jaxdl.models.cnn import Cnn
from jaxdl.run.loop import train
from jaxdl.tasks.attack import Attack, margin
from jaxdl.tasks.intervals import bounds
from jaxdl.tasks.pictures import id_keys
from jaxdl.tasks.robust import Adversarial, Robust, Trades, divergence
from tests import small

FEW = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
SHAPE = (6, 5, 1)


def images(seed=0, count=4):
    """Images that touch both ends of [0, 1]."""
    return jnp.asarray(np.random.default_rng(seed).beta(0.5, 0.5, (count, *SHAPE)), jnp.float32)


def keys(count=4, seed=0):
    return id_keys({'id': jnp.arange(count), 'image': jnp.zeros((count, 1))}, jax.random.key(seed))


def weights(seed=0, classes=3):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(30, 16))), jnp.asarray(rng.normal(size=(16, classes)))


def logits_of(w, x):
    return jnp.tanh((x.reshape(len(x), -1) - 0.5) @ w[0]) @ w[1]


def network(seed=0):
    return lambda x: logits_of(weights(seed), x)


@functools.cache
def compiled(attack_of):
    """One program for all radii and steps of an attack: worst, fooled and the last point."""

    @jax.jit
    def run(w, x, labels, radius, step):
        attack = dataclasses.replace(attack_of(), radius=radius, step_size=step)
        logits = lambda x: logits_of(w, x)  # noqa: E731
        last = attack.perturbed(lambda x: attack.rise(logits(x), labels), x, keys(len(x)))
        return *attack.worst(logits, x, labels, keys(len(x))), last

    return run


def distance(a, b, norm):
    apart = np.asarray(a - b, np.float64).reshape(len(a), -1)
    return np.abs(apart).max(1) if norm == 'linf' else np.sqrt((apart**2).sum(1))


@FEW
@given(
    st.sampled_from(
        [
            lambda: Attack('linf', steps=2),
            lambda: Attack('l2', steps=3),
            lambda: Attack('l2', steps=1, random_start=False),
        ]
    ),
    st.floats(1e-3, 2),
    st.floats(1e-3, 5),
    st.integers(0, 99),
)
def test_an_attack_never_leaves_its_ball_nor_the_unit_cube(kind, radius, step, seed):
    x, labels = images(seed), jnp.array([0, 1, 2, 0])
    worst, _, last = compiled(kind)(weights(seed), x, labels, radius, step)
    for found in (worst, last):
        assert distance(found, x, kind().norm).max() <= radius * (1 + 1e-5) + 1e-6
        assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize(('norm', 'objective'), [('linf', 'cross_entropy'), ('l2', 'margin')])
def test_more_steps_or_restarts_never_raise_robust_accuracy(norm, objective):
    radius = {'linf': 0.03, 'l2': 0.15}[norm]
    kinds = [
        lambda s=steps, r=restarts: Attack(norm, 1, s, 1, r, True, objective)
        for steps, restarts in ((1, 1), (3, 1), (3, 2))
    ]
    shares = []
    for seed in range(10):
        x, w = images(seed, 8), weights(seed)
        labels = logits_of(w, x).argmax(-1).at[0].add(1) % 3  # one is wrong from the start
        fooled, before = np.zeros(8, bool), np.full(8, -np.inf)
        for kind in kinds:
            worst, now, _ = compiled(kind)(w, x, labels, radius, radius / 2)
            assert (np.asarray(now) >= fooled).all(), 'an image became safe again'
            found = np.asarray(margin(logits_of(w, worst), labels))
            assert (found >= before - 1e-5).all()
            assert ((found > 1e-5) <= np.asarray(now)).all()
            fooled, before = np.asarray(now), found
            shares.append(fooled.mean())
        assert fooled[0]
    assert min(shares) < max(shares), 'nothing was compared'


def test_one_step_of_the_radius_is_the_fast_gradient_sign_method():
    x, logits, labels = images(), network(), jnp.array([0, 1, 2, 0])
    attack = Attack('linf', 0.1, 1, 0.1, 1, False)
    slope = jax.grad(
        lambda x: optax.softmax_cross_entropy_with_integer_labels(logits(x), labels).sum()
    )(x)
    expected = np.clip(np.asarray(x) + 0.1 * np.sign(slope), 0, 1)
    found = attack.perturbed(lambda x: attack.rise(logits(x), labels), x, keys())
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_attack_of_a_linear_model_reaches_the_worst_corner():
    """For a linear margin the optimum over the box and over the ball is known in closed form."""
    w = np.random.default_rng(3).normal(size=(30, 2)).astype(np.float32)
    logits = lambda x: x.reshape(len(x), -1) @ w  # noqa: E731
    x, labels = jnp.full((4, *SHAPE), 0.5), jnp.array([0, 1, 0, 1])
    slope = w[:, 1] - w[:, 0]
    for norm, best in (('linf', np.abs(slope).sum()), ('l2', np.sqrt((slope**2).sum()))):
        attack = Attack(norm, 0.05, 8, 0.02, 1, True, 'margin')
        worst, _ = attack.worst(logits, x, labels, keys())
        grown = margin(logits(worst), labels) - margin(logits(x), labels)
        np.testing.assert_allclose(grown, 0.05 * best, rtol=1e-2)


def test_random_starts_fill_the_ball():
    x = jnp.full((2000, *SHAPE), 0.5)
    ids = id_keys({'id': jnp.arange(2000), 'image': x})
    for norm, mean in (('linf', 30 / 31), ('l2', 30 / 31)):
        start = Attack(norm, 0.2)._start(x, ids)
        found = distance(start, x, norm)
        # The largest of 30 uniform numbers, and the radius in a ball of 30 dimensions: both u^(1/30).
        assert found.mean() == pytest.approx(0.2 * mean, rel=5e-3)
        assert np.abs(np.asarray(start - x).mean()) < 1e-3


# ---- training -------------------------------------------------------------------------------------


class Plain(nn.Module):
    """Without statistics, so that the formulas can be written down."""

    @nn.compact
    def __call__(self, images, *, train):
        del train
        return nn.Dense(3)(nn.tanh(nn.Dense(8)(images.reshape(len(images), -1))))


def applied(count=4):
    model = Plain()
    params = model.init(jax.random.key(1), images(), train=False)['params']
    batch = {'image': images(5, count), 'label': jnp.arange(count) % 3, 'id': jnp.arange(count)}
    return model, params, batch


def test_adversarial_and_trades_losses():
    model, params, batch = applied()
    rng = jax.random.key(7)
    attack = Attack('linf', 0.1, 2, 0.06)
    task = Adversarial(num_classes=3, mean=(0.0,), std=(1.0,), training=attack)
    logits = lambda x: model.apply({'params': params}, x, train=False)  # noqa: E731
    entropy = optax.softmax_cross_entropy_with_integer_labels

    # PGD by hand from the same start.
    start = attack._start(batch['image'], id_keys(batch, rng))
    x = start
    for _ in range(2):
        slope = jax.grad(lambda x: entropy(logits(x), batch['label']).sum())(x)
        x = jnp.clip(x + 0.06 * jnp.sign(slope), batch['image'] - 0.1, batch['image'] + 0.1)
        x = jnp.clip(x, 0, 1)
    found = task.losses(Applied(model, params, {}, rng), batch, rng)
    assert float(found['loss'].value()) == pytest.approx(
        float(entropy(logits(x), batch['label']).mean()), rel=1e-5
    )
    assert float(found['robust_accuracy'].value()) == float(
        (logits(x).argmax(-1) == batch['label']).mean()
    )

    # TRADES: its attack climbs the divergence; scipy's formula gives the value at the point found.
    from scipy.special import softmax
    from scipy.stats import entropy as kl

    trades = Trades(num_classes=3, mean=(0.0,), std=(1.0,), training=attack, beta=2.0)
    clean = logits(batch['image'])
    y = attack.perturbed(
        lambda z: divergence(clean, logits(z)), batch['image'], id_keys(batch, rng)
    )
    apart = kl(softmax(clean, -1), softmax(logits(y), -1), axis=-1)
    assert (apart > kl(softmax(clean, -1), softmax(logits(start), -1), axis=-1)).all()
    found = trades.losses(Applied(model, params, {}, rng), batch, rng)
    expected = entropy(clean, batch['label']).mean() + 2.0 * apart.mean()
    assert float(found['loss'].value()) == pytest.approx(float(expected), rel=1e-5)


def test_the_gradient_does_not_flow_through_the_attack():
    model, params, batch = applied()
    rng = jax.random.key(7)
    task = Adversarial(num_classes=3, mean=(0.0,), std=(1.0,), training=Attack(steps=3))
    logits = lambda p, x: model.apply({'params': p}, x, train=False)  # noqa: E731

    def loss(p):
        return task.losses(Applied(model, p, {}, rng), batch, rng)['loss'].value()

    x = task.training.perturbed(
        lambda x: task.training.rise(logits(params, x), batch['label']),
        batch['image'],
        id_keys(batch, rng),
    )
    entropy = optax.softmax_cross_entropy_with_integer_labels
    expected = jax.grad(lambda p: entropy(logits(p, x), batch['label']).mean())(params)
    for a, b in zip(*map(jax.tree.leaves, (jax.grad(loss)(params), expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# ---- certificates ---------------------------------------------------------------------------------


def test_interval_bounds_of_a_small_network_by_hand():
    """One hidden layer: centre and radius, as in the paper."""
    rng = np.random.default_rng(0)
    w, b, v = rng.normal(size=(30, 8)), rng.normal(size=8), rng.normal(size=(8, 3))
    low, high = rng.uniform(0, 0.5, (2, 30)), rng.uniform(0.5, 1, (2, 30))
    middle, reach = (low + high) / 2 @ w + b, (high - low) / 2 @ np.abs(w)
    hidden = np.maximum(middle - reach, 0), np.maximum(middle + reach, 0)
    middle = (hidden[0] + hidden[1]) / 2 @ v
    reach = (hidden[1] - hidden[0]) / 2 @ np.abs(v)
    found = bounds(lambda x: nn.relu(x @ w + b) @ v, jnp.asarray(low), jnp.asarray(high))
    np.testing.assert_allclose(found.low, middle - reach, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.high, middle + reach, rtol=1e-4, atol=1e-4)


def test_interval_bounds_hold_all_outputs_of_a_cnn():
    """Convolution, BatchNorm in evaluation, pooling and dense layers, at corners and inside."""
    model = Cnn(channels=(4, 6), pools=2, dense=8, num_classes=3)
    x = jnp.asarray(np.random.default_rng(0).random((3, 8, 8, 1)), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=False)
    run = lambda x: model.apply(variables, x, train=False)  # noqa: E731
    found = bounds(run, x - 0.05, x + 0.05)
    exact = bounds(run, x, x)
    np.testing.assert_allclose(exact.low, run(x), atol=1e-5)
    np.testing.assert_allclose(exact.high, run(x), atol=1e-5)
    rng = np.random.default_rng(1)
    for draw in (rng.uniform, lambda a, b, s: rng.choice([a, b], s)):
        for _ in range(20):
            y = run(x + jnp.asarray(draw(-0.05, 0.05, x.shape), jnp.float32))
            assert (y >= found.low - 1e-5).all() and (y <= found.high + 1e-5).all()
    with pytest.raises(UserError, match="no rule for the operation 'sin'"):
        bounds(jnp.sin, x, x)


# ---- runs -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_reports_clean_robust_and_certified_accuracy(tmp_path, one_device):
    attack = Attack(steps=4, step_size=0.02, radius=0.05, restarts=2)
    task = Adversarial(
        training=Attack(radius=0.05, steps=1, step_size=0.06), attack=attack, certify=True
    )
    run = small.config(task=task, steps=60, eval_every=0, log_every=20)
    found = train(run, str(tmp_path)).metrics
    clean, robust, certain = (
        found[f'eval/test/{name}_accuracy'.replace('/_', '/')]
        for name in ('', 'robust', 'certified')
    )
    assert clean > 0.5 and certain <= robust < clean
    assert (tmp_path / 'samples' / '60').is_dir()
    assert 'L∞ distance at most 0.05' in (tmp_path / 'run.json').read_text()


@pytest.mark.parametrize(
    ('task', 'message'),
    [
        (Robust(attack=Attack(norm='l3')), "norm='l3': must be one of 'linf', 'l2'"),
        (Robust(attack=Attack(radius=0.0)), 'radius=0.0: must be above 0'),
        (
            Robust(attack=Attack(restarts=3, random_start=False)),
            'restarts=3: all starts are the same',
        ),
        (Adversarial(training=Attack(restarts=2)), 'training attacks once'),
        (Trades(training=Attack(random_start=False)), 'no gradient at the image itself'),
    ],
)
def test_wrong_attacks_are_refused(task, message):
    with pytest.raises(UserError, match=message):
        config_lib.check(small.config(task=task))
