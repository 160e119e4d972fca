"""Counts the floating-point operations of a function by walking its jaxpr.

The compiler's own count (`compiled.cost_analysis()`) counts the body of a scan once, whatever its
length, does not know fused kernels, and depends on the backend. This one multiplies by the number
of iterations and is the same everywhere. A multiply-add counts as two operations, as in papers.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core as jex_core
from jax.interpreters import partial_eval


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations, a multiply-add counted as two.

    Attributes:
        matmul: matrix products (dot_general), attention written as products included.
        conv: convolutions; padding counts as work, holes made by dilation do not.
        attention: fused attention kernels, forward and backward.
        other: everything element-wise (one per output element) and reductions (one per input).
        remat: products recomputed in the backward pass because of rematerialisation; not included
            in the three above.
        by_dtype: products (remat included) by the type of their operands, e.g. 'bfloat16'.
        notes: what the count had to assume, e.g. a while loop of unknown length.
    """

    matmul: float = 0.0
    conv: float = 0.0
    attention: float = 0.0
    other: float = 0.0
    remat: float = 0.0
    by_dtype: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> float:
        """Products without recomputed ones: the numerator of MFU (PaLM, arXiv:2204.02311)."""
        return self.matmul + self.conv + self.attention

    @property
    def hardware(self) -> float:
        """Products including recomputed ones: the numerator of HFU."""
        return self.model + self.remat

    def scaled(self, factor: float) -> 'Flops':
        """The same work done `factor` times."""
        return Flops(
            self.matmul * factor,
            self.conv * factor,
            self.attention * factor,
            self.other * factor,
            self.remat * factor,
            {dtype: flops * factor for dtype, flops in self.by_dtype.items()},
            self.notes,
        )

    def plus(self, other: 'Flops') -> 'Flops':
        """The sum of two counts."""
        dtypes = collections.Counter(self.by_dtype)
        dtypes.update(other.by_dtype)
        return Flops(
            self.matmul + other.matmul,
            self.conv + other.conv,
            self.attention + other.attention,
            self.other + other.other,
            self.remat + other.remat,
            dict(dtypes),
            tuple(dict.fromkeys(self.notes + other.notes)),
        )


def count(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Flops:
    """Counts the operations of `fn(*args)` for arrays or ShapeDtypeStructs, without computing it.

    The count is of the whole program on all devices together. It leaves out work whose result is
    unused, as the compiler does, and work under `jax.named_scope('unlikely')`, which is for cases
    that do not occur in training. Products under `jaxdl.models.ops.counted` count as stated there,
    so that a config has the same count with every formulation of its operations.
    """
    return count_jaxpr(jax.make_jaxpr(fn)(*args, **kwargs))


def count_jaxpr(closed: Any) -> Flops:
    """Counts the operations of a (closed) jaxpr."""
    jaxpr = getattr(closed, 'jaxpr', closed)
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _walk(jaxpr, _Around())


class _Around(NamedTuple):
    """The context of a jaxpr: is it recomputed, and is its scale applied outside?"""

    remat: bool = False
    scaled: bool = False


def _walk(jaxpr: Any, around: _Around) -> Flops:
    total = Flops()
    for eqn in jaxpr.eqns:
        stack = str(eqn.source_info.name_stack)
        if 'unlikely' in stack:
            continue
        # Only this name, which JAX gives it, marks the recomputed part of a checkpointed function.
        remat = around.remat or 'rematted_computation' in stack
        scale = None if around.scaled else re.search(r'flops\*(\d+):(\d+)', stack)
        found = _equation(eqn, _Around(remat, around.scaled or scale is not None))
        if scale:
            factor = int(scale[1]) / int(scale[2])
            found = dataclasses.replace(found.scaled(factor), other=found.other)
        total = total.plus(found)
    return total


def _equation(eqn: Any, around: _Around) -> Flops:
    name = eqn.primitive.name
    params = eqn.params
    if name in _PRODUCTS:
        kind, rule = _PRODUCTS[name]
        return _product(kind, rule(eqn), str(eqn.invars[0].aval.dtype), around.remat)
    for prefix, useful, repeated in _FUSED_ATTENTION:
        if name.startswith(prefix):
            return _fused_attention(eqn, useful, repeated, around.remat)
    if name == 'scan':
        return _inner(params['jaxpr'], around).scaled(params['length'])
    if name == 'while':
        trips = _while_trips(eqn)
        body = _inner(params['body_jaxpr'], around).plus(_inner(params['cond_jaxpr'], around))
        if trips is None:
            if body.hardware + body.other > 4:  # a loop that only counts needs no note
                note = 'a while loop of unknown length is counted as one turn'
                body = body.plus(Flops(notes=(note,)))
            trips = 1
        return body.scaled(trips)
    if name == 'cond':
        branches = [_inner(branch, around) for branch in params['branches']]
        return max(branches, key=lambda flops: (flops.hardware, flops.other))
    if name == 'shard_map':
        # The body is the work of one device along the manual axes only.
        manual = params['newly_manual_axes']
        shards = math.prod(dict(params['mesh'].shape)[axis] for axis in manual)
        return _inner(params['jaxpr'], around).scaled(shards)
    if name == 'pallas_call':
        grid = [size if isinstance(size, int) else 1 for size in params['grid_mapping'].grid]
        return _inner(params['jaxpr'], around).scaled(math.prod(grid))
    if name.startswith('custom_vjp_call') or name.startswith('custom_jvp_call'):
        # Only the function itself counts; derivative rules were inlined where they are used.
        key = next(k for k in ('call_jaxpr', 'jvp_jaxpr', 'fun_jaxpr') if k in params)
        return _inner(params[key], around)
    inner = [_inner(sub, around) for sub in _subjaxprs(params)]
    if inner and name not in _REDUCERS:  # jit, remat, closed_call, custom_partitioning, ...
        total = Flops()
        for flops in inner:
            total = total.plus(flops)
        return total
    if name == 'ffi_call' and 'conv_flops' in dict(params['attributes']):
        out = eqn.outvars[0].aval.shape  # what stands before the last four axes came by vmap
        count = dict(params['attributes'])['conv_flops'] * math.prod(out[:-4])
        return _product('conv', float(count), str(eqn.invars[0].aval.dtype), around.remat)
    if name == 'ffi_call' or name == 'pure_callback':
        target = params.get('target_name', name)
        return Flops(notes=(f'the custom call {target} is not counted',))
    return Flops(other=_elementwise(eqn))


def _inner(jaxpr: Any, around: _Around) -> Flops:
    return _walk(getattr(jaxpr, 'jaxpr', jaxpr), around)


def _subjaxprs(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, jex_core.Jaxpr | jex_core.ClosedJaxpr):
                found.append(item)
    return found


def _product(kind: str, flops: float, dtype: str, remat: bool) -> Flops:
    by_dtype = {dtype: flops}
    if remat:
        return Flops(remat=flops, by_dtype=by_dtype)
    return dataclasses.replace(Flops(by_dtype=by_dtype), **{kind: flops})


def _size(variable: Any) -> int:
    return math.prod(getattr(variable.aval, 'shape', ()))


def _dot_general(eqn: Any) -> float:
    (contracting, _), _ = eqn.params['dimension_numbers']
    depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracting)
    return 2.0 * _size(eqn.outvars[0]) * depth


def _ragged_dot(eqn: Any) -> float:
    # Each row of the left side is multiplied by the matrix of one group only.
    rows, kernels = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    return 2.0 * math.prod(rows) * kernels[-1]


def _conv(eqn: Any) -> float:
    params = eqn.params
    numbers = params['dimension_numbers']
    left, right = (variable.aval.shape for variable in eqn.invars[:2])
    out = eqn.outvars[0].aval.shape
    pairs = 1
    for position in range(len(left) - 2):
        taps = right[numbers.rhs_spec[2 + position]]
        size = out[numbers.out_spec[2 + position]]
        hole = params['lhs_dilation'][position]
        # The gradient of a strided convolution inserts zeros into its input. Only the taps on real
        # elements count, which makes the count equal to that of the forward pass.
        touched = (
            np.arange(size)[:, None] * params['window_strides'][position]
            + np.arange(taps)[None, :] * params['rhs_dilation'][position]
            - params['padding'][position][0]
        )
        pairs *= int(np.count_nonzero(touched % hole == 0))
    batch, features = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    return 2.0 * batch * features * right[numbers.rhs_spec[1]] * pairs


def _fused_attention(eqn: Any, useful: int, repeated: int, remat: bool) -> Flops:
    query, key, value = (variable.aval for variable in eqn.invars[:3])
    if len(query.shape) != 4:
        return Flops(notes=(f'{eqn.primitive.name} of shape {query.shape} is not counted',))
    # cuDNN takes [batch, time, heads, dim] (layout 0) or [batch, heads, time, dim] (layout 1).
    time = 2 if eqn.params.get('layout') == 1 else 1
    batch, heads = query.shape[0], query.shape[3 - time]
    score = 2.0 * batch * heads * query.shape[time] * key.shape[time]
    per_product = score * (query.shape[3] + value.shape[3]) / 2
    counted = _product('attention', useful * per_product, str(query.dtype), remat)
    return counted.plus(_product('attention', repeated * per_product, str(query.dtype), True))


def _while_trips(eqn: Any) -> int | None:
    """Iterations of a loop `while counter < constant: counter += 1`; None for other loops."""
    condition = eqn.params['cond_jaxpr']
    compare = [e for e in condition.jaxpr.eqns if e.primitive.name in ('lt', 'le', 'gt', 'ge')]
    if len(compare) != 1 or condition.jaxpr.eqns[-1] is not compare[0]:
        return None
    init = dict(
        zip(
            condition.jaxpr.invars,
            [
                *eqn.invars[: eqn.params['cond_nconsts']],
                *eqn.invars[eqn.params['cond_nconsts'] + eqn.params['body_nconsts'] :],
            ],
            strict=True,
        )
    )
    left, right = (_literal(init.get(v, v) if _hashable(v) else v) for v in compare[0].invars)
    if left is None or right is None:
        return None
    name = compare[0].primitive.name
    span = right - left if name in ('lt', 'le') else left - right
    return max(0, int(span) + (name in ('le', 'ge')))


def _hashable(variable: Any) -> bool:
    return not isinstance(variable, jex_core.Literal)


def _literal(variable: Any) -> float | None:
    if isinstance(variable, jex_core.Literal) and np.ndim(variable.val) == 0:
        return float(variable.val)
    return None


def _elementwise(eqn: Any) -> float:
    name = eqn.primitive.name
    if name in _MOVERS:
        return 0.0
    if name in _REDUCERS or name.startswith('reduce_') or name.startswith('arg'):
        return float(_size(eqn.invars[0]))
    return float(sum(_size(variable) for variable in eqn.outvars))


_PRODUCTS: dict[str, tuple[str, Callable[[Any], float]]] = {
    'dot_general': ('matmul', _dot_general),
    'ragged_dot': ('matmul', _ragged_dot),
    'ragged_dot_general': ('matmul', _ragged_dot),
    'conv_general_dilated': ('conv', _conv),
}
# The number of [time, dim] by [dim, time] products of a kernel: (prefix, needed, recomputed). The
# backward kernel recomputes the scores before its four products.
_FUSED_ATTENTION = (
    ('dot_product_attention_bwd', 4, 1),
    ('dot_product_attention_fp8_bwd', 4, 1),
    ('dot_product_attention_fwd', 2, 0),
    ('dot_product_attention_fp8_fwd', 2, 0),
)
_REDUCERS = frozenset(
    """
    reduce reduce_window reduce_window_sum reduce_window_max cumsum cumlogsumexp cummax cumprod
    sort scatter scatter-add select_and_scatter_add
    """.split()
)
_MOVERS = frozenset(
    """
    reshape transpose broadcast_in_dim squeeze slice dynamic_slice dynamic_update_slice gather
    concatenate pad rev iota copy copy_p split name sharding_constraint stop_gradient
    convert_element_type bitcast_convert_type device_put pvary mesh_cast layout_constraint
    optimization_barrier psum psum_invariant all_gather reduce_scatter ppermute all_to_all
    axis_index random_wrap random_unwrap random_seed random_fold_in
    """.split()
)
