"""Optimizers against PyTorch's and against their formulas in numpy, step after step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxdl.core.optim import AdamW, Constant, Cosine, InverseSqrt, Linear, Lion, Muon, Sgd
from jaxdl.models.airbench import Airbench
from jaxdl.models.bert import Bert, BertClassifier
from jaxdl.models.cnn import Cnn
from jaxdl.models.resnet import ResNet, WideResNet
from jaxdl.models.rnn import RnnClassifier, RnnLM
from jaxdl.models.seq2seq import Seq2Seq
from jaxdl.models.stack import stack_layers
from jaxdl.models.transformer import TransformerLM
from jaxdl.models.vit import ViT

STEPS = 20


def problem():
    """A small regression with weights, biases and a norm's scale; the loss differs at each step."""
    rng = np.random.default_rng(0)
    params = {
        'dense': {'kernel': rng.normal(size=(6, 8)), 'bias': rng.normal(size=8)},
        'norm': {'scale': 1 + 0.1 * rng.normal(size=8)},
        'out': {'kernel': rng.normal(size=(8, 3)), 'bias': rng.normal(size=3)},
    }
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    x = rng.normal(size=(STEPS, 16, 6)).astype(np.float32)
    y = rng.normal(size=(STEPS, 16, 3)).astype(np.float32)
    return params, x, y


def loss(params, x, y, tanh):
    hidden = tanh(x @ params['dense']['kernel'] + params['dense']['bias'])
    hidden = hidden * params['norm']['scale']
    return ((hidden @ params['out']['kernel'] + params['out']['bias'] - y) ** 2).mean()


def ours(optimizer):
    """The weights after each of STEPS updates."""
    params, x, y = problem()
    transform = optimizer.build(STEPS)

    @jax.jit
    def update(params, state, x, y):
        grads = jax.grad(loss)(params, x, y, jnp.tanh)
        updates, state = transform.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state, found = transform.init(params), []
    for i in range(STEPS):
        params, state = update(params, state, x[i], y[i])
        found.append(jax.tree.map(np.asarray, params))
    return found


def theirs(make, decay, rate, clip):
    """The same by PyTorch; kernels alone are decayed, and the rate is set before each update."""
    params, x, y = problem()
    tree = {
        k: {n: torch.tensor(a, requires_grad=True) for n, a in v.items()} for k, v in params.items()
    }
    leaves = [(name, p) for group in tree.values() for name, p in group.items()]
    optimizer = make(
        [
            {'params': [p for name, p in leaves if name == 'kernel'], 'weight_decay': decay},
            {'params': [p for name, p in leaves if name != 'kernel'], 'weight_decay': 0.0},
        ]
    )
    found = []
    for i in range(STEPS):
        for group in optimizer.param_groups:
            group['lr'] = rate(i)
        optimizer.zero_grad()
        loss(tree, torch.tensor(x[i]), torch.tensor(y[i]), torch.tanh).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_([p for _, p in leaves], clip)
        optimizer.step()
        found.append(
            {k: {n: p.detach().numpy().copy() for n, p in v.items()} for k, v in tree.items()}
        )
    return found


def cosine(i):
    """Warm-up over a fifth, then half a cosine, at the middle of step i, from the definition."""
    progress = (i + 0.5) / STEPS
    rise = min(progress / 0.2, 1.0)
    return rise * 0.5 * (1 + np.cos(np.pi * max(0.0, (progress - 0.2) / 0.8)))


@pytest.mark.parametrize('clip', [0.0, 0.5])
@pytest.mark.parametrize('decay', [0.0, 0.1])
@pytest.mark.parametrize('kind', ['adamw', 'sgd', 'momentum', 'nesterov'])
def test_trajectory_is_that_of_torch(kind, decay, clip):
    common = dict(schedule=Cosine(warmup=0.2), weight_decay=decay, clip_norm=clip)
    if kind == 'adamw':
        lr = 0.02
        mine = AdamW(learning_rate=lr, b1=0.9, b2=0.98, eps=1e-8, **common)

        def make(groups):
            return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8)
    else:
        lr, momentum = 0.1, 0.0 if kind == 'sgd' else 0.9
        mine = Sgd(learning_rate=lr, momentum=momentum, nesterov=kind == 'nesterov', **common)

        def make(groups):
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=kind == 'nesterov')

    got, want = ours(mine), theirs(make, decay, lambda i: lr * cosine(i), clip)
    start = problem()[0]
    moved = np.abs(want[-1]['out']['kernel'] - start['out']['kernel']).max()
    assert moved > 0.01
    for one, other in zip(got, want, strict=True):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ('schedule', 'formula'),
    [
        (Constant(warmup=0.5), lambda p: min(p / 0.5, 1)),
        (Linear(warmup=0.25, final=0.1), lambda p: min(p / 0.25, 1 - 0.9 * (p - 0.25) / 0.75)),
        (InverseSqrt(warmup=0.1), lambda p: min(p / 0.1, (0.1 / p) ** 0.5)),
    ],
)
def test_schedules_are_their_formulas_and_stretch_with_the_run(schedule, formula):
    optimizer = AdamW(learning_rate=3.0, schedule=schedule)
    for steps in (10, 1000):
        for step in (0, steps // 3, steps - 1):
            want = 3.0 * formula((step + 0.5) / steps)
            assert float(optimizer.rate(jnp.int32(step), steps)) == pytest.approx(want, rel=1e-5)


def random_gradients(shapes, steps=8, seed=0):
    """(parameters, gradients of each step), float32 arrays of these shapes."""
    rng = np.random.default_rng(seed)
    trees = [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(steps + 1)
    ]
    return trees[0], trees[1:]


def apply(optimizer, params, gradients):
    """The parameters after each update by `optimizer`."""
    transform = optimizer.build(len(gradients))
    state, found = transform.init(params), []
    for gradient in gradients:
        updates, state = transform.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        found.append(params)
    return found


@pytest.mark.parametrize('decay', [0.0, 0.3])
def test_lion_is_its_formula(decay):
    params, gradients = random_gradients({'kernel': (5, 3), 'bias': (3,)})
    lion = Lion(learning_rate=0.01, schedule=Constant(), weight_decay=decay, b1=0.8, b2=0.95)
    got = apply(lion, params, gradients)
    want, average = dict(params), {name: 0.0 for name in params}
    for step, gradient in enumerate(gradients):
        for name, g in gradient.items():
            sign = np.sign(0.8 * average[name] + 0.2 * g)
            decayed = decay * want[name] if name == 'kernel' else 0.0
            want[name] = want[name] - 0.01 * (sign + decayed)
            average[name] = 0.95 * average[name] + 0.05 * g
            np.testing.assert_allclose(got[step][name], want[name], atol=1e-6)


def orthogonalised(matrix):
    """Newton-Schulz's five turns as what they do to the singular values, in float64."""
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left * values @ right


@pytest.mark.parametrize('decay', [0.0, 0.3])
def test_muon_is_its_formula(decay):
    """Keller Jordan's: an average m of gradients g, 0.95·m + 0.05·g orthogonalised and scaled."""
    shapes = {
        'wide/kernel': (6, 20),
        'tall/kernel': (20, 6),
        'conv/kernel': (3, 3, 4, 8),
        'layers/kernel': (3, 8, 10),
        'head/kernel': (8, 5),
        'wide/bias': (20,),
    }
    params, gradients = random_gradients(shapes)
    muon = Muon(
        learning_rate=0.02,
        schedule=Constant(),
        weight_decay=decay,
        adam_ratio=0.25,
        matrices=((r'^(wide|tall|conv)/kernel$', 0), (r'^layers/kernel$', 1)),
    )
    got = apply(muon, params, gradients)
    want = dict(params)
    mean, square = ({name: 0.0 for name in params} for _ in range(2))
    for step, gradient in enumerate(gradients, 1):
        for name, g in gradient.items():
            if name in ('head/kernel', 'wide/bias'):
                mean[name] = 0.9 * mean[name] + 0.1 * g
                square[name] = 0.95 * square[name] + 0.05 * g * g
                update = mean[name] / (1 - 0.9**step)
                update = 0.25 * update / (np.sqrt(square[name] / (1 - 0.95**step)) + 1e-8)
            else:
                mean[name] = 0.95 * mean[name] + 0.05 * g
                update = 0.95 * mean[name] + 0.05 * g
                stack = update if name == 'layers/kernel' else update.reshape(1, -1, g.shape[-1])
                rows, columns = stack.shape[1:]
                factor = max(1, columns / rows) ** 0.5
                update = np.stack([orthogonalised(m) for m in stack]).reshape(g.shape) * factor
            decayed = decay * want[name] if name.endswith('kernel') else 0.0
            want[name] = want[name] - 0.02 * (update + decayed)
            np.testing.assert_allclose(got[step - 1][name], want[name], atol=2e-5)


IMAGES = dict(images=np.zeros((1, 16, 16, 3), np.float32))
TOKENS = dict(tokens=np.zeros((1, 8), np.int32))
SHAPE = dict(width=8, layers=2, heads=2, vocab=20, max_length=8)
# The parameters of two and more dimensions that are no hidden matrices.
OTHERS = {
    'cnn': (Cnn(convs=2), IMAGES, {'stage0_0_conv', 'classifier'}),
    'airbench': (Airbench(), IMAGES, {'classifier'}),
    'resnet': (ResNet(depth=18), IMAGES, {'stem_conv', 'classifier'}),
    'wide_resnet': (WideResNet(depth=10), IMAGES, {'stem_conv', 'classifier'}),
    'vit': (
        ViT(width=8, layers=2, heads=2, patch=4),
        IMAGES,
        {'patches', 'positions', 'head'},
    ),
    'decoder': (TransformerLM(**SHAPE, tied=False), TOKENS, {'embed', 'head'}),
    'scanned': (TransformerLM(**SHAPE, scan_layers=True, activation='swiglu'), TOKENS, {'embed'}),
    'bert': (
        Bert(**SHAPE),
        TOKENS,
        {'bert/tokens', 'bert/places', 'bert/types', 'next_sentence'},
    ),
    'bert_classifier': (
        BertClassifier(**SHAPE),
        TOKENS,
        {'bert/tokens', 'bert/places', 'bert/types', 'head'},
    ),
    'seq2seq': (
        Seq2Seq(**SHAPE),
        dict(source=TOKENS['tokens'], target=TOKENS['tokens']),
        {'embed'},
    ),
    'rnn': (RnnLM(vocab=20, width=8), TOKENS, {'embed', 'head'}),
    'rnn_classifier': (RnnClassifier(vocab=20, width=8), TOKENS, {'embed', 'head'}),
}


@pytest.mark.parametrize('family', OTHERS)
def test_each_model_names_its_hidden_matrices(family):
    """All but embeddings, the first and the last layer and what has one dimension (in each layer)."""
    model, inputs, others = OTHERS[family]
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs, train=False))
    labels = Muon().for_model(model).labels(shapes['params'])
    flat = jax.tree_util.tree_flatten_with_path(shapes['params'])[0]
    found = 0
    for (path, leaf), label in zip(flat, jax.tree.leaves(labels), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        dims = leaf.ndim - ('/layers/' in name)
        other = dims < 2 or any(name == one or name.startswith(f'{one}/') for one in others)
        assert label == ('adam' if other else 'muon'), name
        found += label == 'muon'
    assert found > 1


def test_layers_that_are_stacked_are_updated_as_if_they_were_not():
    plain, scanned = (TransformerLM(**SHAPE, scan_layers=scan) for scan in (False, True))
    params = jax.jit(lambda: plain.init(jax.random.key(0), **TOKENS, train=False))()['params']
    gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params)

    def updated(model, params, gradients):
        transform = Muon().for_model(model).build(10)
        return transform.update(gradients, transform.init(params), params)[0]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        stack_layers(updated(plain, params, gradients)),
        updated(scanned, stack_layers(params), stack_layers(gradients)),
    )


def test_a_model_without_matrices_is_refused():
    with pytest.raises(ValueError, match='Dense does not say'):
        Muon().for_model(nn.Dense(3))
    own = Muon(matrices=(('kernel', 0),))
    assert own.for_model(nn.Dense(3)) == own and AdamW().for_model(nn.Dense(3)) == AdamW()
    for wrong in (('kernel',), ('(', 0), ('kernel', 2), 'x', 3):
        with pytest.raises(ValueError, match='matrices'):
            Muon(matrices=(wrong,)).check()
