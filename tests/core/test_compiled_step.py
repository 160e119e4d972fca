"""The compiled step: a changed shape is named, and large temporaries are held once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.core.compiled_step import MOST, CompiledStep, changes
from tests import small


@pytest.mark.parametrize('compile', ['jit', 'pmap'])
def test_a_changed_batch_is_named(compile):
    run = small.config(compile=compile, placement='host')
    made, feed, order = small.program(run)
    batch = feed.abstract(mask=False)
    compiled, _ = made.compile_train(batch, feed.resident)
    step = CompiledStep(compiled, made.traces, batch)
    state = made.init(feed.source.fetch(order.batch(0)))
    hyper, rows = made.place_hyper(), feed.load(order.batch(0))
    for _ in range(2):
        state, packed = step(state, feed.place(rows), feed.resident, hyper)
    assert np.isfinite(np.asarray(packed)).all() and made.traces == ['train_step']
    fewer = {name: values[:24] for name, values in rows.items()}
    with pytest.raises(
        RuntimeError, match=r'image from uint8\[48, 8, 8, 1\] to uint8\[24, 8, 8, 1\]'
    ):
        step(state, feed.place(fewer), feed.resident, hyper)


def test_changes_in_words():
    def leaf(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    old = {'a': leaf(np.float32, 2), 'b': leaf(np.int32, 3), 'c': leaf(np.int32)}
    new = {'a': leaf(np.float16, 2), 'b': leaf(np.int32, 3), 'd': leaf(bool, 1)}
    assert changes(old, new) == [
        'a from float32[2] to float16[2]',
        'c from int32[] to nothing',
        'd from nothing to bool[1]',
    ]
    assert changes(old, old) == []


def compiled(size):
    """A program whose temporaries hold size × size numbers at once."""
    function = jax.jit(lambda x: jnp.sort(jnp.outer(x, x), 0).sum())
    return function.lower(jax.ShapeDtypeStruct((size,), jnp.float32)).compile()


def test_large_temporaries_are_held_once():
    large = CompiledStep(compiled(6000), [], {})  # 144 MB
    assert large.most == 0
    assert CompiledStep(compiled(600), [], {}).most == MOST


def test_a_step_that_is_compiled_at_its_first_call_says_nothing_of_its_memory():
    assert CompiledStep(lambda state: state, [], {}).most == MOST
