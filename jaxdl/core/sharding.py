"""Where the arrays of a state are placed on the mesh, and how activations are split over it.

Sharding is an ordered list of (path pattern, axes) rules over the whole state. A pattern also
matches the path of the optimizer's state, so that is placed like its parameter.
"""

import math
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxdl.api import Tree, facts_of
from jaxdl.core import config as config_lib
from jaxdl.core.mesh import AXES, BATCH_AXES, replicated
from jaxdl.core.optim import path_name
from jaxdl.errors import UserError

# One entry a dimension (an axis, a tuple of axes or None), or a single axis, or 'largest:AXIS', or
# 'batch': the first dimension is split as the rows of a batch are.
Axes = str | tuple[str | tuple[str, ...] | None, ...]
Rule = tuple[str, Axes]  # (pattern of a path, axes)
# Elements below which splitting an array is not worth a message.
SMALL = 1024


def activations(mesh: config_lib.Mesh) -> tuple:
    """The names of activation dimensions in models, and the mesh axes that split them.

    Of the rules for a name, the first whose axes no other dimension of the array uses is taken. An
    axis of size 1 splits nothing.
    """
    return (
        ('batch', BATCH_AXES),
        ('heads', 'tensor'),
        ('mlp', 'tensor'),
        ('vocab', 'tensor'),
        *((('length', ('context', 'tensor')),) if mesh.sequence else ()),
        ('length', 'context'),
        ('inner', 'context'),  # a length in arrays whose other dimension uses the tensor axis
        ('layers', 'pipe'),
        ('embed', None),
        ('kv', None),
        ('height', None),
        ('width', None),
        ('channels', None),
    )


def check_splits(mesh: jax.sharding.Mesh, model: nn.Module, rules: Sequence[Rule]) -> None:
    """Raises UserError for an axis over which the model cannot be split: it would repeat the work.

    A model lists in `splits` the axes over which it can be split; a user's rule may name any axis.
    """
    able = facts_of(model).splits
    for axis in AXES:
        named = any(axis in _named(axes) for _, axes in rules)
        if axis in ('data', 'fsdp') or axis in able or named or mesh.shape[axis] == 1:
            continue
        raise UserError(
            f'--config.mesh.{axis}={mesh.shape[axis]}: {type(model).__name__} cannot be split over '
            f'{axis!r}; allowed: {", ".join(("data", "fsdp", *able))}'
        )


def _named(axes: Axes | None) -> set[str]:
    if isinstance(axes, str):
        return {axes.removeprefix('largest:')}
    return set().union(*map(_named, axes)) if isinstance(axes, tuple | list) else set()


def default_rules(mesh: jax.sharding.Mesh) -> tuple:
    """The rules that come last: an fsdp axis splits each array along its largest dimension."""
    return (('.*', 'largest:fsdp'),) if mesh.shape['fsdp'] > 1 else ()


def state_shardings(abstract: Tree, rules: Sequence[Rule], mesh: jax.sharding.Mesh) -> Tree:
    """A tree of shardings for `abstract`: the first rule whose pattern matches a leaf's path.

    A rule's axes are a tuple with one entry a dimension (an axis, a tuple of axes or None), or
    'largest:AXIS': split the largest dimension that AXIS divides, or 'batch': split the first
    dimension as the rows of a batch are. Leaves without a rule, or too small to be worth it, are
    replicated.

    Raises:
        UserError: a rule names an axis that does not exist.
    """
    compiled = [(re.compile(pattern), axes) for pattern, axes in (*rules, *default_rules(mesh))]

    def place(path, leaf):
        name = path_name(path)
        for pattern, axes in compiled:
            if pattern.search(name):
                return NamedSharding(mesh, _spec(leaf.shape, axes, mesh))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, abstract)


def split_further(abstract: Tree, shardings: Tree, axis: str, mesh: jax.sharding.Mesh) -> Tree:
    """The shardings, with the largest unsplit dimension of each large array split over `axis`."""

    def place(leaf, sharding):
        spec = [*sharding.spec, *(None,) * (leaf.ndim - len(sharding.spec))]
        fits = [
            d for d in range(leaf.ndim) if not spec[d] and leaf.shape[d] % mesh.shape[axis] == 0
        ]
        if not fits or leaf.size < SMALL:
            return sharding
        spec[max(fits, key=lambda d: leaf.shape[d])] = axis
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, abstract, shardings)


def in_host_memory(abstract: Tree, shardings: Tree) -> Tree:
    """The shardings, with every large array in the memory of its device's host."""
    return jax.tree.map(
        lambda leaf, place: place if leaf.size < SMALL else place.with_memory_kind('pinned_host'),
        abstract,
        shardings,
    )


def to_device_memory(tree: Tree, shardings: Tree) -> Tree:
    """The arrays of `tree` in device memory, wherever `shardings` keep them; called under jit."""
    return jax.tree.map(
        lambda x, place: jax.device_put(x, place.with_memory_kind('device')), tree, shardings
    )


def _spec(shape: tuple[int, ...], axes: Axes, mesh: jax.sharding.Mesh) -> PartitionSpec:
    if axes == 'batch':
        whole = shape and shape[0] % math.prod(mesh.shape[axis] for axis in BATCH_AXES) == 0
        return PartitionSpec(BATCH_AXES) if whole else PartitionSpec()
    if isinstance(axes, str) and axes.startswith('largest:'):
        axis = axes.partition(':')[2]
        _check_axis(axis, mesh)
        size = mesh.shape[axis]
        fits = [d for d in range(len(shape)) if shape[d] % size == 0 and shape[d] >= size]
        if not fits or math.prod(shape) < SMALL:
            return PartitionSpec()
        best = max(fits, key=lambda d: shape[d])
        return PartitionSpec(*(axis if d == best else None for d in range(len(shape))))
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    entries = []
    # The entries of a rule belong to the last dimensions, so that a rule for a matrix also places
    # the same matrix in a stack of layers.
    padding = (None,) * (len(shape) - len(axes))
    for size, entry in zip(shape, (*padding, *axes)[-len(shape) :] if shape else (), strict=True):
        names = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
        for axis in names:
            _check_axis(axis, mesh)
        names = tuple(axis for axis in names if mesh.shape[axis] > 1)
        ways = math.prod(mesh.shape[axis] for axis in names)
        entries.append(names if names and size % ways == 0 else None)
    return PartitionSpec(*entries)


def _check_axis(axis: str, mesh: jax.sharding.Mesh) -> None:
    if axis not in mesh.shape:
        raise UserError(
            f'--config.rules: {axis!r} is no mesh axis; the axes are {", ".join(mesh.shape)}'
        )
