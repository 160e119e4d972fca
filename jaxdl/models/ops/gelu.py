"""GELU (arXiv:1606.08415) in the few instructions that leave a GPU waiting for its memory.

A GPU's compiler forms erf and tanh from long rational functions, the derivative's exponential beside
them: measured on an H200, the activation of an MLP then moves 1.3 TB/s (exact) and 2.3 TB/s (tanh)
of the 4 that it could.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: the error of erf is below 1.5e-7,
# which is that of float32 near 1.
_P = 0.3275911
_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


@jax.custom_jvp
def exact(x: Array) -> Array:
    """Returns x·Φ(x) for float32 x, Φ the normal distribution; the error is below 1e-7·|x|."""
    return x * _normal(x)[0]


@exact.defjvp
def _exact_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    below, density = _normal(x)
    return x * below, (below + x * density) * dx


def _normal(x: Array) -> tuple[Array, Array]:
    """Returns (Φ(x), its density) by one exponential and one division."""
    bell = jnp.exp(-0.5 * x * x)
    t = 1.0 / (1.0 + (_P * math.sqrt(0.5)) * jnp.abs(x))
    series = jnp.zeros_like(x)
    for a in reversed(_A):
        series = (series + a) * t
    tail = 0.5 * series * bell  # Φ(-|x|), formed without cancellation
    return jnp.where(x < 0, tail, 1.0 - tail), bell * (1.0 / math.sqrt(2.0 * math.pi))


@jax.custom_jvp
def tanh(x: Array) -> Array:
    """Returns x·(1 + tanh(u)) / 2 with u = sqrt(2/π)·(x + 0.044715·x³), for float32 x."""
    return x * _logistic(x)


@tanh.defjvp
def _tanh_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    gate = _logistic(x)
    slope = 2.0 * math.sqrt(2.0 / math.pi) * (1.0 + 3 * 0.044715 * x * x)
    return x * gate, (gate + x * gate * (1.0 - gate) * slope) * dx


def _logistic(x: Array) -> Array:
    # (1 + tanh(u)) / 2 is the logistic function of 2u.
    return jax.nn.sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))
