"""Each fast operation against its plain formulation, and the plain ones against PyTorch and numpy."""

import contextlib
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxdl.models import ops
from jaxdl.models.ops import cuda
from jaxdl.models.ops.loss import default_chunks

few = settings(max_examples=8, deadline=None)
small = st.integers(1, 7)


@contextlib.contextmanager
def plain():
    ops.set_plain(True)
    try:
        yield
    finally:
        ops.set_plain(False)


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def value_and_gradients(function, *arrays):
    """The outputs, and the gradients of a random projection of them."""

    def loss(*arrays):
        outputs = function(*arrays)
        floats = [x for x in jax.tree.leaves(outputs) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum((x * normal(i, *x.shape)).sum() for i, x in enumerate(floats)), outputs

    (_, outputs), gradients = jax.jit(
        jax.value_and_grad(loss, argnums=tuple(range(len(arrays))), has_aux=True)
    )(*arrays)
    return outputs, gradients


def close(ours, theirs, tolerance=1e-5):
    def one(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(initial=0), 1)
        )

    jax.tree.map(one, ours, theirs)


def check(function, *arrays, tolerance=1e-5):
    """Fast equals plain: as it is, under vmap, under checkpoint and with a sharded batch."""
    ours = value_and_gradients(function, *arrays)
    with plain():
        theirs = value_and_gradients(function, *arrays)
    close(ours, theirs, tolerance)
    return ours


def check_transforms(function, *arrays, batched=1, tolerance=1e-5):
    """`function` under checkpoint, vmap over all arguments, and with the first `batched` sharded."""
    ours = check(function, *arrays, tolerance=tolerance)
    close(value_and_gradients(jax.checkpoint(function), *arrays), ours, tolerance)
    trials = [jnp.stack([x, x * 0.5]) for x in arrays]
    mapped = jax.vmap(function)
    close(value_and_gradients(mapped, *trials), plain_of(mapped, *trials), tolerance)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    spread = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec('data' if i < batched else None)))
        for i, x in enumerate(arrays)
    ]
    close(value_and_gradients(function, *spread), ours, tolerance)


def plain_of(function, *arrays):
    with plain():
        return value_and_gradients(function, *arrays)


@few
@given(st.lists(small, min_size=0, max_size=3), small, small, st.integers(0, 99))
def test_matmul(lead, width, features, seed):
    check(ops.matmul, normal(seed, *lead, width), normal(seed + 1, width, features))


def test_matmul_transforms():
    check_transforms(ops.matmul, normal(0, 8, 5, 3), normal(1, 3, 4))


@pytest.mark.parametrize('shape', [(3, 5), (2, 3, 7), (4, 16, 32)])
def test_matmul_half(shape):
    x, kernel = normal(0, *shape, dtype=jnp.bfloat16), normal(1, shape[-1], 9, dtype=jnp.bfloat16)
    out, gradients = check(ops.matmul, x, kernel, tolerance=2e-2)
    assert out.dtype == jnp.bfloat16 and gradients[1].dtype == jnp.bfloat16


CONVS = [
    ((2, 9, 8, 3), (3, 3, 3, 5), (1, 1), 'SAME', 1),
    ((2, 9, 7, 4), (3, 3, 4, 6), (2, 2), 'SAME', 1),
    ((2, 8, 8, 4), (1, 1, 4, 6), (2, 2), 'SAME', 1),
    ((8, 6, 6, 32), (3, 3, 32, 32), (1, 1), ((1, 1), (1, 1)), 1),
    ((2, 9, 9, 4), (5, 3, 2, 6), (1, 2), 'VALID', 2),
]


@pytest.mark.parametrize(('shape', 'kernel', 'strides', 'padding', 'groups'), CONVS)
def test_conv(shape, kernel, strides, padding, groups):
    def conv(x, kernel):
        return ops.conv(x, kernel, strides, padding, groups=groups)

    check(conv, normal(0, *shape), normal(1, *kernel), tolerance=2e-5)


def test_conv_transforms():
    check_transforms(ops.conv, normal(0, 8, 6, 5, 4), normal(1, 3, 3, 4, 6), tolerance=2e-5)


def test_inputs_of_convolutions_are_kept_for_gradients_alone():
    x, kernel = normal(0, 2, 6, 5, 4), normal(1, 3, 3, 4, 6)

    def loss(x, kernel):
        return jnp.square(ops.conv(x, kernel)).sum()

    assert 'cond[' not in str(jax.make_jaxpr(ops.conv)(x, kernel))
    assert 'cond[' in str(jax.make_jaxpr(jax.grad(loss))(x, kernel))
    mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):  # where the element it looks at would be another device's
        assert 'cond[' not in str(jax.make_jaxpr(jax.grad(loss))(x, kernel))


def test_a_kernel_gradient_that_is_not_finite_stays_alone():
    x, kernel = normal(0, 8, 4).at[2, 0].set(jnp.inf), normal(1, 4, 3)
    _, pull = jax.vjp(ops.matmul, x, kernel)
    dx, d_kernel = jax.jit(pull)(jnp.ones((8, 3)))
    assert not jnp.isfinite(d_kernel[0]).any() and jnp.isfinite(d_kernel[1:]).all()
    close(dx, jnp.ones((8, 3)) @ kernel.T)


def test_conv_equals_torch():
    torch = pytest.importorskip('torch')
    x, kernel = normal(0, 2, 8, 7, 3), normal(1, 3, 3, 3, 5)
    theirs = torch.nn.functional.conv2d(
        torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)),
        torch.tensor(np.asarray(kernel).transpose(3, 2, 0, 1)),
        stride=2,
        padding=1,
    )
    ours = ops.conv(x, kernel, (2, 2), ((1, 1), (1, 1)))
    close(ours, theirs.numpy().transpose(0, 2, 3, 1))


@st.composite
def pools(draw):
    window = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    strides = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = draw(st.sampled_from(['SAME', 'VALID', 'explicit']))
    if padding == 'explicit':
        padding = tuple((draw(st.integers(0, w - 1)), draw(st.integers(0, w - 1))) for w in window)
    size = (draw(st.integers(4, 11)), draw(st.integers(4, 11)))
    return (2, *size, 3), window, strides, padding


@few
@given(pools(), st.booleans(), st.integers(0, 99))
def test_pools(case, ties, seed):
    shape, window, strides, padding = case
    x = normal(seed, *shape)
    if ties:
        x = jnp.round(x)
    check(lambda x: ops.max_pool(x, window, strides, padding), x)
    check(lambda x: ops.avg_pool(x, window, strides, padding), x)


def test_max_pool_transforms():
    check_transforms(ops.max_pool, normal(0, 8, 6, 4, 3))
    check_transforms(lambda x: ops.max_pool(x, (3, 3), (2, 2), 'SAME'), normal(0, 8, 7, 5, 3))


def test_max_pool_keeps_nan():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 2, 0].set(jnp.nan)
    assert np.isnan(np.asarray(ops.max_pool(x))).sum() == 1


def test_max_pool_equals_torch():
    torch = pytest.importorskip('torch')
    x = jnp.round(normal(3, 2, 9, 9, 3))
    theirs = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2), requires_grad=True)
    out = torch.nn.functional.max_pool2d(theirs, 3, 2, 1)
    weight = normal(4, *out.shape)
    (out * torch.tensor(np.asarray(weight))).sum().backward()
    pool = lambda x: ops.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))  # noqa: E731
    close(pool(x), out.detach().numpy().transpose(0, 2, 3, 1))
    ours = jax.grad(lambda x: (pool(x) * weight.transpose(0, 2, 3, 1)).sum())(x)
    close(ours, theirs.grad.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_batch_norm_relu(dtype):
    x = normal(0, 4, 5, 5, 6, dtype=dtype)
    arrays = [normal(i, 6) for i in range(1, 4)] + [jnp.abs(normal(4, 6)) + 0.1]
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    (out, _) = check(ops.batch_norm_relu, x, *arrays, tolerance=tolerance)
    scale, bias, mean, variance = (np.asarray(a) for a in arrays)
    expected = (np.asarray(x, np.float32) - mean) / np.sqrt(variance + 1e-5) * scale + bias
    close(out, np.maximum(expected, 0), tolerance)


@st.composite
def attentions(draw):
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    time = draw(st.integers(1, 12) | st.sampled_from([130, 257]))
    keys = draw(st.just(time) | st.integers(1, 12))
    return dict(
        seed=draw(st.integers(0, 99)),
        q=(2, time, kv_heads * group, 4),
        kv=(2, keys, kv_heads, 4),
        causal=draw(st.booleans()),
        mask=draw(st.sampled_from([None, (1, 1), (2, 1), (2, kv_heads * group)])),
        segments=draw(st.booleans()) and keys == time,
        bias=draw(st.booleans()),
        scale=draw(st.sampled_from([None, 0.3])),
    )


@few
@given(attentions())
def test_attention(case):
    time, keys = case['q'][1], case['kv'][1]
    q, k, v = normal(case['seed'], *case['q']), normal(1, *case['kv']), normal(2, *case['kv'])
    mask = None
    if case['mask']:
        # Each query keeps its own key, so that no row is empty.
        mask = (normal(3, *case['mask'], time, keys) > 0) | jnp.eye(time, keys, dtype=bool)
        mask = mask.at[..., 0].set(True)
    bias = normal(4, 1, case['q'][2], time, keys) if case['bias'] else None
    segments = None
    if case['segments'] and mask is None:
        segments = jnp.asarray(np.sort(np.random.default_rng(5).integers(0, 3, (2, time)), axis=1))

    def call(q, k, v):
        return ops.attention(
            q, k, v, mask=mask, bias=bias, causal=case['causal'],
            q_segments=segments, scale=case['scale'],
        )  # fmt: skip

    check(call, q, k, v)


def test_attention_mask_of_fewer_dimensions():
    q = normal(0, 2, 5, 2, 4)
    mask = jnp.tril(jnp.ones((5, 5), bool))
    close(ops.attention(q, q, q, mask=mask), ops.attention(q, q, q, causal=True))


def test_attention_transforms():
    q, kv = normal(0, 8, 150, 4, 8), normal(1, 8, 150, 2, 8)
    check_transforms(lambda q, k, v: ops.attention(q, k, v, causal=True), q, kv, kv + 1, batched=3)


def test_attention_of_an_unseeing_query_is_finite():
    q = normal(0, 1, 3, 1, 4)
    mask = jnp.zeros((3, 3), bool).at[0, 0].set(True)
    out, gradients = value_and_gradients(lambda q: ops.attention(q, q, q, mask=mask), q)
    assert np.isfinite(np.asarray(out)).all() and np.isfinite(np.asarray(gradients[0])).all()


@pytest.mark.parametrize('kv_heads', [1, 4])
@pytest.mark.parametrize('time', [5, 64, 200])
def test_attention_half(time, kv_heads):
    q = normal(0, 2, time, 4, 16, dtype=jnp.bfloat16)
    k, v = (normal(i, 2, time, kv_heads, 16, dtype=jnp.bfloat16) for i in (1, 2))
    for causal in (False, True):
        check(lambda q, k, v, c=causal: ops.attention(q, k, v, causal=c), q, k, v, tolerance=4e-2)


def test_attention_equals_torch():
    torch = pytest.importorskip('torch')
    q, k, v = normal(0, 2, 130, 4, 8), normal(1, 2, 130, 2, 8), normal(2, 2, 130, 2, 8)
    tensors = [torch.tensor(np.asarray(x).transpose(0, 2, 1, 3)) for x in (q, k, v)]
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *tensors, is_causal=True, enable_gqa=True
    )
    close(ops.attention(q, k, v, causal=True), theirs.numpy().transpose(0, 2, 1, 3))


def test_cuda_form_without_cudnn_equals_plain():
    q = normal(0, 2, 16, 2, 8)
    segments = jnp.asarray(np.sort(np.random.default_rng(0).integers(0, 3, (2, 16)), axis=1))
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)):
        x = q.astype(dtype)
        with plain():
            expected = ops.attention(x, x, x, causal=True, q_segments=segments)
        ops.set_platform('cuda')
        try:
            ours = ops.attention(x, x, x, causal=True, q_segments=segments)
        finally:
            ops.set_platform(None)
        close(ours, expected, tolerance)


@contextlib.contextmanager
def on_cuda():
    ops.set_platform('cuda')
    try:
        yield
    finally:
        ops.set_platform(None)


@pytest.mark.parametrize('approximate', [True, False])
def test_gelu_for_gpus_equals_its_definition(approximate):
    x = jnp.concatenate([jnp.linspace(-30, 30, 4001), jnp.asarray([0.0, -0.0, 1e-30, -1e4, 1e4])])

    def function(x):
        return ops.gelu(x, approximate=approximate)

    with on_cuda():
        ours = value_and_gradients(function, x)
        half = function(x.astype(jnp.bfloat16))
    wide = np.asarray(x, np.float64)
    if approximate:
        u = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
        expected = wide * (1 + np.tanh(u)) / 2
    else:
        expected = wide * scipy.stats.norm.cdf(wide)
    np.testing.assert_allclose(np.asarray(ours[0]), expected, rtol=3e-7, atol=3e-7)
    close(ours, value_and_gradients(function, x), 1e-5)
    assert half.dtype == jnp.bfloat16
    close(half, function(x.astype(jnp.bfloat16)), 1e-2)


@pytest.mark.parametrize('masked', ['nothing', 'mask', 'bias', 'both'])
@pytest.mark.parametrize('time, keys', [(5, 5), (5, 8), (6, 7), (4, 6)])
def test_attention_of_odd_lengths_is_padded_for_cudnn(masked, time, keys):
    def cudnn(q, k, v, bias, mask, query_seq_lengths=None, key_value_seq_lengths=None):
        assert q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0, 'cuDNN refuses these'
        return jax.nn.dot_product_attention(
            q, k, v, bias, mask, implementation='xla',
            query_seq_lengths=query_seq_lengths, key_value_seq_lengths=key_value_seq_lengths,
        )  # fmt: skip

    q, k, v = normal(0, 2, time, 2, 8), normal(1, 2, keys, 2, 8), normal(2, 2, keys, 2, 8)
    bias = normal(3, 1, 2, time, keys) if masked in ('bias', 'both') else None
    mask = None
    if masked in ('mask', 'both'):
        mask = jnp.asarray(np.random.default_rng(0).random((2, 1, time, keys)) < 0.7)
        mask = mask.at[..., 0].set(True)

    def padded(q, k, v, bias):
        return cuda.cudnn_attention(cudnn, q, k, v, bias, mask)

    def plain(q, k, v, bias):
        return jax.nn.dot_product_attention(q, k, v, bias, mask, implementation='xla')

    if bias is None:
        ours = value_and_gradients(lambda *x: padded(*x, None), q, k, v)
        close(ours, value_and_gradients(lambda *x: plain(*x, None), q, k, v), 1e-5)
    else:
        close(
            value_and_gradients(padded, q, k, v, bias),
            value_and_gradients(plain, q, k, v, bias),
            1e-5,
        )


@few
@given(small, small, st.sampled_from([0.0, 0.1]), st.integers(0, 99))
def test_cross_entropy_equals_torch(batch, classes, smoothing, seed):
    torch = pytest.importorskip('torch')
    logits = normal(seed, batch, classes) * 5
    labels = np.random.default_rng(seed).integers(0, classes, batch)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits)),
        torch.tensor(labels),
        reduction='none',
        label_smoothing=smoothing,
    )
    close(ops.cross_entropy(logits, jnp.asarray(labels), smoothing), theirs.numpy())


def test_argmax_takes_the_first():
    x = jnp.asarray([[1.0, 3.0, 3.0], [2.0, 0.0, 2.0], [-np.inf, -np.inf, -np.inf]])
    assert ops.argmax(x).tolist() == [1, 0, 0]


@pytest.mark.slow
@few
@given(
    small, small, st.integers(2, 9), st.integers(1, 5), st.booleans(),
    st.sampled_from([None, 5.0]), st.sampled_from([0.0, 0.1]), st.integers(0, 99),
)  # fmt: skip
def test_chunked_cross_entropy(batch, time, vocab, chunks, with_bias, softcap, smoothing, seed):
    hidden, kernel = normal(seed, batch, time, 4), normal(seed + 1, 4, vocab)
    labels = jnp.asarray(np.random.default_rng(seed).integers(0, vocab, (batch, time)))
    bias = normal(seed + 2, vocab)
    weights = jnp.asarray(np.random.default_rng(seed).integers(0, 2, (batch, time)), jnp.float32)

    def call(hidden, kernel, bias, *rest):
        return ops.chunked_cross_entropy(
            hidden, kernel, labels, bias if with_bias else None, softcap,
            rest[0] if rest else 0.0, chunks, weights,
        )  # fmt: skip

    rest = (jnp.float32(smoothing),) if smoothing else ()
    check(call, hidden, kernel, bias, *rest)

    def mean(hidden, kernel, bias, *rest):  # one factor for all: the gradients of the forward pass
        return call(hidden, kernel, bias, *rest)[0].sum() * 3.0

    arrays = (hidden, kernel, bias, *rest)
    ours = jax.grad(mean, argnums=tuple(range(len(arrays))))(*arrays)
    with plain():
        theirs = jax.grad(mean, argnums=tuple(range(len(arrays))))(*arrays)
    close(ours, theirs, 2e-5)


def test_chunked_cross_entropy_transforms():
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 11, (8, 6)))

    def call(hidden, kernel):
        return ops.chunked_cross_entropy(hidden, kernel, labels, chunks=3)

    check_transforms(call, normal(0, 8, 6, 4), normal(1, 4, 11))


def test_chunked_cross_entropy_never_holds_all_logits():
    hidden, kernel = jnp.zeros((4, 64, 8)), jnp.zeros((8, 1000))
    labels = jnp.zeros((4, 64), int)

    def loss(hidden, kernel, chunks):
        return ops.chunked_cross_entropy(hidden, kernel, labels, chunks=chunks)[0].mean()

    def temporaries(chunks):
        step = jax.jit(jax.grad(lambda h, k: loss(h, k, chunks), argnums=(0, 1)))
        return step.lower(hidden, kernel).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < temporaries(1) / 3


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_tied_table_trains(dtype):
    """The table's gradient comes from both of its uses, in either orientation of the product."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 512, (16, 32)))

    def loss(table):
        hidden = table.astype(dtype)[tokens]
        kernel = table.T.astype(dtype)
        return ops.chunked_cross_entropy(hidden, kernel, tokens[:, ::-1], chunks=1)[0].mean()

    table = normal(0, 512, 128) * 0.1
    ours = jax.jit(jax.value_and_grad(loss))(table)
    with plain():
        theirs = jax.jit(jax.value_and_grad(loss))(table)
    close(ours, theirs, 1e-5 if dtype == 'float32' else 2e-2)


@few
@given(small, small, st.integers(0, 99))
def test_half_precision_bias(rows, features, seed):
    y = normal(seed, rows, 3, features, dtype=jnp.bfloat16)
    check(ops.add_bias, y, normal(1, features, dtype=jnp.bfloat16), tolerance=2e-2)


@st.composite
def rnns(draw):
    batch, time = draw(small), draw(small)
    lengths = draw(st.none() | st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    starts = draw(st.none() | st.integers(0, 99))
    if starts is not None:
        starts = np.random.default_rng(starts).random((batch, time)) < 0.3
    return batch, time, draw(small), draw(small), draw(st.booleans()), lengths, starts


@few
@given(rnns(), st.sampled_from(['lstm', 'gru']))
def test_rnn(case, cell):
    batch, time, width, dim, reverse, lengths, starts = case
    lengths = None if lengths is None else jnp.asarray(lengths)
    starts = None if starts is None else jnp.asarray(starts)
    gates = 4 if cell == 'lstm' else 3

    def call(x, hidden, second, w_input, w_hidden, bias):
        if cell == 'lstm':
            carry = (hidden, second)
            return ops.lstm(x, carry, w_input, w_hidden, bias, reverse, lengths, starts)
        return ops.gru(x, hidden, w_input, w_hidden, bias, reverse, lengths, starts)

    check(
        call,
        normal(0, batch, time, width),
        normal(1, batch, dim),
        normal(2, batch, dim),
        normal(3, width, gates * dim),
        normal(4, dim, gates * dim),
        normal(5, 4 * dim),
        tolerance=3e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('cell', ['lstm', 'gru'])
def test_rnn_transforms(cell, dtype):
    def call(x, hidden, w_input, w_hidden, bias):
        if cell == 'lstm':
            return ops.lstm(x, (hidden, hidden), w_input, w_hidden, bias)
        return ops.gru(x, hidden, w_input, w_hidden, bias)

    gates = 4 if cell == 'lstm' else 3
    arrays = (
        normal(0, 8, 5, 3, dtype=dtype),
        normal(1, 8, 4, dtype=dtype),
        normal(2, 3, gates * 4, dtype=dtype),
        normal(3, 4, gates * 4, dtype=dtype),
        normal(4, 16, dtype=dtype),
    )
    tolerance = 3e-5 if dtype == jnp.float32 else 5e-2
    check_transforms(call, *arrays, batched=2, tolerance=tolerance)


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
def test_rnn_equals_torch(cell):
    torch = pytest.importorskip('torch')
    dim, width = 4, 3
    module = (torch.nn.LSTM if cell == 'lstm' else torch.nn.GRU)(width, dim, batch_first=True)
    x = normal(0, 2, 5, width)
    theirs, _ = module(torch.tensor(np.asarray(x)))
    w_input, w_hidden, b_input, b_hidden = (
        jnp.asarray(p.detach().numpy()) for p in module.parameters()
    )
    zero = jnp.zeros((2, dim))
    if cell == 'lstm':
        ours, _ = ops.lstm(x, (zero, zero), w_input.T, w_hidden.T, b_input + b_hidden)
    else:
        outer = (b_input + b_hidden)[: 2 * dim]
        bias = jnp.concatenate([outer, b_input[2 * dim :], b_hidden[2 * dim :]])
        ours, _ = ops.gru(x, zero, w_input.T, w_hidden.T, bias)
    close(ours, theirs.detach().numpy())


def test_unknown_platform():
    with pytest.raises(ValueError, match=r"platform='gpu'"):
        ops.set_platform('gpu')


@pytest.mark.parametrize('centred', [True, False])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_norm_by_hand_equals_the_plain_one(centred, dtype):
    x, scale, bias = normal(0, 3, 5, 16, dtype=dtype) + 3, normal(1, 16), normal(2, 16)

    def function(x, scale, bias):
        return ops.norm(x, scale, bias, epsilon=1e-6, centred=centred, dtype=dtype)

    ops.set_platform('cuda')
    try:
        ours = value_and_gradients(function, x, scale, bias)
        without = value_and_gradients(lambda x, scale: function(x, scale, None), x, scale)
    finally:
        ops.set_platform(None)
    tolerance = 1e-5 if dtype == 'float32' else 1e-2
    close(ours, value_and_gradients(function, x, scale, bias), tolerance)
    theirs = value_and_gradients(lambda x, scale: function(x, scale, None), x, scale)
    close(without, theirs, tolerance)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_dropout_is_the_formula_and_the_same_on_gpus(dtype):
    x, key = normal(0, 64, 64, dtype=dtype), jax.random.key(3)
    kept = np.asarray(jax.random.bernoulli(key, 0.9, x.shape))
    ours = value_and_gradients(lambda x: ops.dropout(x, key, 0.1), x)
    expected = np.where(kept, np.asarray(x, np.float32) / np.float32(0.9), 0)
    tolerance = 1e-6 if dtype == 'float32' else 1e-2
    close(ours[0], expected, tolerance)
    for legacy in (False, True):
        key = jax.random.PRNGKey(3) if legacy else key
        ops.set_platform('cuda')
        try:
            theirs = jax.jit(lambda x, key: value_and_gradients(
                lambda x: ops.dropout(x, key, 0.1), x
            ))(x, key)  # fmt: skip
        finally:
            ops.set_platform(None)
        close(theirs, ours, tolerance)


def test_recomputed_operations_keep_only_their_arguments():
    x, scale = normal(0, 4, 16), normal(1, 16)

    def norm(x, scale):
        return jax.nn.gelu(x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True)) * scale)

    def kept(function):
        _, pull = jax.vjp(function, x, scale)
        return sum(leaf.size for leaf in jax.tree.leaves(pull) if np.ndim(leaf))

    ops.set_plain(True)
    try:
        plain = value_and_gradients(ops.recompute(norm), x, scale)
        assert kept(ops.recompute(norm)) == kept(norm) > x.size + scale.size
    finally:
        ops.set_plain(False)
    for platform in ('cpu', 'cuda'):
        ops.set_platform(platform)
        try:
            assert kept(ops.recompute(norm)) == x.size + scale.size
            close(value_and_gradients(ops.recompute(norm), x, scale), plain)
        finally:
            ops.set_platform(None)


def test_chunks_are_as_large_as_the_logits_of_one_device():
    rules = (('batch', ('data',)), ('inner', None), ('vocab', 'tensor'))
    alone = default_chunks(2**13, 2**15, 512)
    assert alone == 4  # 1 GiB of float32 in parts of 256 MiB
    mesh = jax.make_mesh((4, 2), ('data', 'tensor'), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        assert default_chunks(2**13, 2**15, 512) == 1
        assert default_chunks(4 * 2**13, 2 * 2**15, 512) == alone


ARRAY, HALF = jnp.ones((1, 128, 2, 8)), jnp.ones((4, 8), jnp.bfloat16)
GATES = (jnp.ones((2, 5, 3)), jnp.ones((3, 16)), jnp.ones((4, 16)), jnp.ones(16))
CALLS = {
    'matmul': lambda: ops.matmul(HALF, HALF.T),
    'add_bias': lambda: jax.vjp(ops.add_bias, HALF, HALF[0])[1](HALF),
    'conv': lambda: jax.vjp(lambda x: ops.conv(x, jnp.ones((3, 3, 8, 8))), ARRAY)[0],
    'max_pool': lambda: ops.max_pool(ARRAY),
    'avg_pool': lambda: ops.avg_pool(ARRAY),
    'norm': lambda: ops.norm(HALF, HALF[0], None, epsilon=1e-6, centred=True, dtype='float32'),
    'dropout': lambda: ops.dropout(HALF, jax.random.key(0), 0.5),
    'gelu': lambda: ops.gelu(HALF, approximate=False),
    'attention': lambda: ops.attention(ARRAY, ARRAY, ARRAY, causal=True),
    'lstm': lambda: ops.lstm(GATES[0], (jnp.ones((2, 4)),) * 2, *GATES[1:]),
    'gru': lambda: ops.gru(
        GATES[0], jnp.ones((2, 4)), GATES[1][:, :12], GATES[2][:, :12], GATES[3]
    ),
    'argmax': lambda: ops.argmax(HALF),
    'chunked_cross_entropy': lambda: ops.chunked_cross_entropy(
        HALF, HALF.T, jnp.zeros(4, jnp.int32), chunks=2
    ),
    'recompute': lambda: ops.recompute(jnp.sin)(HALF),
}
ON_CPU = {
    'matmul', 'add_bias', 'conv', 'max_pool', 'avg_pool', 'attention', 'lstm', 'gru', 'argmax',
    'chunked_cross_entropy', 'recompute',
}  # fmt: skip
ON_GPU = {'norm', 'dropout', 'gelu', 'attention', 'chunked_cross_entropy', 'recompute'}


@pytest.mark.parametrize('name', CALLS)
def test_each_platform_has_its_formulations(name):
    """Where a formulation exists it is the one that is traced; elsewhere the plain one is."""

    def trace():
        # A new function each time: jax remembers what it traced.
        return re.sub(r'0x\w+', '', str(jax.make_jaxpr(lambda: CALLS[name]())()))

    with plain():
        expected = trace()
    chosen = {'cpu': ON_CPU, 'cuda': ON_GPU, 'tpu': {'chunked_cross_entropy', 'recompute'}}
    for platform, faster in chosen.items():
        ops.set_platform(platform)
        try:
            traced = trace()
        finally:
            ops.set_platform(None)
        assert (traced != expected) == (name in faster), platform
