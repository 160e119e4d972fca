"""How many steps may be under way, asked of compiled programs."""

import jax
import jax.numpy as jnp

from jaxdl.core import inflight


def compiled(size):
    """A program whose temporaries hold size × size numbers at once."""
    function = jax.jit(lambda x: jnp.sort(jnp.outer(x, x), 0).sum())
    return function.lower(jax.ShapeDtypeStruct((size,), jnp.float32)).compile()


def test_large_temporaries_are_held_once():
    large = inflight.InFlight(compiled(6000))  # 144 MB
    assert large.most == 0
    assert inflight.InFlight(compiled(600)).most == inflight.MOST


def test_a_step_that_is_compiled_at_its_first_call_says_nothing_of_its_memory():
    assert inflight.InFlight(lambda state: state).most == inflight.MOST
