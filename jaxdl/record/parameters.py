"""The number of a model's parameters, and a table of them."""

import re
from typing import Any

import numpy as np

from jaxdl.record.terminal import columns


def count_parameters(params: Any) -> int:
    """The number of values in a tree of arrays (or of their shapes)."""
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(params))


def parameter_table(params: Any, *, max_rows: int = 35) -> str:
    """A text table of a tree's arrays: path, shape, dtype, count, mean, standard deviation.

    A tree with more than `max_rows` arrays is summed up per layer or group of layers. Leaves may be
    jax.ShapeDtypeStruct; mean and standard deviation are left out then. In a run of several
    processes all of them must call this, as the statistics are computed where the arrays are.
    """
    import jax

    paths, leaves = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        paths.append(jax.tree_util.keystr(path, simple=True, separator='/').split('/'))
        leaves.append(leaf)
    groups: dict[str, list[int]] = {}
    for depth in range(max(map(len, paths), default=0), 0, -1):
        groups = {}
        for index, path in enumerate(paths):
            groups.setdefault('/'.join(path[:depth]), []).append(index)
        if len(groups) <= max_rows:
            break
    names = sorted(groups, key=_natural)
    if len(names) > max_rows:
        merged = names[max_rows - 1 :]
        rest = f'({len(merged)} more)'
        groups[rest] = [index for name in merged for index in groups[name]]
        names[max_rows - 1 :] = [rest]
    moments = _moments(leaves)
    rows = [['parameter', 'shape', 'dtype', 'count', 'mean', 'std']]
    for name in names:
        members = [leaves[index] for index in groups[name]]
        shape = ' × '.join(map(str, members[0].shape)) or 'scalar'
        dtypes = {str(leaf.dtype) for leaf in members}
        count = sum(leaf.size for leaf in members)
        mean = std = ''
        if moments is not None and count:
            total, squares = np.sum([moments[index] for index in groups[name]], axis=0)
            mean = f'{total / count:.3g}'
            std = f'{np.sqrt(max(squares / count - (total / count) ** 2, 0)):.3g}'
        rows.append([
            name,
            shape if len(members) == 1 else f'{len(members)} arrays',
            dtypes.pop() if len(dtypes) == 1 else 'mixed',
            f'{count:,}', mean, std,
        ])  # fmt: skip
    rows.append(['total', f'{len(leaves)} arrays', '', f'{count_parameters(leaves):,}', '', ''])
    if moments is None:
        rows = [row[:4] for row in rows]
    head, *lines, total = columns(rows, right=(3, 4, 5))
    rule = '-' * max(map(len, [head, *lines, total]))
    return '\n'.join([head, rule, *lines, rule, total])


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts block2 before block10."""
    return [(int(t) if t.isdecimal() else 0, t) for t in re.split(r'(\d+)', name)]


def _moments(leaves: list) -> list[tuple[float, float]] | None:
    """(sum, sum of squares) of every array, or None where they are only shapes."""
    import jax
    import jax.numpy as jnp

    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return None
    size = sum(leaf.size for leaf in leaves)
    if size < 20_000_000 and all(getattr(leaf, 'is_fully_addressable', True) for leaf in leaves):
        # Computed on the host: nothing is compiled, and copying a small model takes milliseconds.
        arrays = [np.asarray(leaf, np.float32).ravel() for leaf in leaves]
        return [(float(a.sum(dtype=np.float64)), float(np.dot(a, a))) for a in arrays]

    @jax.jit
    def sums(arrays):
        arrays = [a.astype(jnp.float32) for a in arrays]
        return [(a.sum(), (a * a).sum()) for a in arrays]

    return [(float(a), float(b)) for a, b in jax.device_get(sums(leaves))]
