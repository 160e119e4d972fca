"""How the work inside a model is spread over devices, as the layers see it.

A layer names the dimensions of its activations ('batch', 'length', 'heads', 'layers', …). Whoever
wraps the step says which mesh axes split each name, by Flax's logical axis rules, and chooses
between ways of splitting by a `Layout`. Outside of both, and on one device, nothing is split.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator

import flax.linen as nn
import jax
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import AxisType


@dataclasses.dataclass(frozen=True)
class Layout:
    """Choices between ways of splitting that give the same results.

    Attributes:
        pipe_parts: micro-batches that are under way in a pipeline, at most; 0: four a stage.
        context_by: how attention over a split sequence is computed: 'ring', 'heads' or 'auto'.
    """

    pipe_parts: int = 0
    context_by: str = 'auto'


_layout: contextvars.ContextVar[Layout] = contextvars.ContextVar('layout', default=Layout())  # noqa: B039 (frozen)


@contextlib.contextmanager
def use(layout: Layout) -> Iterator[None]:
    """Programs traced inside are split as `layout` says."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def current() -> Layout:
    return _layout.get()


def sizes() -> dict[str, int]:
    """The mesh axes that can still be split over here: {axis: size}, without those of size 1."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    return {
        axis: mesh.shape[axis]
        for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto and mesh.shape[axis] > 1
    }


def axes(*names: str) -> tuple[tuple[str, ...], ...]:
    """For each dimension of an activation with these names, the mesh axes that split it."""
    rules = nn.get_logical_axis_rules()
    there = sizes()
    if not rules or not there:
        return ((),) * len(names)
    spec = logical_to_mesh_axes(names, rules)
    entries = ((e,) if isinstance(e, str) else tuple(e or ()) for e in spec or ())
    return tuple(tuple(axis for axis in entry if axis in there) for entry in entries)


def ways(split: tuple[str, ...]) -> int:
    """Into how many parts these mesh axes split a dimension."""
    there = sizes()
    return math.prod(there[axis] for axis in split)


@contextlib.contextmanager
def manual(*done: str) -> Iterator[None]:
    """Inside shard_map over the mesh axes `done`: no activation is split over them any more."""

    def rest(entry):
        left = tuple(axis for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis)
        left = tuple(axis for axis in left if axis not in done)
        return left[0] if len(left) == 1 else left or None

    rules = [(name, rest(entry)) for name, entry in nn.get_logical_axis_rules()]
    with nn.logical_axis_rules(rules):
        yield
