"""What is compiled: the state is given away, and no step holds all logits of a large vocabulary."""

import jax
import numpy as np
import pytest

from jaxdl.account import flops
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Config, Mesh
from jaxdl.core.optim import AdamW
from jaxdl.core.program import Program
from jaxdl.data.synthetic import SyntheticImages
from jaxdl.models.airbench import Airbench
from jaxdl.models.transformer import TransformerLM
from jaxdl.tasks.language_model import LanguageModel
from tests import small

BATCH, TIME, VOCAB, WIDTH = 4, 16, 1031, 16


def test_the_state_is_given_away():
    made, feed, order = small.program(small.config())
    step, _ = made.compile_train(feed.abstract(mask=False), feed.resident)
    state = made.init(feed.source.fetch(order.batch(0)))
    batch = feed.place(feed.load(order.batch(0)))
    new, _ = step(state, batch, feed.resident, made.place_hyper())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


@pytest.mark.parametrize('trained', ['digits', 'airbench'])
def test_a_fresh_state_is_what_the_model_makes_of_the_rows(trained):
    """`init` runs what was traced for the shapes, unless the model looks at the rows (airbench does)."""
    changes = {}
    if trained == 'airbench':
        changes = {'model': Airbench(widths=(8, 8, 8)), 'data': SyntheticImages(), 'ema': 0.0}
    made, feed, order = small.program(small.config(**changes))
    rows = feed.source.fetch(order.batch(0))
    ours = made.init(rows)
    theirs = jax.jit(made.steps.init)(rows, made.hyper)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6)


def language_program(chunks: int, dtype: str) -> tuple[Program, dict]:
    shape = (BATCH, TIME)
    rows = {
        'id': np.zeros(BATCH, np.int32),
        'tokens': np.ones(shape, np.int32),
        'targets': np.ones(shape, np.int32),
        'segments': np.ones(shape, np.int32),
        'positions': np.ones(shape, np.int32),
        'target_mask': np.ones(shape, bool),
    }
    model = TransformerLM(
        vocab=VOCAB,
        max_length=TIME,
        width=WIDTH,
        layers=1,
        heads=2,
        head_chunks=chunks,
        dtype=dtype,
    )
    config = Config(
        model=model, task=LanguageModel(), data=None, optimizer=AdamW(), steps=10, batch_size=BATCH
    )
    mesh = mesh_lib.make_mesh(Mesh(), jax.devices()[:1])
    example = {name: value[0] for name, value in rows.items() if name != 'id'}
    place = mesh_lib.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=place)
        for name, value in rows.items()
    }
    return Program(config, mesh, example), batch


def arrays(jaxpr):
    """Every array that a jaxpr or one inside it makes, as (elements, dtype)."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(getattr(variable.aval, 'shape', ()))), variable.aval.dtype
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, 'jaxpr', item)
                if hasattr(inner, 'eqns'):
                    yield from arrays(inner)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_chunks_never_hold_all_logits(dtype):
    def largest(chunks):
        program, batch = language_program(chunks, dtype)
        found = program.train_jaxpr(batch, {}).jaxpr
        return max(size for size, kind in arrays(found) if kind == np.float32)

    # A gradient of the table is as large as the table, whatever the chunks.
    assert largest(0) >= BATCH * TIME * VOCAB
    assert largest(8) == max(BATCH * TIME * VOCAB // 8, WIDTH * VOCAB)


def test_the_jaxpr_of_the_compiled_step_is_kept():
    made, feed, _ = small.program(small.config(steps_per_call=3, log_every=3))
    batch = feed.abstract(mask=False)
    one = flops.count(made.steps.train_metrics, made.abstract, batch, feed.resident, made.hyper)
    made.compile_train(batch, feed.resident)
    assert made.traces == ['train_steps']
    assert flops.count_jaxpr(made.train_jaxpr(batch, feed.resident)).model == 3 * one.model
    assert made.traces == ['train_steps']
