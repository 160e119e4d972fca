"""Q networks against their formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.models.q_network import QNetwork, SoftActorCritic


def made(model, observations):
    params = model.init(jax.random.key(0), observations, train=False)['params']
    # Biases begin at 0; random ones tell where one is left out.
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return jax.tree.map(lambda w: w + 0.1 * jax.random.normal(next(keys), w.shape), params)


def dense(x, layer):
    return x @ np.asarray(layer['kernel']) + np.asarray(layer['bias'])


def hidden(x, torso, norm=False):
    for index in range(2):
        x = dense(x, torso[f'dense{index}'])
        if norm:
            scale = torso[f'dense{index}_norm']
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            x = x * np.asarray(scale['scale']) + np.asarray(scale['bias'])
        x = np.maximum(x, 0)
    return x


@pytest.mark.parametrize('norm', [False, True])
@pytest.mark.parametrize('duelling', [False, True])
def test_values(norm, duelling):
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    model = QNetwork(actions=3, widths=(8, 8), norm=norm, duelling=duelling)
    params = made(model, jnp.asarray(x))
    found = model.apply({'params': params}, x, train=False)
    features = hidden(x, params['torso'], norm)
    wanted = dense(features, params['actions'])
    if duelling:
        wanted = dense(features, params['value']) + wanted - wanted.mean(-1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_pictures():
    x = np.random.default_rng(0).random((2, 10, 10, 4)) < 0.3
    model = QNetwork(actions=3, channels=(16,), widths=(32,), norm=True)
    params = made(model, jnp.asarray(x))
    assert params['torso']['conv0']['kernel'].shape == (3, 3, 4, 16)
    assert params['torso']['dense0']['kernel'].shape == (8 * 8 * 16, 32)
    found = model.apply({'params': params}, x, train=False)
    assert found.shape == (2, 3) and found.dtype == jnp.float32


def test_soft_actor_critic():
    rng = np.random.default_rng(0)
    x, actions = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 4), (5, 2)))
    model = SoftActorCritic(actions=2, widths=(8, 8), temperature=0.5)
    params = made(model, jnp.asarray(x))
    assert set(params) == {'actor', 'critic', 'temperature'}
    mean, log_std = model.apply({'params': params}, x, train=False)
    features = hidden(x, params['actor']['torso'])
    np.testing.assert_allclose(mean, dense(features, params['actor']['mean']), rtol=1e-4, atol=1e-5)
    wanted = -5 + 3.5 * (np.tanh(dense(features, params['actor']['log_std'])) + 1)
    np.testing.assert_allclose(log_std, wanted, rtol=1e-4, atol=1e-5)
    values = model.apply({'params': params}, x, actions, train=False, method='values')
    for index in range(2):
        critic = jax.tree.map(lambda w, index=index: w[index], params['critic'])
        features = hidden(np.concatenate([x, actions], 1), critic['torso'])
        np.testing.assert_allclose(
            values[index], dense(features, critic['value'])[:, 0], rtol=1e-4, atol=1e-5
        )
    first = model.init(jax.random.key(0), x, train=False)['params']
    assert float(first['temperature']['log']) == pytest.approx(np.log(0.5))
    kernels = first['critic']['value']['kernel']
    assert np.abs(kernels[0] - kernels[1]).min() > 0  # two critics, not one twice


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (QNetwork(actions=0), 'actions=0: must be at least 1'),
        (QNetwork(widths=(8, 0)), r'widths=\(8, 0\): must be positive'),
        (SoftActorCritic(temperature=0.0), 'temperature=0.0: must be above 0'),
    ],
)
def test_wrong_fields(model, message):
    with pytest.raises(ValueError, match=message):
        model.check()
