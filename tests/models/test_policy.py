"""Networks that act: distributions against scipy, memories that begin anew, normalised observations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxdl.models.policy import ActorCritic, Categorical, Gaussian

KEY = jax.random.key(0)


def test_distributions():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 3)).astype(np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    one = Categorical(jnp.asarray(logits))
    action = rng.integers(0, 3, 6)
    np.testing.assert_allclose(one.log_prob(action), np.log(shares[range(6), action]), rtol=1e-5)
    np.testing.assert_allclose(one.entropy(), [scipy.stats.entropy(p) for p in shares], rtol=1e-5)
    np.testing.assert_array_equal(one.mode(), shares.argmax(-1))
    mean, log_std = rng.normal(size=(6, 2)).astype(np.float32), np.float32([-0.5, 0.3])
    two = Gaussian(jnp.asarray(mean), jnp.asarray(log_std))
    action = rng.normal(size=(6, 2)).astype(np.float32)
    normal = scipy.stats.norm(mean, np.exp(log_std))
    np.testing.assert_allclose(two.log_prob(action), normal.logpdf(action).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(two.entropy(), normal.entropy().sum(-1), rtol=1e-5)
    many = Gaussian(jnp.zeros((20000, 2)), jnp.asarray(log_std)).sample(KEY)
    np.testing.assert_allclose(many.std(0), np.exp(log_std), rtol=0.03)


def test_a_memory_goes_on_and_begins_anew():
    """A whole sequence, and step by step; after a first observation nothing before it counts."""
    model = ActorCritic(actions=2, widths=(8,), memory=6)
    seen = jax.random.normal(KEY, (3, 7, 4))
    first = jnp.zeros((3, 7), bool).at[1, 3].set(True)
    variables = model.init(KEY, seen)
    memory = jax.random.normal(KEY, (3, 6))
    whole = model.apply(variables, seen, first, memory)
    now, logits = memory, []
    for t in range(7):
        step = model.apply(variables, seen[:, t : t + 1], first[:, t : t + 1], now)
        now = step.memory
        logits.append(step.policy.logits[:, 0])
    np.testing.assert_allclose(whole.policy.logits, jnp.stack(logits, 1), atol=1e-6)
    np.testing.assert_allclose(whole.memory, now, atol=1e-6)
    fresh = model.apply(variables, seen[1:2, 3:])
    np.testing.assert_allclose(whole.value[1, 3:], fresh.value[0], atol=1e-6)
    other = model.apply(variables, seen, None, memory)
    assert abs(other.value[1, 3] - whole.value[1, 3]) > 1e-4
    np.testing.assert_allclose(other.value[0], whole.value[0], atol=1e-6)


@pytest.mark.parametrize('memory', [0, 4])
def test_images_and_normalised_observations(memory):
    model = ActorCritic(
        actions=3, channels=(2,), widths=(8,), activation='relu', memory=memory, normalised=True
    )
    seen = jax.random.normal(KEY, (2, 5, 6, 6, 3)) * 3 + 1
    variables = model.init(KEY, seen)
    assert variables['params']['torso']['conv_0']['kernel'].shape == (3, 3, 3, 2)
    before = model.apply(variables, seen)
    assert before.policy.logits.shape == (2, 5, 3) and before.value.shape == (2, 5)
    _, state = model.apply(variables, seen, method='observe', mutable=['statistics'])
    moments = state['statistics']['normaliser']['moments']
    np.testing.assert_allclose(moments.mean, seen.mean((0, 1)), rtol=1e-4, atol=1e-5)
    after = model.apply({**variables, **state}, seen)
    scaled = (seen - seen.mean((0, 1))) / seen.std((0, 1))
    plain = model.clone(normalised=False).apply({'params': variables['params']}, scaled)
    np.testing.assert_allclose(after.value, plain.value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'activation': 'gelu'}, 'activation'),
        ({'widths': (0,)}, 'positive'),
        ({'widths': ()}, 'at least one layer'),
        ({'actions': 0}, 'actions=0'),
    ],
)
def test_wrong_fields(change, message):
    with pytest.raises(ValueError, match=message):
        ActorCritic(**change).check()
