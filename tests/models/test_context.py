"""Attention over a split sequence against the plain formula over the whole of it."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxdl.models import context, layout

RULES = (('batch', 'data'), ('length', 'context'), ('heads', 'tensor'), ('kv', None))
B, T, S, H, KV, D = 4, 16, 8, 4, 4, 8


def formula(q, k, v, causal, q_segments, kv_segments):
    """softmax(q·kᵀ/√d)·v, written once more."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum('bthd,bshd->bhts', q, k) / np.sqrt(q.shape[-1])
    seen = jnp.ones(scores.shape[-2:], bool)[None, None]
    if causal:
        seen = seen & jnp.tril(seen[0, 0])
    if q_segments is not None:
        seen = seen & (q_segments[:, None, :, None] == kv_segments[:, None, None, :])
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1)
    return jnp.einsum('bhts,bshd->bthd', weights, v)


@contextlib.contextmanager
def spread_over(sizes: tuple[int, int, int], way: str):
    """Programs traced inside run on a mesh of (data, context, tensor)."""
    mesh = jax.make_mesh(
        sizes,
        ('data', 'context', 'tensor'),
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[: int(np.prod(sizes))],
    )
    chosen = layout.Layout(context_by=way)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES), layout.use(chosen):
        yield


CASES = {
    'whole': (False, False, False, KV),
    'causal': (True, False, False, KV),
    'causal_segments_grouped': (True, True, False, 2),
    'cross_segments': (False, True, True, KV),
}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('way', ['ring', 'heads'])
def test_equals_attention_over_the_whole(way, case):
    causal, segmented, cross, kv_heads = CASES[case]
    sizes = (2, 4, 1) if way == 'ring' else (2, 2, 2 if kv_heads == KV else 1)
    rng = np.random.default_rng(0)
    keys = S if cross else T
    q = jnp.asarray(rng.normal(size=(B, T, H, D)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(B, keys, kv_heads, D)), jnp.float32) for _ in range(2))
    asked = jnp.asarray(rng.normal(size=q.shape), jnp.float32)
    q_segments = kv_segments = None
    if segmented:
        q_segments = jnp.asarray(np.arange(T) >= rng.integers(3, T - 3, (B, 1)), jnp.int32)
        kv_segments = q_segments
        if cross:
            kv_segments = jnp.asarray(
                np.arange(keys) >= rng.integers(2, keys - 2, (B, 1)), jnp.int32
            )

    def loss(attend):
        def total(q, k, v):
            out = attend(q, k, v)
            return (out * asked).sum(), out

        return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)

    plain = loss(lambda *x: formula(*x, causal, q_segments, kv_segments))
    (_, expected), slopes = jax.jit(plain)(q, k, v)
    with spread_over(sizes, way):
        spread = loss(
            lambda *x: context.attention(
                *x, causal=causal, q_segments=q_segments, kv_segments=kv_segments
            )
        )
        (_, found), gradients = jax.jit(spread)(q, k, v)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    for a, b in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_heads_that_do_not_divide_need_a_ring():
    q = jnp.zeros((2, 8, 4, 4))
    kv = jnp.zeros((2, 8, 1, 4))

    def attend(q, kv):
        return context.attention(q, kv, kv, causal=True)

    with spread_over((1, 2, 1), 'heads'):
        with pytest.raises(
            ValueError, match=r"context_by='heads': 1 key heads .* context_by='ring'"
        ):
            jax.eval_shape(attend, q, kv)
    with spread_over((1, 2, 1), 'auto'):
        assert 'ppermute' in str(jax.make_jaxpr(attend)(q, kv))
    with spread_over((1, 2, 1), 'auto'):
        assert 'all_to_all' in str(jax.make_jaxpr(attend)(q, jnp.zeros((2, 8, 2, 4))))
