"""Bounds of a function over a box of inputs, by interval arithmetic (IBP, arXiv:1810.12715).

The program of the function is followed operation by operation, so any network of products,
convolutions, sums, ReLU and pooling has bounds, with its normalisation too where that is an affine
map, as BatchNorm is in evaluation. They are sound up to the rounding of float32.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from jaxdl.errors import UserError


class Interval(NamedTuple):
    low: jax.Array
    high: jax.Array


def bounds(function: Callable[[Any], jax.Array], low: jax.Array, high: jax.Array) -> Interval:
    """Arrays between which function(x) is for every x with low <= x <= high.

    Raises:
        UserError: the function uses an operation for which there is no rule.
    """
    closed = jax.make_jaxpr(function)(low)
    (found,) = _follow(closed.jaxpr, closed.consts, [Interval(low, high)])
    return found if isinstance(found, Interval) else Interval(found, found)


# Operations that grow, or stay, with each of their operands.
RISING = frozenset(
    'add add_any max min concatenate pad clamp exp log tanh logistic erf sqrt floor ceil sign round '
    'convert_element_type reduce_precision reshape transpose broadcast_in_dim squeeze slice rev copy '
    'reduce_sum reduce_max reduce_min reduce_window_sum reduce_window_max cumsum name '
    'optimization_barrier sharding_constraint'.split()
)
# Operations linear in each of their two operands.
BILINEAR = frozenset(('dot_general', 'conv_general_dilated'))


def _follow(jaxpr: Any, consts: Sequence, inputs: Sequence) -> list:
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

    def read(variable):
        return variable.val if isinstance(variable, jex_core.Literal) else known[variable]

    for equation in jaxpr.eqns:
        values = [read(variable) for variable in equation.invars]
        inner = next((equation.params[n] for n in _INNER if n in equation.params), None)
        if inner is not None and equation.primitive.name not in ('scan', 'while', 'cond'):
            body, own = getattr(inner, 'jaxpr', inner), getattr(inner, 'consts', ())
            found = _follow(body, own, values)
        elif any(isinstance(value, Interval) for value in values):
            found = _step(equation, values)
        else:
            found = equation.primitive.bind(*values, **equation.params)
            found = found if equation.primitive.multiple_results else [found]
        known.update(zip(equation.outvars, found, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


_INNER = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')


def _is_bilinear(equation: Any) -> bool:
    foreign = equation.primitive.name == 'ffi_call' and dict(equation.params['attributes'])
    return equation.primitive.name in BILINEAR or bool(foreign and 'conv_flops' in foreign)


def _step(equation: Any, values: list) -> list:
    """The intervals of the results of one operation."""
    name = equation.primitive.name

    def bind(*operands):
        found = equation.primitive.bind(*operands, **equation.params)
        return found if equation.primitive.multiple_results else [found]

    lows = [v.low if isinstance(v, Interval) else v for v in values]
    highs = [v.high if isinstance(v, Interval) else v for v in values]
    if name in RISING or (name == 'select_n' and not isinstance(values[0], Interval)):
        return [Interval(*pair) for pair in zip(bind(*lows), bind(*highs), strict=True)]
    if name == 'neg':
        return [Interval(-highs[0], -lows[0])]
    if name == 'sub':
        return [Interval(lows[0] - highs[1], highs[0] - lows[1])]
    if name == 'mul' or (name == 'div' and not isinstance(values[1], Interval)):
        ends = [bind(a, b)[0] for a in (lows[0], highs[0]) for b in (lows[1], highs[1])]
        return [Interval(jnp.stack(ends).min(0), jnp.stack(ends).max(0))]
    if _is_bilinear(equation) and sum(isinstance(v, Interval) for v in values) == 1:
        middle = bind(*((a + b) / 2 for a, b in zip(lows, highs, strict=True)))[0]
        reach = bind(
            *((v.high - v.low) / 2 if isinstance(v, Interval) else jnp.abs(v) for v in values)
        )[0]
        return [Interval(middle - reach, middle + reach)]
    raise UserError(
        f'--config.task.certify=True: there is no rule for the operation {name!r} on intervals; '
        'networks of dense layers, convolutions, ReLU, pooling and BatchNorm have a certificate'
    )
