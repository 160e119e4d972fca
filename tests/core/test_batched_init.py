"""Equations that run together give what each gives alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxpr_as_fun

from jaxdl.core import batched_init
from jaxdl.core.config import Config
from jaxdl.core.mesh import make_mesh
from jaxdl.core.optim import AdamW, Muon
from jaxdl.core.program import Program
from jaxdl.models.bert import Bert
from jaxdl.models.resnet import ResNet
from jaxdl.models.rnn import RnnLM
from jaxdl.models.transformer import TransformerLM
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.language_model import LanguageModel
from jaxdl.tasks.masked_lm import MaskedLM


def traced(function, *arguments):
    return jax.jit(function).trace(*arguments).jaxpr


def draws(function, *arguments) -> int:
    """How many calls of jax.random draw something."""
    equations = jax.make_jaxpr(function)(*arguments).jaxpr.eqns
    return sum(equation.primitive.name in ('jit', 'pjit') for equation in equations)


LENGTH = 8
ROWS = {
    'image': np.zeros((32, 32, 3), np.uint8),
    'label': np.int32(0),
    **{name: np.ones(LENGTH, np.int32) for name in ('tokens', 'targets', 'segments', 'positions')},
    'target_mask': np.ones(LENGTH, bool),
    'maskable': np.ones(LENGTH, bool),
    'row': np.int32(0),
}
FAMILIES = {
    'resnet': (ResNet(depth=20, width=8), Classification(num_classes=10), Muon()),
    'lstm': (RnnLM(vocab=20, width=8, layers=3), LanguageModel(), AdamW()),
    'decoder': (
        TransformerLM(vocab=20, max_length=LENGTH, width=8, layers=3, heads=2),
        LanguageModel(),
        Muon(),
    ),
    'bert': (
        Bert(vocab=20, width=8, layers=3, heads=2),
        MaskedLM(vocab_size=20, mask_token=3),
        AdamW(),
    ),
}


@pytest.mark.parametrize(
    'family',
    [
        family if family == 'decoder' else pytest.param(family, marks=pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_a_model_begins_the_same(family, monkeypatch):
    model, task, optimizer = FAMILIES[family]
    config = Config(
        model=model,
        task=task,
        data=None,
        optimizer=optimizer,
        steps=10,
        batch_size=2,
        ema=0.3,
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    program = Program(config, mesh, ROWS)
    rows = {name: np.stack([x, x]) for name, x in ROWS.items()}
    expected = program.init(rows)
    calls = []

    def together(closed):
        calls.append(closed)
        return batched_init.together(closed)

    monkeypatch.setattr('jaxdl.core.program.jaxpr_as_fun', together)  # as on a GPU
    ours = Program(config, mesh, ROWS).init(rows)
    (closed,) = calls
    inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in closed.in_avals]
    assert draws(batched_init.together(closed), *inputs) < draws(jaxpr_as_fun(closed), *inputs) / 2
    # Compiled otherwise, a factor may be rounded before or after.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, expected
    )


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_chain_of_equations(data):
    """Random programs: results of several outputs, shared inputs, literals, rows of other stacks."""
    steps = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(['add', 'sort', 'normal', 'literal', 'sum']),
                st.integers(0, 50),
                st.integers(0, 50),
            ),
            max_size=14,
        )
    )

    def function(x, y):
        values, key = [x, y], jax.random.key(1)
        for index, (kind, first, second) in enumerate(steps):
            a, b = values[first % len(values)], values[second % len(values)]
            if kind == 'add':
                values.append(a + b)
            elif kind == 'sort':
                values.extend(jax.lax.sort((a, b), num_keys=1))
            elif kind == 'normal':
                values.append(jax.random.normal(jax.random.fold_in(key, index), a.shape) * a)
            elif kind == 'literal':
                values.append(a * (1.5 + index))
            else:
                values.append(a - b.sum())
        return values

    x, y = jnp.arange(4.0), jnp.asarray([3.0, -1.0, 2.0, 0.5])
    closed = traced(function, x, y)
    # Operation by operation: compiled as one, either could be rounded otherwise.
    ours, expected = batched_init.together(closed)(x, y), jaxpr_as_fun(closed)(x, y)
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_effects_stay_apart():
    seen = []

    def function(x):
        for _ in range(2):
            jax.debug.callback(lambda v: seen.append(float(v)), x)
        return x

    closed = traced(function, jnp.float32(3))
    batched_init.together(closed)(jnp.float32(3))
    jax.effects_barrier()
    assert seen == [3.0, 3.0]
