"""The analytic count against formulas and published figures."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxdl.account import flops
from jaxdl.models import ops
from jaxdl.models.bert import Bert
from jaxdl.models.cnn import Cnn
from jaxdl.models.lm_head import DeferredLogits
from jaxdl.models.ops import cuda
from jaxdl.models.resnet import ResNet
from jaxdl.models.rnn import RnnLM
from jaxdl.models.seq2seq import Seq2Seq
from jaxdl.models.transformer import TransformerLM
from jaxdl.models.vit import ViT


def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def conv(x, kernel, **kwargs):
    return lax.conv_general_dilated(x, kernel, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **kwargs)


class Bottleneck(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.width, (1, 1), use_bias=False)(x)
        y = nn.Conv(self.width, (3, 3), (self.stride, self.stride), use_bias=False)(nn.relu(y))
        y = nn.Conv(4 * self.width, (1, 1), use_bias=False)(nn.relu(y))
        if x.shape != y.shape:
            x = nn.Conv(4 * self.width, (1, 1), (self.stride, self.stride), use_bias=False)(x)
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """The layout of torchvision's resnet50 (stride in the 3×3 convolution)."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (7, 7), (2, 2), padding=[(3, 3)] * 2, use_bias=False)(x)
        x = nn.max_pool(x, (3, 3), (2, 2), padding=[(1, 1)] * 2)
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                x = Bottleneck(64 * 2**stage, 2 if block == 0 and stage > 0 else 1)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


def transformer(params, tokens, heads, *, remat):
    """A decoder in plain JAX: layers stacked and scanned, embeddings tied."""
    x = params['embed'][tokens]

    def layer(x, kernels):
        batch, time, width = x.shape
        qkv = (x @ kernels['qkv']).reshape(batch, time, 3, heads, width // heads)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        weights = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', query, key))
        x = x + jnp.einsum('bhqk,bkhd->bqhd', weights, value).reshape(x.shape) @ kernels['out']
        return x + jax.nn.gelu(x @ kernels['up']) @ kernels['down']

    if remat:
        layer = jax.checkpoint(layer)
    x, _ = lax.scan(lambda x, k: (layer(x, k), None), x, params['layers'])
    return x @ params['embed'].T


def transformer_params(layers, width, vocab):
    kernels = {'qkv': (width, 3 * width), 'out': (width, width)}
    kernels |= {'up': (width, 4 * width), 'down': (4 * width, width)}
    stacked = {name: shape(layers, *dims) for name, dims in kernels.items()}
    return {'embed': shape(vocab, width), 'layers': stacked}


def test_matmul_counts_two_operations_per_multiply_add():
    counted = flops.count(jnp.matmul, shape(5, 7), shape(7, 11))
    assert counted.matmul == 2 * 5 * 7 * 11
    assert counted.model == counted.hardware == counted.matmul
    assert counted.by_dtype == {'float32': 770.0}


def test_batched_matmul_and_its_dtype():
    counted = flops.count(
        lambda a, b: jnp.einsum('bij,bjk->bik', a, b),
        shape(3, 5, 7, dtype=jnp.bfloat16),
        shape(3, 7, 11, dtype=jnp.bfloat16),
    )
    assert counted.by_dtype == {'bfloat16': 3 * 770.0}


def test_gradient_of_a_product_is_two_products():
    def loss(a, b):
        return (a @ b).sum()

    counted = flops.count(jax.grad(loss, argnums=(0, 1)), shape(5, 7), shape(7, 11))
    # The forward product feeds only the loss, which nobody asked for.
    assert counted.matmul == 2 * 770
    counted = flops.count(jax.value_and_grad(loss, argnums=(0, 1)), shape(5, 7), shape(7, 11))
    assert counted.matmul == 3 * 770


@pytest.mark.parametrize('stride', [1, 2])
def test_conv_and_both_gradients_cost_the_same(stride):
    x, kernel = shape(2, 16, 16, 4), shape(3, 3, 4, 8)
    fn = functools.partial(conv, window_strides=(stride, stride), padding='SAME')
    forward = flops.count(fn, x, kernel).conv
    assert forward == 2 * 2 * (16 // stride) ** 2 * 8 * 3 * 3 * 4
    for argnum in (0, 1):
        backward = flops.count(jax.grad(lambda *a: fn(*a).sum(), argnums=argnum), x, kernel)
        assert backward.conv == forward


def test_grouped_conv_and_its_gradients():
    x, kernel = shape(2, 16, 16, 8), shape(3, 3, 1, 8)
    fn = functools.partial(conv, window_strides=(1, 1), padding='SAME', feature_group_count=8)
    forward = flops.count(fn, x, kernel).conv
    assert forward == 2 * 2 * 16 * 16 * 8 * 3 * 3
    for argnum in (0, 1):
        backward = flops.count(jax.grad(lambda *a: fn(*a).sum(), argnums=argnum), x, kernel)
        assert backward.conv == forward


def test_transposed_conv_counts_only_real_elements():
    def fn(x, kernel):
        return lax.conv_transpose(x, kernel, (2, 2), 'SAME')

    counted = flops.count(fn, shape(1, 8, 8, 4), shape(4, 4, 4, 6)).conv
    assert counted == 2 * 8 * 8 * 4 * 4 * 4 * 6  # every input element meets every tap once


def test_resnet50_matches_the_published_count():
    model = ResNet50()
    images = shape(1, 224, 224, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    counted = flops.count(model.apply, variables, images)
    # torchvision publishes 4.09 GMACs for resnet50.
    assert counted.model / 2 == pytest.approx(4.09e9, rel=0.002)
    assert counted.conv > 0.99 * counted.model
    # The count of a training step is 3 times that, less the gradient of the image.

    def loss(variables, images):
        return model.apply(variables, images).sum()

    step = flops.count(jax.value_and_grad(loss), variables, images)
    stem = 2 * 112 * 112 * 64 * 7 * 7 * 3
    assert step.model == pytest.approx(3 * counted.model - stem, rel=0.002)


@pytest.mark.parametrize(
    ('layers', 'width', 'heads', 'vocab', 'time', 'published'),
    [(12, 768, 12, 50257, 1024, 124e6), (24, 1024, 16, 30522, 512, 335e6)],
    ids=['gpt2', 'bert-large'],
)
@pytest.mark.parametrize('remat', [False, True])
def test_transformer_matches_six_n_d_plus_attention(
    layers, width, heads, vocab, time, published, remat
):
    params = transformer_params(layers, width, vocab)
    tokens = shape(2, time, dtype=jnp.int32)

    def loss(params, tokens):
        return transformer(params, tokens, heads, remat=remat).sum()

    counted = flops.count(jax.value_and_grad(loss), params, tokens)
    size = layers * 12 * width**2 + vocab * width  # the tied embedding is used once as a product
    assert size == pytest.approx(published, rel=0.01)  # GPT-2: 124 M, BERT-large: 335 M
    per_token = 6 * size + 12 * layers * time * width  # PaLM, arXiv:2204.02311, appendix B
    assert counted.model == pytest.approx(per_token * 2 * time)
    layer_forward = layers * (24 * width**2 + 4 * time * width) * 2 * time
    # The last product of a layer need not be repeated: no gradient asks for its result.
    down = layers * 8 * width**2 * 2 * time
    assert counted.remat == (pytest.approx(layer_forward - down) if remat else 0)


def test_scan_and_fori_loop_multiply_by_their_length():
    def scanned(x):
        return lax.scan(lambda c, _: (c @ c, None), x, length=7)[0]

    def looped(x):
        return lax.fori_loop(0, 7, lambda _, c: c @ c, x)

    assert flops.count(scanned, shape(4, 4)).matmul == 7 * 128
    assert flops.count(looped, shape(4, 4)).matmul == 7 * 128


def test_while_of_unknown_length_counts_once_and_says_so():
    def fn(n, x):
        return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ c[1]), (0, x))[1]

    counted = flops.count(fn, shape(dtype=jnp.int32), shape(4, 4))
    assert counted.matmul == 128
    assert 'unknown length' in counted.notes[0]


def test_cond_counts_its_dearest_branch():
    def fn(flag, x):
        return lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops.count(fn, shape(dtype=jnp.bool_), shape(4, 4)).matmul == 2 * 128


def test_unlikely_branches_do_not_count():
    def fn(flag, x):
        unlikely = jax.named_scope('unlikely')(lambda x: x @ x @ x)
        return lax.cond(flag, unlikely, lambda x: x @ x, x)

    assert flops.count(fn, shape(dtype=jnp.bool_), shape(4, 4)).matmul == 128


def test_custom_vjp_counts_the_rule_that_runs():
    @jax.custom_vjp
    def fn(x):
        return x @ x

    fn.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x @ x @ x,))
    assert flops.count(jax.jit(fn), shape(4, 4)).matmul == 128
    assert flops.count(jax.grad(lambda x: fn(x).sum()), shape(4, 4)).matmul == 3 * 128


@pytest.mark.parametrize('policy', ['full', 'dots'])
def test_remat_policy_decides_what_is_repeated(policy):
    policies = {'full': None, 'dots': jax.checkpoint_policies.dots_saveable}

    @functools.partial(jax.checkpoint, policy=policies[policy])
    def fn(x):
        return jnp.sin(x @ x) @ x

    counted = flops.count(jax.value_and_grad(lambda x: fn(x).sum()), shape(4, 4))
    assert counted.model == 6 * 128
    assert counted.remat == (128 if policy == 'full' else 0)
    assert counted.hardware == counted.model + counted.remat


def test_shard_map_counts_all_devices():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    fn = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(P('data'), P()), out_specs=P('data')
    )
    assert flops.count(fn, shape(16, 4), shape(4, 4)).matmul == 2 * 16 * 4 * 4


def test_shard_map_over_some_axes_counts_those():
    mesh = jax.make_mesh((4, 2), ('data', 'tensor'), axis_types=(AxisType.Auto,) * 2)
    fn = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(P(), P(None, 'tensor')),
        out_specs=P(None, 'tensor'), axis_names={'tensor'},
    )  # fmt: skip
    assert flops.count(fn, shape(16, 4), shape(4, 8)).matmul == 2 * 16 * 4 * 8


def test_pmap_counts_all_devices():
    fn = jax.pmap(lambda x, w: x @ w, in_axes=(0, None))
    assert flops.count(fn, shape(8, 2, 4), shape(4, 4)).matmul == 2 * 16 * 4 * 4


def test_fused_attention_equals_attention_by_products():
    fused = pytest.importorskip('jax._src.cudnn.fused_attention_stablehlo')
    query = shape(2, 128, 4, 64, dtype=jnp.bfloat16)

    def kernel(q):
        return fused._dot_product_attention_fwd_p_wrapper.bind(
            *([q] * 3), *([jnp.zeros(0, q.dtype)] * 7),
            scale=0.1, seed=0, dropout_rate=0.0, variadic_args=(False, False),
            mask_type=fused.MaskType.NO_MASK, layout=0, sliding_window_length=None,
            is_training=False,
        )[0]  # fmt: skip

    def plain(q):
        return jax.nn.dot_product_attention(q, q, q, implementation='xla')

    counted = flops.count(kernel, query)
    assert counted.attention == flops.count(plain, query).matmul == 4 * 2 * 4 * 128 * 128 * 64


def test_elementwise_work_is_kept_apart():
    counted = flops.count(lambda x: jnp.sin(x).sum() + 1, shape(4, 4))
    assert counted.model == 0
    assert counted.other == 16 + 16 + 1


def test_sums_and_multiples():
    one = flops.count(jnp.matmul, shape(4, 4), shape(4, 4))
    assert one.plus(one) == one.scaled(2)


IMAGES = dict(images=shape(4, 32, 32, 3))
TOKENS = dict(tokens=shape(2, 256, dtype=jnp.int32))
SIZE = dict(width=32, layers=2, heads=2, vocab=64, max_length=256)
MODELS = {
    'decoder': (TransformerLM(**SIZE), TOKENS),
    'decoder_odd': (
        TransformerLM(**SIZE, kv_heads=1, activation='swiglu', positions='rotary'),
        dict(tokens=shape(2, 203, dtype=jnp.int32), segments=shape(2, 203, dtype=jnp.int32)),
    ),
    'decoder_half': (
        TransformerLM(**SIZE, dtype='bfloat16', scan_layers=True, remat='dots', head_chunks=4),
        TOKENS,
    ),
    'bert': (Bert(**SIZE, dtype='bfloat16', head_chunks=2), TOKENS),
    'seq2seq': (
        Seq2Seq(**SIZE),
        dict(source=shape(2, 96, dtype=jnp.int32), target=shape(2, 200, dtype=jnp.int32)),
    ),
    'vit': (ViT(width=32, layers=2, heads=2, patch=4, dtype='bfloat16'), IMAGES),
    'lstm': (RnnLM(vocab=64, width=32, dtype='bfloat16'), TOKENS),
    'gru': (RnnLM(vocab=64, width=32, cell='gru'), TOKENS),
    'cnn': (Cnn(dtype='bfloat16'), IMAGES),
    'resnet': (ResNet(depth=8), IMAGES),
}


def training_step(name):
    """The count of a model's loss and gradient."""
    model, inputs = MODELS[name]
    rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    shapes = jax.eval_shape(lambda x: model.init(rngs, **x, train=False), inputs)

    def loss(params, inputs):
        found = model.apply(
            {**shapes, 'params': params}, **inputs, train=True, rngs=rngs, mutable=['batch_stats']
        )[0]
        if isinstance(found, DeferredLogits):
            labels = inputs.get('tokens', inputs.get('target'))
            pair = 0.0 if found.next_sentence is None else found.next_sentence.sum()
            return found.cross_entropy(labels)[0].mean() + pair
        return found.sum()

    if 'batch_stats' in shapes:  # their values matter to no count
        shapes = {
            **shapes,
            'batch_stats': jax.tree.map(lambda x: jnp.zeros(x.shape), shapes['batch_stats']),
        }
    return flops.count(jax.value_and_grad(loss), shapes['params'], inputs), shapes['params']


@pytest.fixture
def formulation():
    """Chooses the formulation of all operations until the test ends."""

    def choose(name):
        ops.set_plain(name == 'plain')
        ops.set_platform(None if name == 'plain' else name)

    yield choose
    choose('plain')
    ops.set_plain(False)


@pytest.mark.parametrize('name', MODELS)
def test_a_model_has_one_count_in_every_formulation(name, formulation):
    formulation('plain')
    plain, _ = training_step(name)
    assert plain.model > 0
    for platform in ('cpu', 'cuda', 'tpu'):
        formulation(platform)
        ours, _ = training_step(name)
        assert ours.model == pytest.approx(plain.model, rel=1e-12), platform
        assert ours.conv == plain.conv


def test_causal_attention_counts_whole_on_a_cpu(formulation):
    """6 for each parameter of a product and token, and 12 · layers · time · width for attention."""
    formulation('cpu')
    counted, params = training_step('decoder')
    size = sum(x.size for x in jax.tree.leaves(params['decoder']) if x.ndim > 1) + 64 * 32
    assert counted.model == pytest.approx((6 * size + 12 * 2 * 256 * 32) * 2 * 256, rel=1e-12)


@pytest.mark.parametrize('masked', [False, True])
def test_attention_padded_for_cudnn_counts_as_if_it_were_not(masked):
    def count(time, keys):
        q, k = shape(2, time, 4, 64), shape(2, keys, 4, 64)
        mask = shape(1, 1, time, keys, dtype=jnp.bool_) if masked else None

        def loss(q, k, mask):
            return cuda.cudnn_attention(call, q, k, k, None, mask).sum()

        return flops.count(jax.value_and_grad(loss), q, k, mask).model

    def call(q, k, v, bias, mask, **lengths):
        del bias, lengths
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation='xla')

    assert count(65, 33) / count(64, 32) == pytest.approx((65 * 33) / (64 * 32), rel=1e-12)


def test_products_count_as_the_outermost_formulation_says_and_nothing_else_does():
    @jax.jit
    def inner(x):
        with ops.counted(5, 1):
            return x @ x

    def outer(x):
        with ops.counted(3, 2):
            return jnp.sin(inner(x)) @ x

    assert flops.count(inner, shape(4, 4)).matmul == 5 * 128
    counted = flops.count(outer, shape(4, 4))
    assert counted.matmul == 1.5 * 2 * 128
    assert counted.other == 16
