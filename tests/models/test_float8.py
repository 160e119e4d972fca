"""Float8 products: the same parameters, operands of eight bits, a loss and gradients nearby."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.core import config as config_lib
from jaxdl.errors import UserError
from jaxdl.models import float8, ops
from jaxdl.models.cnn import Cnn
from jaxdl.models.transformer import TransformerLM
from tests import small

pytest.importorskip('qwix')


@pytest.fixture
def plain():
    ops.set_plain(True)
    yield
    ops.set_plain(False)


@pytest.mark.slow
def test_products_take_eight_bits(plain):
    model = TransformerLM(vocab=32, max_length=8, width=16, layers=1, heads=2)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 8)))
    variables = model.init({'params': jax.random.key(0)}, tokens, train=False)

    def loss(model):
        def loss(params):
            logits = model.apply({'params': params}, tokens, train=False)
            return ops.cross_entropy(logits, tokens).mean()

        return loss

    small_model = float8.quantized(model)
    call = jax.jit(jax.value_and_grad(loss(small_model)))
    text = str(jax.make_jaxpr(call)(variables['params']))
    assert re.search(r'f8_e4m3fn', text) and re.search(r'f8_e5m2', text)
    ours, gradients = call(variables['params'])
    theirs, expected = jax.jit(jax.value_and_grad(loss(model)))(variables['params'])
    assert float(ours) == pytest.approx(float(theirs), rel=0.02) and ours != theirs
    flat = [
        jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (gradients, expected)
    ]
    # Three bits of mantissa: 6 % off at most a number, less in a sum.
    assert jnp.linalg.norm(flat[0] - flat[1]) < 0.15 * jnp.linalg.norm(flat[1])


def test_a_step_in_float8(plain):
    run = small.config(
        model=Cnn(channels=(4,), pools=1, dense=8), float8=True, ema=0.0, batch_size=16
    )
    losses, made, _ = small.losses(run, 3)
    assert np.isfinite(losses).all() and 'f8_e4m3fn' in str(made.train_jaxpr({}, {}))


def test_a_cpu_has_none():
    with pytest.raises(ValueError, match='float8 is for GPUs'):
        float8.quantized(Cnn())


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(config_lib.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'requirements-fp8\.txt'):
        config_lib.check(small.config(float8=True))
