"""Recurrent layers whose backward pass forms the weights' gradients in one product after the scan."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxdl.models.ops.cpu import add_bias, kernel_gradient, matmul, product


def lstm(x, carry, w_input, w_hidden, bias, reverse=False, lengths=None, starts=None):
    """See plain.lstm."""
    starts = None if starts is None else starts.T[..., None]
    projected = add_bias(matmul(x.swapaxes(0, 1), w_input), bias)
    found: tuple = _lstm_scan(projected, *carry, w_hidden, lengths, starts, reverse)
    outputs, hidden, cell = found
    return outputs.swapaxes(0, 1), (hidden, cell)


def gru(x, carry, w_input, w_hidden, bias, reverse=False, lengths=None, starts=None):
    """See plain.gru."""
    dim = w_hidden.shape[0]
    starts = None if starts is None else starts.T[..., None]
    projected = add_bias(matmul(x.swapaxes(0, 1), w_input), bias[: 3 * dim])
    found: tuple = _gru_scan(projected, carry, w_hidden, bias[3 * dim :], lengths, starts, reverse)
    outputs, last = found
    return outputs.swapaxes(0, 1), last


def _hold(valid, new, old):
    return new if valid is None else jnp.where(valid, new, old)


def _start(starts, state):
    return state if starts is None else jnp.where(starts, jnp.zeros_like(state), state)


def _mask(lengths, steps):
    """Returns which steps [time, batch, 1] of each row are real; None: all."""
    if lengths is None:
        return None
    return (jnp.arange(steps)[:, None] < lengths[None, :])[..., None]


def _previous(first: Array, states: Array, starts: Array | None, reverse: bool) -> Array:
    """Returns the state that each step begins with, from the first one and those after each step."""
    if reverse:
        return _start(starts, lax.concatenate([states[1:], first[None]], 0))
    return _start(starts, lax.concatenate([first[None], states[:-1]], 0))


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _lstm_scan(projected, hidden, cell, w_hidden, lengths, starts, reverse):
    """Runs an LSTM over its projected inputs.

    Args:
        projected: [time, batch, 4·dim], input·w_input + bias.
        hidden: [batch, dim].
        cell: [batch, dim].
        w_hidden: [dim, 4·dim].
        lengths: [batch] or None.
        starts: [time, batch, 1] or None; True where the state is 0 before the step.
        reverse: run from the last step to the first.

    Returns (outputs [time, batch, dim], hidden, cell).
    """
    return _lstm_forward(projected, hidden, cell, w_hidden, lengths, starts, reverse)[0]


def _lstm_forward(projected, hidden, cell, w_hidden, lengths, starts, reverse):
    valid = _mask(lengths, projected.shape[0])

    def step(carry, inputs):
        gates, valid, starts = inputs
        hidden, cell = (_start(starts, state) for state in carry)
        i, f, g, o = jnp.split(gates + product(hidden, w_hidden, (1,), (0,)), 4, axis=-1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        new_cell = f * cell + i * g
        new_hidden = o * jnp.tanh(new_cell)
        hidden, cell = _hold(valid, new_hidden, hidden), _hold(valid, new_cell, cell)
        return (hidden, cell), (hidden, cell, jnp.concatenate([i, f, g, o], -1))

    (last_hidden, last_cell), (hiddens, cells, gates) = lax.scan(
        step, (hidden, cell), (projected, valid, starts), reverse=reverse
    )
    outputs = _hold(valid, hiddens, jnp.zeros_like(hiddens))
    saved = (hidden, cell, w_hidden, valid, starts, hiddens, cells, gates)
    return (outputs, last_hidden, last_cell), saved


def _lstm_backward(reverse, saved, gradients):
    hidden, cell, w_hidden, valid, starts, hiddens, cells, gates = saved
    d_outputs, d_hidden, d_cell = gradients
    w_back = lax.optimization_barrier(w_hidden.T)  # once, not at every step
    before = _previous(cell, cells, starts, reverse)

    def step(carry, inputs):
        d_hidden, d_cell = carry
        d_output, cell, previous, gates, valid, starts = inputs
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        d_new_hidden = d_hidden + d_output
        squashed = jnp.tanh(cell)
        d_new_cell = d_cell + d_new_hidden * o * (1 - squashed * squashed)
        d_gates = jnp.concatenate(
            [
                d_new_cell * g * i * (1 - i),
                d_new_cell * previous * f * (1 - f),
                d_new_cell * i * (1 - g * g),
                d_new_hidden * squashed * o * (1 - o),
            ],
            -1,
        )
        d_gates = _hold(valid, d_gates, jnp.zeros_like(d_gates))
        back = product(d_gates, w_back, (1,), (0,))
        back = _hold(valid, back, d_hidden), _hold(valid, d_new_cell * f, d_cell)
        return tuple(_start(starts, one) for one in back), d_gates

    inputs = (d_outputs, cells, before, gates, valid, starts)
    (d_hidden, d_cell), d_gates = lax.scan(step, (d_hidden, d_cell), inputs, reverse=not reverse)
    d_weight = kernel_gradient(_previous(hidden, hiddens, starts, reverse), d_gates)
    return d_gates, d_hidden, d_cell, d_weight, None, None


_lstm_scan.defvjp(_lstm_forward, _lstm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _gru_scan(projected, hidden, w_hidden, bias, lengths, starts, reverse):
    """Runs a GRU over its projected inputs.

    Args:
        projected: [time, batch, 3·dim], input·w_input + bias.
        hidden: [batch, dim].
        w_hidden: [dim, 3·dim].
        bias: [dim], added to the candidate's hidden part.
        lengths: [batch] or None.
        starts: [time, batch, 1] or None; True where the state is 0 before the step.
        reverse: run from the last step to the first.

    Returns (outputs [time, batch, dim], hidden).
    """
    return _gru_forward(projected, hidden, w_hidden, bias, lengths, starts, reverse)[0]


def _gru_forward(projected, hidden, w_hidden, bias, lengths, starts, reverse):
    valid = _mask(lengths, projected.shape[0])
    dim = w_hidden.shape[0]

    def step(hidden, inputs):
        gates, valid, starts = inputs
        hidden = _start(starts, hidden)
        recurrent = product(hidden, w_hidden, (1,), (0,))
        r, z = jnp.split(jax.nn.sigmoid(gates[:, : 2 * dim] + recurrent[:, : 2 * dim]), 2, -1)
        inner = recurrent[:, 2 * dim :] + bias
        candidate = jnp.tanh(gates[:, 2 * dim :] + r * inner)
        hidden = _hold(valid, candidate + z * (hidden - candidate), hidden)
        return hidden, (hidden, jnp.concatenate([r, z, candidate, inner], -1))

    last, (hiddens, gates) = lax.scan(step, hidden, (projected, valid, starts), reverse=reverse)
    outputs = _hold(valid, hiddens, jnp.zeros_like(hiddens))
    return (outputs, last), (hidden, w_hidden, valid, starts, hiddens, gates)


def _gru_backward(reverse, saved, gradients):
    hidden, w_hidden, valid, starts, hiddens, gates = saved
    d_outputs, d_hidden = gradients
    w_back = lax.optimization_barrier(w_hidden.T)
    before = _previous(hidden, hiddens, starts, reverse)

    def step(d_hidden, inputs):
        d_output, previous, gates, valid, starts = inputs
        r, z, candidate, inner = jnp.split(gates, 4, axis=-1)
        d_new = d_hidden + d_output
        d_candidate = d_new * (1 - z) * (1 - candidate * candidate)
        d_r = d_candidate * inner * r * (1 - r)
        d_z = d_new * (previous - candidate) * z * (1 - z)
        d_recurrent = jnp.concatenate([d_r, d_z, d_candidate * r], -1)
        d_recurrent = _hold(valid, d_recurrent, jnp.zeros_like(d_recurrent))
        d_candidate = _hold(valid, d_candidate, jnp.zeros_like(d_candidate))
        back = d_new * z + product(d_recurrent, w_back, (1,), (0,))
        return _start(starts, _hold(valid, back, d_hidden)), (d_recurrent, d_candidate)

    inputs = (d_outputs, before, gates, valid, starts)
    d_hidden, (d_recurrent, d_candidate) = lax.scan(step, d_hidden, inputs, reverse=not reverse)
    dim = w_hidden.shape[0]
    d_projected = jnp.concatenate([d_recurrent[..., : 2 * dim], d_candidate], -1)
    d_weight = kernel_gradient(before, d_recurrent)
    d_bias = d_recurrent[..., 2 * dim :].sum((0, 1), dtype=jnp.float32).astype(hidden.dtype)
    return d_projected, d_hidden, d_weight, d_bias, None, None


_gru_scan.defvjp(_gru_forward, _gru_backward)
