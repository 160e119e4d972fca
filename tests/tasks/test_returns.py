"""Targets against a plain recursion, where episodes end, are cut off, and go on."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.tasks import returns

TIME, ROWS = 23, 5


@pytest.fixture(scope='module')
def piece():
    rng = np.random.default_rng(0)
    reward, value, following = rng.normal(size=(3, TIME, ROWS)).astype(np.float32)
    terminated = rng.random((TIME, ROWS)) < 0.15
    done = terminated | (rng.random((TIME, ROWS)) < 0.1)
    # Where an episode goes on, what follows is the value of the next step.
    following[:-1] = np.where(done[:-1], following[:-1], value[1:])
    return reward, value, following, terminated, done


def bootstrapped(t, row, n, piece, discount):
    """The return of n rewards from step t and the value of what follows, by walking on."""
    reward, _, following, terminated, done = (x[:, row] for x in piece)
    total = 0.0
    for k in range(n):
        total += discount**k * reward[t + k]
        if terminated[t + k]:
            return total
        if done[t + k] or t + k == TIME - 1 or k == n - 1:
            return total + discount ** (k + 1) * following[t + k]
    raise AssertionError


def rest(t, row, piece):
    """Steps from t to the end of the episode or of the piece."""
    done = piece[4][:, row]
    return next(k for k in range(1, TIME) if t + k == TIME or done[t + k - 1])


@pytest.mark.parametrize('trace', [0.0, 0.7, 1.0])
def test_advantages_and_lambda_returns(piece, trace):
    reward, value, following, terminated, done = map(jnp.asarray, piece)
    discount = 0.9
    wanted = np.zeros((TIME, ROWS))
    for t in range(TIME):
        for row in range(ROWS):
            left = rest(t, row, piece)
            # The definition: (1 - λ) Σ λ^(n-1) G_n, and what is left of the weight on the last one.
            found = [bootstrapped(t, row, n, piece, discount) for n in range(1, left + 1)]
            weights = [(1 - trace) * trace ** (n - 1) for n in range(1, left)]
            wanted[t, row] = np.dot([*weights, trace ** (left - 1)], found)
    found = returns.lambda_returns(reward, following, terminated, done, discount, trace)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    gae = returns.advantages(reward, value, following, terminated, done, discount, trace)
    np.testing.assert_allclose(gae + value, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('steps', [1, 3, 40])
def test_n_step_returns(piece, steps):
    reward, _, following, terminated, done = map(jnp.asarray, piece)
    found = returns.n_step_returns(reward, following, terminated, done, 0.9, steps)
    for t in range(TIME):
        for row in range(ROWS):
            assert float(found[t, row]) == pytest.approx(
                bootstrapped(t, row, steps, piece, 0.9), rel=1e-4, abs=1e-5
            ), (t, row)
