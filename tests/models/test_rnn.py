"""LSTM and GRU against PyTorch, and what segments, lengths and carries promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.models.rnn import Recurrent, RnnClassifier, RnnLM

BATCH, TIME, FEATURES, WIDTH = 3, 9, 5, 7


def reference(cell, layers, bidirectional):
    torch = pytest.importorskip('torch')
    torch.manual_seed(0)
    kind = torch.nn.LSTM if cell == 'lstm' else torch.nn.GRU
    return kind(FEATURES, WIDTH, num_layers=layers, bidirectional=bidirectional, batch_first=True)


def from_torch(arrays, cell, layers, bidirectional):
    """Our parameters of PyTorch's weights (or gradients), given by name."""
    params = {}
    for i in range(layers):
        for suffix, name in (('', 'forward'), ('_reverse', 'backward'))[: 1 + bidirectional]:
            w_input, w_hidden, b_input, b_hidden = (
                arrays[f'{kind}_l{i}{suffix}'].numpy()
                for kind in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')
            )
            if cell == 'lstm':
                bias = b_input + b_hidden
            else:
                both = 2 * WIDTH
                bias = np.concatenate(
                    [b_input[:both] + b_hidden[:both], b_input[both:], b_hidden[both:]]
                )
            params[f'{name}_{i}'] = {
                'input_kernel': w_input.T,
                'hidden_kernel': w_hidden.T,
                'bias': bias,
            }
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
@pytest.mark.parametrize('layers,bidirectional', [(1, False), (2, False), (2, True), (3, True)])
def test_outputs_and_gradients_are_those_of_torch(cell, layers, bidirectional):
    torch = pytest.importorskip('torch')
    module = reference(cell, layers, bidirectional)
    x = np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES)).astype(np.float32)
    inputs = torch.tensor(x, requires_grad=True)
    outputs, state = module(inputs)
    weights = torch.linspace(-1, 1, outputs.numel()).reshape(outputs.shape)
    (torch.sin(outputs) * weights).sum().backward()

    model = Recurrent(cell=cell, width=WIDTH, layers=layers, bidirectional=bidirectional)
    weights_now = {k: v.detach() for k, v in module.named_parameters()}
    params = from_torch(weights_now, cell, layers, bidirectional)
    got, carries = model.apply({'params': params}, x, train=False)
    np.testing.assert_allclose(got, outputs.detach(), atol=1e-5)
    hidden = jnp.stack([c[0] if cell == 'lstm' else c for c in carries])
    np.testing.assert_allclose(hidden, (state[0] if cell == 'lstm' else state).detach(), atol=1e-5)
    if cell == 'lstm':
        np.testing.assert_allclose(jnp.stack([c[1] for c in carries]), state[1].detach(), atol=1e-5)

    def loss(params, x):
        out, _ = model.apply({'params': params}, x, train=False)
        return (jnp.sin(out) * weights.numpy()).sum()

    grads, x_grad = jax.grad(loss, (0, 1))(params, jnp.asarray(x))
    np.testing.assert_allclose(x_grad, inputs.grad, atol=1e-5)
    expected = {k: v.grad for k, v in module.named_parameters()}
    if cell == 'lstm':
        # Torch keeps two biases that are only ever added: each has the gradient of the sum.
        for name in expected:
            if 'bias_hh' in name:
                expected[name] = torch.zeros_like(expected[name])
    else:
        for name in expected:
            if 'bias_hh' in name:
                expected[name][: 2 * WIDTH] = 0
    want = from_torch(expected, cell, layers, bidirectional)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, want)


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
def test_lengths_are_those_of_a_packed_sequence_in_torch(cell):
    torch = pytest.importorskip('torch')
    module = reference(cell, 2, True)
    x = np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES)).astype(np.float32)
    lengths = [9, 4, 1]
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(x), lengths, batch_first=True)
    want, _ = torch.nn.utils.rnn.pad_packed_sequence(module(packed)[0], batch_first=True)
    params = from_torch({k: v.detach() for k, v in module.named_parameters()}, cell, 2, True)
    model = Recurrent(cell=cell, width=WIDTH, layers=2, bidirectional=True)
    got, _ = model.apply({'params': params}, x, lengths=jnp.array(lengths), train=False)
    np.testing.assert_allclose(got, want.detach(), atol=1e-5)


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
@pytest.mark.parametrize('bidirectional', [False, True])
def test_packed_documents_are_what_they_are_alone(cell, bidirectional):
    model = Recurrent(cell=cell, width=WIDTH, layers=2, bidirectional=bidirectional)
    x = jax.random.normal(jax.random.key(0), (1, TIME, FEATURES))
    variables = model.init(jax.random.key(1), x, train=False)
    segments = jnp.array([[1] * 4 + [2] * 5])
    packed, _ = model.apply(variables, x, segments=segments, train=False)
    for part in (slice(0, 4), slice(4, 9)):
        alone, _ = model.apply(variables, x[:, part], train=False)
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
def test_language_model_is_causal_and_isolates_segments(cell):
    model = RnnLM(vocab=30, width=16, cell=cell)
    ids = jax.random.randint(jax.random.key(0), (1, 8), 0, 30)
    variables = model.init(jax.random.key(1), ids, train=False)
    segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0]])
    before = model.apply(variables, ids, segments, train=False)
    after = model.apply(variables, ids.at[0, 1].add(1) % 30, segments, train=False)
    np.testing.assert_array_equal(before[:, 3:], after[:, 3:])
    np.testing.assert_array_equal(before[:, 0], after[:, 0])
    assert np.abs(before[:, 1] - after[:, 1]).max() > 1e-3


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
def test_the_carry_lives_on_through_the_cache(cell):
    model = RnnLM(vocab=30, width=16, cell=cell)
    ids = jax.random.randint(jax.random.key(0), (2, 8), 0, 30)
    variables = model.init(jax.random.key(1), ids, train=False)
    full = model.apply(variables, ids, train=False)
    logits, cache = model.apply(variables, ids[:, :5], train=False, cache=model.init_cache(2, 8))
    np.testing.assert_allclose(logits, full[:, 4], atol=1e-5)
    logits, cache = model.apply(variables, ids[:, 5:], train=False, cache=cache)
    np.testing.assert_allclose(logits, full[:, 7], atol=1e-5)
    swapped = cache.take(jnp.array([1, 0, 1]))
    again, _ = model.apply(variables, ids[jnp.array([1, 0, 1]), :1], train=False, cache=swapped)
    once, _ = model.apply(variables, ids[:, :1], train=False, cache=cache)
    np.testing.assert_allclose(again, once[jnp.array([1, 0, 1])], atol=1e-6)


def test_head_variants_agree():
    ids = jax.random.randint(jax.random.key(0), (2, 8), 0, 30)
    labels = (ids + 1) % 30
    plain = RnnLM(vocab=30, width=16, tied=True, vocab_multiple=16)
    variables = plain.init(jax.random.key(1), ids, train=False)
    logits = plain.apply(variables, ids, train=False)
    deferred = plain.clone(head_chunks=2).apply(variables, ids, train=False)
    loss, best = deferred.cross_entropy(labels)
    want = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, want, atol=1e-5)
    np.testing.assert_array_equal(best, logits.argmax(-1))
    assert logits.shape == (2, 8, 30)


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
@pytest.mark.parametrize('pooling', ['mean', 'max', 'last'])
@pytest.mark.parametrize('bidirectional', [False, True])
def test_classifier_ignores_padding(cell, pooling, bidirectional):
    model = RnnClassifier(
        num_classes=3,
        vocab=30,
        cell=cell,
        embed_width=8,
        width=8,
        layers=2,
        pooling=pooling,
        bidirectional=bidirectional,
    )
    model.check()
    ids = jax.random.randint(jax.random.key(0), (2, 8), 0, 30)
    segments = jnp.array([[1] * 5 + [0] * 3, [1] * 8])
    variables = model.init(jax.random.key(1), ids, segments, train=False)
    got = model.apply(variables, ids, segments, train=False)
    other = jnp.where(segments > 0, ids, (ids + 3) % 30)
    np.testing.assert_allclose(got, model.apply(variables, other, segments, train=False))
    alone = model.apply(variables, ids[:1, :5], train=False)
    np.testing.assert_allclose(got[:1], alone, atol=1e-5)
    assert got.shape == (2, 3) and got.dtype == jnp.float32


def test_dropout_between_layers_may_be_traced():
    ids = jnp.zeros((2, 8), jnp.int32)
    model = RnnLM(vocab=30, width=16)
    variables = model.init(jax.random.key(1), ids, train=False)

    @jax.jit
    def run(rate):
        rngs = {'dropout': jax.random.key(0)}
        return model.clone(dropout=rate).apply(variables, ids, train=True, rngs=rngs)

    calm = model.apply(variables, ids, train=False)
    np.testing.assert_allclose(run(jnp.float32(1e-7)), calm, atol=1e-4)
    assert np.abs(run(jnp.float32(0.5)) - calm).max() > 1e-3
    assert run._cache_size() == 1


def test_bfloat16():
    ids = jnp.zeros((2, 8), jnp.int32)
    model = RnnLM(vocab=30, width=16, dtype='bfloat16')
    variables = model.init(jax.random.key(1), ids, train=False)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    logits = model.apply(variables, ids, train=False)
    exact = model.clone(dtype='float32').apply(variables, ids, train=False)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, atol=0.1)
    segmented = model.apply(variables, ids, jnp.ones_like(ids), train=False)
    np.testing.assert_allclose(segmented, exact, atol=0.1)


@pytest.mark.parametrize('change', [dict(cell='rnn'), dict(layers=0), dict(dropout=-0.1)])
def test_check_names_the_field(change):
    for kind in (RnnLM, RnnClassifier):
        with pytest.raises(ValueError, match=next(iter(change))):
            kind(**change).check()
