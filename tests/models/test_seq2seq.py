"""The encoder–decoder: published size, what each part may see, scanned forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.models.seq2seq import Seq2Seq, base, big
from jaxdl.models.stack import stack_layers, unstack_layers

SMALL = dict(width=32, layers=2, heads=4, vocab=50, dropout=0.0, max_length=32)


def sample(rows=2, source_time=9, time=7, seed=0):
    a, b = jax.random.split(jax.random.key(seed))
    return jax.random.randint(a, (rows, source_time), 1, 50), jax.random.randint(
        b, (rows, time), 1, 50
    )


def count(model) -> int:
    ids = jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), ids, ids, train=False))
    return sum(x.size for x in jax.tree.leaves(shapes))


def formula(width, layers=6, vocab=37000):
    """One table; 4 (encoder) and 8 (decoder) square attention kernels, MLPs of 4·width, biases, norms."""
    mlp = 8 * width * width + 5 * width
    attention = 4 * width * width + 4 * width
    norm = 2 * width
    return vocab * width + layers * (3 * attention + 2 * mlp + 5 * norm)


def test_published_sizes():
    assert count(base()) == formula(512) == 63_082_496
    assert count(big()) == formula(1024) == 214_245_376
    # The paper's table 3 says 65 and 213 million.
    assert abs(count(base()) / 65e6 - 1) < 0.03
    assert abs(count(big()) / 213e6 - 1) < 0.01


@pytest.mark.parametrize('pre_norm', [pytest.param(False, marks=pytest.mark.slow), True])
def test_target_is_causal_and_reads_the_whole_source(pre_norm):
    model = Seq2Seq(**SMALL, pre_norm=pre_norm)
    source, target = sample()
    variables = model.init(jax.random.key(1), source, target, train=False)
    before = model.apply(variables, source, target, train=False)
    after = model.apply(variables, source, target.at[:, 4].set(0), train=False)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3
    moved = model.apply(variables, source.at[:, -1].set(0), target, train=False)
    assert np.abs(moved[:, 0] - before[:, 0]).max() > 1e-4


def test_padding_of_the_source_changes_nothing():
    model = Seq2Seq(**SMALL)
    source, target = sample()
    segments = jnp.array([[1] * 6 + [0] * 3, [1] * 9])
    variables = model.init(jax.random.key(1), source, target, train=False)
    padded = model.apply(variables, source, target, segments, train=False)
    other = jnp.where(segments > 0, source, (source + 5) % 50)
    np.testing.assert_array_equal(
        padded, model.apply(variables, other, target, segments, train=False)
    )
    alone = model.apply(variables, source[:1, :6], target[:1], train=False)
    np.testing.assert_allclose(padded[:1], alone, atol=1e-5)


def test_packed_pairs_are_what_they_are_alone():
    model = Seq2Seq(**SMALL)
    source, target = sample(rows=1)
    source_segments = jnp.array([[1] * 4 + [2] * 4 + [0]])
    target_segments = jnp.array([[1] * 2 + [2] * 4 + [0]])
    variables = model.init(jax.random.key(1), source, target, train=False)
    packed = model.apply(variables, source, target, source_segments, target_segments, train=False)
    first = model.apply(variables, source[:, :4], target[:, :2], train=False)
    second = model.apply(variables, source[:, 4:8], target[:, 2:6], train=False)
    np.testing.assert_allclose(packed[:, :2], first, atol=1e-5)
    np.testing.assert_allclose(packed[:, 2:6], second, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_scanned_and_rematerialised_equal_the_plain_stacks(remat):
    model = Seq2Seq(**SMALL, decoder_layers=3)
    source, target = sample()
    segments = jnp.array([[1] * 6 + [0] * 3, [1] * 9])
    params = model.init(jax.random.key(1), source, target, train=False)['params']
    other = model.clone(scan_layers=True, remat=remat)

    def loss(model, params):
        out = model.apply({'params': params}, source, target, segments, train=False)
        return jnp.square(out).mean()

    value, grads = jax.value_and_grad(lambda p: loss(model, p))(params)
    got, got_grads = jax.value_and_grad(lambda p: loss(other, p))(stack_layers(params))
    np.testing.assert_allclose(got, value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), unstack_layers(got_grads), grads
    )


def test_deferred_logits():
    source, target = sample()
    model = Seq2Seq(**SMALL)
    variables = model.init(jax.random.key(1), source, target, train=False)
    logits = model.apply(variables, source, target, train=False)
    deferred = model.clone(head_chunks=2).apply(variables, source, target, train=False)
    loss, _ = deferred.cross_entropy(target, label_smoothing=0.1)
    logp = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logp, target[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, -0.9 * chosen - 0.1 * logp.mean(-1), atol=1e-5)
