"""The decoder Transformer against formulas, itself in other forms, and what it must not see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.models import attention
from jaxdl.models.attention import GATED, Routing
from jaxdl.models.lm_head import DeferredLogits
from jaxdl.models.stack import Stack, stack_layers, unstack_layers
from jaxdl.models.transformer import TransformerLM, gpt2, modern

SMALL = dict(width=32, layers=2, heads=4, vocab=50, max_length=32)
VARIANTS = {
    'gpt2': TransformerLM(**SMALL),
    'modern': modern(**SMALL, kv_heads=2),
    'post_norm': TransformerLM(**SMALL, pre_norm=False, positions='sinusoidal', activation='relu'),
    'odd': TransformerLM(
        **SMALL, norm='rms', activation='geglu', head_dim=16, softcap=5.0, tied=False
    ),
}


def count(model, *inputs, **named) -> int:
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False, **named))
    return sum(x.size for x in jax.tree.leaves(shapes['params']))


def tokens(rows=2, time=12, vocab=50, seed=0):
    return jax.random.randint(jax.random.key(seed), (rows, time), 0, vocab)


def init(model, seed=1):
    return model.init(jax.random.key(seed), tokens(), train=False)


def jitter(tree, seed=5):
    """Moves every parameter off its special initial value (norm scales 1, biases 0)."""
    leaves, shape = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(shape, moved)


def test_gpt2_has_the_published_parameters():
    assert count(gpt2(), jnp.zeros((1, 8), jnp.int32)) == 124_439_808
    assert count(gpt2('1558m'), jnp.zeros((1, 8), jnp.int32)) == 1_557_611_200


def test_scanned_has_the_same_parameters():
    assert count(gpt2(scan_layers=True), jnp.zeros((1, 8), jnp.int32)) == 124_439_808


def test_modern_parameters_follow_the_formula():
    model = modern(vocab=1000, width=128, layers=3, heads=8, kv_heads=2)
    attend = 128 * 128 * 2 + 2 * 128 * 32 + 2 * 16
    mlp = 3 * 128 * model.hidden
    want = 2 * 1000 * 128 + 3 * (attend + mlp + 2 * 128) + 128
    assert model.hidden == 384 and model.activation in GATED
    assert count(model, jnp.zeros((1, 8), jnp.int32)) == want


def test_vocabulary_padding_never_counts():
    ids = tokens()
    plain = TransformerLM(**SMALL)
    padded = TransformerLM(**SMALL, vocab_multiple=64)
    variables = init(padded)
    assert variables['params']['embed']['tokens']['embedding'].shape == (64, 32)
    cut = jax.tree.map(lambda x: x, variables)
    cut['params']['embed']['tokens']['embedding'] = variables['params']['embed']['tokens'][
        'embedding'
    ][:50]
    logits = padded.apply(variables, ids, train=False)
    assert logits.shape == (2, 12, 50)
    np.testing.assert_allclose(logits, plain.apply(cut, ids, train=False), atol=1e-6)


@pytest.mark.parametrize('softcap', [pytest.param(0.0, marks=pytest.mark.slow), 3.0])
@pytest.mark.parametrize('smoothing', [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
def test_deferred_logits_give_the_same_loss(softcap, smoothing):
    ids, labels = tokens(), tokens(seed=9)
    fields = dict(**SMALL, vocab_multiple=64, softcap=softcap)
    full, deferred = TransformerLM(**fields), TransformerLM(**fields, head_chunks=3)
    variables = jitter(init(full))
    logits = full.apply(variables, ids, train=False)
    out = deferred.apply(variables, ids, train=False)
    assert isinstance(out, DeferredLogits)
    np.testing.assert_allclose(out.logits(), logits, atol=1e-5)

    def expected(logits):
        logp = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logp, labels[..., None], -1)[..., 0]
        return -(1 - smoothing) * chosen - smoothing * logp.mean(-1)

    loss, best = out.cross_entropy(labels, label_smoothing=smoothing)
    np.testing.assert_allclose(loss, expected(logits), atol=1e-5)
    np.testing.assert_array_equal(best, logits.argmax(-1))
    want = jax.grad(lambda v: expected(full.apply(v, ids, train=False)).mean())(variables)
    got = jax.grad(
        lambda v: (
            deferred.apply(v, ids, train=False)
            .cross_entropy(labels, label_smoothing=smoothing)[0]
            .mean()
        )
    )(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


@pytest.mark.parametrize('name', VARIANTS)
def test_causal(name):
    model, ids = VARIANTS[name], tokens()
    variables = init(model)
    before = model.apply(variables, ids, train=False)
    after = model.apply(variables, ids.at[:, 7].add(1) % 50, train=False)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 1e-3


@pytest.mark.parametrize('name', VARIANTS)
def test_segments_are_isolated(name):
    model, ids = VARIANTS[name], tokens()
    variables = init(model)
    segments = jnp.array([[1] * 5 + [2] * 5 + [0] * 2, [1] * 3 + [2] * 4 + [3] * 5])
    packed = model.apply(variables, ids, segments, train=False)
    other = jnp.where(segments == 2, ids, (ids + 17) % 50)
    changed = model.apply(variables, other, segments, train=False)
    inside = np.asarray(segments == 2)
    np.testing.assert_array_equal(np.asarray(packed)[inside], np.asarray(changed)[inside])
    # A packed document is what it would be alone.
    alone = model.apply(variables, ids[:1, 5:10], train=False)
    np.testing.assert_allclose(packed[:1, 5:10], alone, atol=1e-5)


@pytest.mark.parametrize('name', VARIANTS)
@pytest.mark.parametrize(
    'remat',
    ['none', *(pytest.param(kind, marks=pytest.mark.slow) for kind in ('dots', 'full'))],
)
def test_scanned_and_rematerialised_equal_the_plain_stack(name, remat):
    model, ids = VARIANTS[name], tokens()
    variables = jitter(init(model))

    def loss(model, params):
        return jnp.square(model.apply({'params': params}, ids, train=False)).mean()

    value, grads = jax.value_and_grad(lambda p: loss(model, p))(variables['params'])
    for scan in (False, True):
        other = model.clone(scan_layers=scan, remat=remat)
        params = stack_layers(variables['params']) if scan else variables['params']
        shapes = jax.eval_shape(lambda m=other: m.init(jax.random.key(0), ids, train=False))
        assert jax.tree.structure(shapes['params']) == jax.tree.structure(params)
        got, got_grads = jax.value_and_grad(lambda p, m=other: loss(m, p))(params)
        got_grads = unstack_layers(got_grads) if scan else got_grads
        np.testing.assert_allclose(got, value, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got_grads, grads)


def test_remat_computes_more_and_keeps_less():
    def products(remat):
        model = TransformerLM(**SMALL, remat=remat)
        params = jax.eval_shape(lambda: init(model))

        def loss(p):
            return model.apply(p, tokens(), train=False).sum()

        return str(jax.make_jaxpr(jax.grad(loss))(params)).count('dot_general')

    assert products('none') < products('dots') < products('full')
    assert products('none') < products('save:attention,projections') < products('full')


def test_dropout_may_be_traced():
    ids = tokens()
    model = modern(**SMALL, scan_layers=True, remat='dots')
    variables = init(model)

    @jax.jit
    def run(rate, seed):
        return model.clone(dropout=rate).apply(
            variables, ids, train=True, rngs={'dropout': jax.random.key(seed)}
        )

    calm = model.apply(variables, ids, train=False)
    np.testing.assert_allclose(run(jnp.float32(1e-7), 0), calm, atol=1e-4)
    assert np.abs(run(jnp.float32(0.5), 0) - calm).max() > 0.01
    assert np.abs(run(jnp.float32(0.5), 0) - run(jnp.float32(0.5), 1)).max() > 0.01
    assert run._cache_size() == 1
    off = model.clone(dropout=0.5).apply(variables, ids, train=False)
    np.testing.assert_array_equal(off, calm)


@pytest.mark.parametrize('scan', [False, True])
def test_dropout_differs_between_layers(scan):
    x = jnp.ones((1, 4, 32))
    routing = Routing(positions=jnp.arange(4)[None])
    stack = Stack(width=32, layers=2, heads=4, dropout=0.5, scan_layers=scan)
    keys = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    # All zeros but the bias of attention's output and the last norm: each layer adds its mask · 2.
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full_like(leaf, "'out'" in str(path) and "'bias'" in str(path)),
        stack.init(keys, x, routing)['params'],
    )
    params['final_norm']['scale'] = jnp.ones(32)
    out, _ = stack.apply({'params': params}, x, routing, rngs={'dropout': jax.random.key(2)})
    # Equal masks would give the sums 1 and 5 only; different ones also 3.
    assert len(np.unique(np.round(out[0, 0], 4))) == 3


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    ids = tokens()
    model = modern(**SMALL)
    half = model.clone(dtype='bfloat16')
    variables = half.init(jax.random.key(1), ids, train=False)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    logits = half.apply(variables, ids, train=False)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, model.apply(variables, ids, train=False), atol=0.1)
    assert 'bf16' in str(jax.make_jaxpr(lambda v: half.apply(v, ids, train=False))(variables))


def test_positions_start_again_with_each_segment():
    segments = jnp.array([[1, 1, 1, 2, 2, 3, 0, 0], [0, 0, 4, 4, 4, 4, 5, 5]])
    want = [[0, 1, 2, 0, 1, 0, 0, 1], [0, 1, 0, 1, 2, 3, 0, 1]]
    np.testing.assert_array_equal(attention.segment_positions(segments), want)


def test_sinusoidal_is_the_papers_formula():
    got = attention.sinusoidal(jnp.arange(20), 8)
    for place in (0, 3, 19):
        for i in range(4):
            angle = place / 10000 ** (2 * i / 8)
            # The paper interleaves sines and cosines; a fixed permutation of channels is the same.
            np.testing.assert_allclose(got[place, i], np.sin(angle), atol=1e-5)
            np.testing.assert_allclose(got[place, 4 + i], np.cos(angle), atol=1e-5)


def test_rotary_depends_on_distance_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def score(i, j):
        a = attention.rotary(q, jnp.array([[i]]))
        b = attention.rotary(k, jnp.array([[j]]))
        return float((a * b).sum())

    assert score(3, 1) == pytest.approx(score(10, 8), abs=1e-4)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-2)
    half = attention.rotary(q, jnp.array([[1]]))[0, 0, 0]
    x = np.asarray(q[0, 0, 0])
    rate = 10000.0 ** (-np.arange(8) / 8)
    turned = (x[:8] + 1j * x[8:]) * np.exp(1j * rate)
    np.testing.assert_allclose(half, np.concatenate([turned.real, turned.imag]), atol=1e-5)


@pytest.mark.parametrize(
    'change',
    [
        dict(heads=5),
        dict(kv_heads=3),
        dict(activation='gleu'),
        dict(norm='batch'),
        dict(positions='absolute'),
        dict(remat='some'),
        dict(dropout=1.5),
        dict(dtype='float8'),
        dict(layers=0),
        dict(vocab=0),
        dict(softcap=-1.0),
    ],
)
def test_check_names_the_field(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TransformerLM(**{**SMALL, **change}).check()


def test_check_accepts_every_variant():
    for model in (*VARIANTS.values(), gpt2(), modern()):
        model.check()


def test_too_long_for_learned_positions():
    model = TransformerLM(**SMALL)
    with pytest.raises(ValueError, match='max_length=32'):
        model.init(jax.random.key(0), tokens(time=33), train=False)
