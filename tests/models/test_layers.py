"""The layers against formulas, Flax's own and each other across ways of sharding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxdl.models import layers


def _normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_dense_is_the_formula():
    x = _normal(0, (5, 7, 3))
    variables = layers.Dense(4, bias_init=nn.initializers.normal(1.0)).init(jax.random.key(0), x)
    kernel, bias = variables['params']['kernel'], variables['params']['bias']
    y = layers.Dense(4).apply(variables, x)
    np.testing.assert_allclose(y, x @ np.asarray(kernel) + np.asarray(bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('padding', ['SAME', 'VALID', 1, ((2, 0), (0, 1))])
@pytest.mark.parametrize(('strides', 'groups'), [((1, 1), 1), ((2, 2), 2)])
def test_conv_equals_flax(padding, strides, groups):
    x = _normal(0, (2, 9, 8, 4))
    ours = layers.Conv(6, (3, 3), strides, padding, groups)
    flax_padding = padding if not isinstance(padding, tuple) else list(padding)
    theirs = nn.Conv(6, (3, 3), strides, flax_padding, feature_group_count=groups)
    variables = ours.init(jax.random.key(1), x)
    np.testing.assert_allclose(
        ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-5, atol=1e-5
    )


def test_bfloat16_keeps_parameters_float32():
    x = _normal(0, (2, 8, 8, 4))
    for layer in (layers.Dense(4, dtype='bfloat16'), layers.Conv(4, dtype='bfloat16')):
        variables = layer.init(jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
        assert layer.apply(variables, x).dtype == jnp.bfloat16


def test_torch_uniform_has_torchs_range():
    kernel = layers.torch_uniform(jax.random.key(0), (3, 3, 16, 64), jnp.float32)
    limit = 1 / np.sqrt(3 * 3 * 16)
    assert 0.99 * limit < float(jnp.abs(kernel).max()) <= limit
    np.testing.assert_allclose(float(kernel.std()), limit / np.sqrt(3), rtol=0.02)


# ---- BatchNorm ----


def _batch_norm(x, **fields):
    model = layers.BatchNorm(**fields)
    variables = model.init(jax.random.key(0), x, train=False)
    return model, variables


def test_batch_norm_training_is_the_formula():
    x = 3 + 2 * _normal(0, (16, 5, 5, 4))
    model, variables = _batch_norm(x, momentum=0.8)
    y, new = model.apply(variables, x, train=True, mutable=['batch_stats'])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
    stats = new['batch_stats']
    np.testing.assert_allclose(stats['mean'], 0.2 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats['var'], 0.8 + 0.2 * var, rtol=1e-5)


def test_batch_norm_evaluation_uses_the_running_statistics():
    x = _normal(0, (16, 4))
    model, variables = _batch_norm(x)
    stats = {'mean': jnp.arange(4.0), 'var': jnp.arange(1.0, 5.0)}
    y = model.apply({**variables, 'batch_stats': stats}, x, train=False)
    np.testing.assert_allclose(
        y, (x - np.arange(4)) / np.sqrt(np.arange(1, 5) + 1e-5), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize('relu', [False, True])
def test_batch_norm_gradient_equals_flax(relu):
    x = _normal(0, (8, 6, 6, 3))
    target = _normal(1, x.shape)
    model, variables = _batch_norm(x, relu=relu)
    params = {'scale': 1 + 0.1 * _normal(2, (3,)), 'bias': 0.1 * _normal(3, (3,))}
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.9)

    def ours_loss(params, x):
        y, _ = model.apply({**variables, 'params': params}, x, train=True, mutable=['batch_stats'])
        return (y * target).sum()

    def flax_loss(params, x):
        y, _ = theirs.apply({**variables, 'params': params}, x, mutable=['batch_stats'])
        return ((nn.relu(y) if relu else y) * target).sum()

    ours, flax = (jax.grad(f, (0, 1))(params, x) for f in (ours_loss, flax_loss))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), ours, flax)


def test_batch_norm_survives_a_mean_far_from_zero():
    """E[x²] - E[x]² in float32 is useless at mean 3000, std 1; around the running mean it is not."""
    x = 3000 + _normal(0, (4096, 2))
    model, variables = _batch_norm(x)
    stats = {'mean': jnp.full(2, 2990.0), 'var': jnp.ones(2)}
    y, _ = model.apply({**variables, 'batch_stats': stats}, x, train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(y.std(0), 1, rtol=2e-3)


def test_batch_norm_statistics_are_float32_for_bfloat16_images():
    x = jnp.asarray(5 + _normal(0, (64, 8, 8, 3)), jnp.bfloat16)
    model, variables = _batch_norm(x, dtype='bfloat16', momentum=0.0)
    y, new = model.apply(variables, x, train=True, mutable=['batch_stats'])
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(new['batch_stats']['mean'], exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(new['batch_stats']['var'], exact.var((0, 1, 2)), rtol=1e-4)


def _train_step(model, variables):
    def step(params, x, target):
        def loss(params):
            y, new = model.apply(
                {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
            )
            return (y * target).sum(), new['batch_stats']

        (_, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, stats

    return step


def test_batch_norm_sees_the_global_batch_however_it_is_split():
    """One device, jit over 8, shard_map over 8 and pmap over 8: one gradient, one statistic."""
    assert jax.device_count() == 8
    # Shards with different means and scales, so that local statistics would give other results.
    x = _normal(0, (8, 4, 3)) * np.arange(1, 9)[:, None, None] + np.arange(8)[:, None, None]
    target = _normal(1, (32, 3))
    model, variables = _batch_norm(x.reshape(32, 3))
    step, params = _train_step(model, variables), variables['params']
    one = jax.jit(step)(params, x.reshape(32, 3), target)

    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec('data'))
    jitted = jax.jit(step)(
        params, jax.device_put(x.reshape(32, 3), split), jax.device_put(target, split)
    )

    def mapped(params, x, target):
        with layers.batch_axis('data'):
            grads, stats = step(params, x, target)
        return jax.lax.psum(grads, 'data'), stats

    spec = PartitionSpec('data')
    sharded = jax.jit(
        jax.shard_map(
            mapped,
            mesh=mesh,
            in_specs=(PartitionSpec(), spec, spec),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
    )(params, x.reshape(32, 3), target)
    pmapped = jax.pmap(mapped, axis_name='data', in_axes=(None, 0, 0))(
        params, x, target.reshape(8, 4, 3)
    )
    pmapped = jax.tree.map(lambda leaf: leaf[0], pmapped)
    for other in (jitted, sharded, pmapped):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), one, other
        )
    assert layers.mean_over_shards(1.5) == 1.5  # the axis is gone outside


# ---- Dropout ----


def test_dropout_rate_zero_and_evaluation_emit_nothing():
    x = _normal(0, (4, 8))
    for rate, train in ((0.0, True), (0.5, False)):
        program = jax.make_jaxpr(lambda x: layers.Dropout(rate).apply({}, x, train=train))(x)  # noqa: B023
        assert not program.eqns


def test_dropout_keeps_the_mean_and_drops_the_rate():
    x = jnp.ones((400, 500))
    y = layers.Dropout(0.3).apply({}, x, train=True, rngs={'dropout': jax.random.key(0)})
    np.testing.assert_allclose(float((y == 0).mean()), 0.3, atol=5e-3)
    np.testing.assert_allclose(np.unique(np.asarray(y)), [0, 1 / 0.7], rtol=1e-6)


def test_dropout_rate_may_be_traced():
    x = jnp.ones((32, 32))
    traces = []

    @jax.jit
    def run(rate):
        traces.append(1)
        return layers.Dropout(rate).apply({}, x, train=True, rngs={'dropout': jax.random.key(0)})

    for rate in (0.1, 0.6):
        fixed = layers.Dropout(rate).apply({}, x, train=True, rngs={'dropout': jax.random.key(0)})
        np.testing.assert_allclose(run(jnp.float32(rate)), fixed, rtol=1e-6)
    assert len(traces) == 1


# ---- pooling and checks ----


def test_pooling_is_the_formula():
    x = _normal(0, (2, 6, 8, 3))
    blocks = x.reshape(2, 3, 2, 4, 2, 3)
    np.testing.assert_allclose(layers.max_pool(x), blocks.max((2, 4)))
    np.testing.assert_allclose(layers.avg_pool(x), blocks.mean((2, 4)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layers.global_avg_pool(x), x.mean((1, 2)), rtol=1e-5, atol=1e-6)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.stack(
        [padded[:, i : i + 6 : 2, j : j + 8 : 2] for i in range(3) for j in range(3)]
    )
    np.testing.assert_allclose(layers.max_pool(x, (3, 3), (2, 2), 1), windows.max(0))
