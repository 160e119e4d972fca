"""Optimizers against PyTorch's: the same gradients give the same weights, step after step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxdl.core.optim import AdamW, Constant, Cosine, InverseSqrt, Linear, Sgd

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
