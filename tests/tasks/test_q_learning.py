"""Targets, choices and densities of value-based algorithms against plain Python and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxdl.tasks.dqn import targets
from jaxdl.tasks.q_learning import Exploration, chosen, epsilon_greedy
from jaxdl.tasks.replay import Sample
from jaxdl.tasks.sac import squashed


def test_targets_of_double_and_plain_q_learning():
    rng = np.random.default_rng(0)
    target, online = rng.normal(size=(2, 6, 4)).astype(np.float32)
    reward, discount = rng.normal(size=6), np.array([0.9, 0, 0.81, 0.9, 0.9, 0])
    none = jnp.zeros(6)
    sample = Sample(none, none, jnp.asarray(reward), none, jnp.asarray(discount), none, none)
    double, plain = targets(sample, target, online), targets(sample, target, target)
    for row in range(6):
        best = max(range(4), key=lambda a: online[row][a])
        assert double[row] == pytest.approx(
            reward[row] + discount[row] * target[row][best], rel=1e-5
        )
        assert plain[row] == pytest.approx(reward[row] + discount[row] * max(target[row]), rel=1e-5)
    assert not np.allclose(double, plain)


def test_exploration():
    falling = Exploration(start=1.0, final=0.1, fraction=0.5)
    assert [float(falling.at(x)) for x in (0, 0.25, 0.5, 1.0)] == pytest.approx([1, 0.55, 0.1, 0.1])
    assert float(Exploration(final=0.2, fraction=0.0).at(0.0)) == pytest.approx(0.2)
    values = jnp.tile(jnp.array([0.0, 2.0, 1.0, -1.0]), (40_000, 1))
    action = epsilon_greedy(jax.random.key(0), values, jnp.float32(0.2))
    assert action.dtype == jnp.int32
    shares = np.bincount(action, minlength=4) / 40_000
    np.testing.assert_allclose(shares, [0.05, 0.85, 0.05, 0.05], atol=0.006)  # 5 standard errors
    greedy = epsilon_greedy(jax.random.key(0), values, jnp.float32(0))
    assert (greedy == 1).all() and (chosen(values, greedy) == 2).all()
    for wrong in ({'start': 1.5}, {'final': -0.1}, {'fraction': 2.0}):
        with pytest.raises(ValueError, match=r'must be in \[0, 1\]'):
            Exploration(**wrong).check()


def test_the_density_of_a_squashed_action():
    """Against torch's transformed distribution, also where tanh is almost 1."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(200, 3)).astype(np.float32) * 2
    log_std = rng.uniform(-3, 0.5, size=(200, 3)).astype(np.float32)
    action, density = squashed(jnp.asarray(mean), jnp.asarray(log_std), jax.random.key(0))
    noise = np.asarray(jax.random.normal(jax.random.key(0), mean.shape), np.float64)
    normal = torch.distributions.Normal(
        torch.tensor(mean, dtype=torch.float64), torch.tensor(np.exp(log_std), dtype=torch.float64)
    )
    both = torch.distributions.TransformedDistribution(
        normal, [torch.distributions.transforms.TanhTransform(cache_size=1)]
    )
    before = torch.tensor(mean + np.exp(log_std.astype(np.float64)) * noise)
    wanted = both.log_prob(both.transforms[0](before)).sum(-1).numpy()
    np.testing.assert_allclose(density, wanted, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(action, np.tanh(before.numpy()), rtol=1e-5, atol=1e-6)
    large, _ = squashed(jnp.array([[40.0]]), jnp.array([[0.0]]), jax.random.key(0))
    gradient = jax.grad(lambda m: squashed(m, jnp.zeros((1, 1)), jax.random.key(0))[1].sum())(
        jnp.array([[40.0]])
    )
    assert float(large[0, 0]) == 1 and np.isfinite(gradient).all()
