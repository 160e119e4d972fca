"""A fresh state that starts from the weights of another run, whose model may differ.

Leaves are matched by their paths ('Dense_0/kernel', 'batch_stats/norm/mean'), after the renames of
the config. They are read straight onto this run's mesh, so only the fresh values that they replace
are held in memory besides. A leaf that is neither loaded nor skipped by a pattern of the config is
an error, so that no run starts from only some of the weights by accident.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdl.core.config import Checkpoint, InitFrom
from jaxdl.core.optim import path_name
from jaxdl.core.program import Program
from jaxdl.core.step import TrainState
from jaxdl.errors import UserError, nearest
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.record.folder import Workdir


@dataclasses.dataclass
class Match:
    """Which leaves of another run become which leaves of this model.

    Attributes:
        loaded: {leaf of this model: leaf of the other run}.
        skipped: leaves that match a skip pattern: those of this model keep their initialisation,
            those of the other run, marked 'other run: ', are not loaded.
        missing: leaves of this model that the other run does not have.
        unused: leaves of the other run that this model does not have.
        mismatched: {leaf: 'shape there, shape here'}.
    """

    loaded: dict[str, str] = dataclasses.field(default_factory=dict)
    skipped: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)
    mismatched: dict[str, str] = dataclasses.field(default_factory=dict)

    def explained(self) -> bool:
        return not (self.missing or self.unused or self.mismatched)

    def table(self) -> str:
        """One line per leaf; those that need attention come last."""
        rows = [
            ('loaded', name if name == source else f'{name}  (there {source})')
            for name, source in self.loaded.items()
        ]
        rows += [('skipped', name) for name in self.skipped]
        rows += [('missing', f'{name}  (not in the other run)') for name in self.missing]
        rows += [('unused', f'{name}  (not in this model)') for name in self.unused]
        rows += [('mismatched', f'{name}  ({text})') for name, text in self.mismatched.items()]
        return '\n'.join(f'{kind:<10}  {text}' for kind, text in rows)


def match(there: dict[str, Any], here: dict[str, Any], options: InitFrom) -> Match:
    """Matches leaves by name; both are {path: anything with shape and dtype}.

    Raises:
        UserError: two leaves of the other run get the same name.
    """
    found, names = Match(), {}
    for source in there:
        name = source
        for pattern, replacement in options.rename:
            name = re.sub(pattern, replacement, name)
        if name in names:
            raise UserError(
                f'--config.init_from.rename={options.rename}: {names[name]} and {source} would both '
                f'become {name}; make the pattern narrower'
            )
        names[name] = source

    def skip(name: str) -> bool:
        return any(re.search(pattern, name) for pattern in options.skip)

    for name, leaf in here.items():
        source = names.get(name)
        if skip(name):
            found.skipped.append(name)
        elif source is None:
            found.missing.append(name)
        elif _text(there[source]) != _text(leaf):
            found.mismatched[name] = f'{_text(there[source])} there, {_text(leaf)} here'
        else:
            found.loaded[name] = source
    for name, source in names.items():
        if name not in here:
            if skip(name):
                found.skipped.append(f'other run: {source}')
            else:
                found.unused.append(source)
    return found


def load(
    options: InitFrom, program: Program, state: TrainState, hyper: dict
) -> tuple[TrainState, str]:
    """The fresh `state` with the weights of another run, and a table of the leaves.

    The parameters and the model's other variables (running statistics) are taken, averaged if the
    other run averages: those that its evaluation uses. Step and optimizer start anew.

    Raises:
        UserError: there is no such run or checkpoint, or a leaf does not fit and is not skipped.
    """
    folder, step = split(options.path)
    checkpoints = Checkpoints(folder, Checkpoint(), read_only=True)
    steps = checkpoints.steps()
    if not steps or (step is not None and step not in steps):
        listed = f'; its checkpoints are {", ".join(map(str, steps))}' if steps else ''
        raise UserError(
            f'--config.init_from.path={options.path!r}: there is no checkpoint'
            f'{"" if step is None else f" of step {step}"} in {folder}{listed}'
        )
    targets = {
        path_name(path): leaf
        for tree in (program.abstract.params, program.abstract.model_state)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    found = Match()

    def choose(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict:
        nonlocal found
        root = 'ema/' if any(name.startswith('ema/') for name in shapes) else ''
        there = {}
        for part in ('params', 'model_state'):
            prefix = f'{root}{part}/'
            there |= {
                name.removeprefix(prefix): (name, leaf)
                for name, leaf in shapes.items()
                if name.startswith(prefix)
            }
        found = match({k: leaf for k, (_, leaf) in there.items()}, targets, options)
        if not found.explained() or not found.loaded:
            raise UserError(_complaint(options, found, targets))
        tree: dict = {}
        for name, source in found.loaded.items():
            _insert(tree, there[source][0], targets[name])
        return tree

    step, tree, _ = checkpoints.restore_part(choose, step=step)
    loaded = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    by_source = {_bare(name): leaf for name, leaf in loaded.items()}

    def take(path, leaf):
        source = found.loaded.get(path_name(path))
        return leaf if source is None else by_source[source]

    params = jax.tree_util.tree_map_with_path(take, state.params)
    model_state = jax.tree_util.tree_map_with_path(take, state.model_state)
    bad = [path_name(p) for p, x in jax.tree_util.tree_leaves_with_path(params) if not _finite(x)]
    if bad:
        raise UserError(
            f'--config.init_from.path={options.path!r}: {bad[0]} of step {step} is not finite; '
            'give an earlier step, DIR:STEP'
        )
    table = f'weights of step {step} of {folder.parent}:\n{found.table()}'
    return program.adopt(state, params, model_state, hyper), table


def split(text: str) -> tuple[Path, int | None]:
    """(checkpoints folder, step) of 'DIR' or 'DIR:STEP'.

    A folder whose name is the whole text takes precedence.

    Raises:
        UserError: there is no such folder.
    """
    path, _, number = text.rpartition(':')
    step = None
    if path and number.isdecimal() and not Path(text).is_dir():
        text, step = path, int(number)
    place = Workdir(text)
    if not place.path.is_dir():
        near = [p.name for p in place.path.parent.iterdir()] if place.path.parent.is_dir() else []
        raise UserError(
            f'--config.init_from.path={text!r}: there is no such folder{nearest(place.path.name, near)}'
            "; it is a run's folder, or DIR:STEP"
        )
    return place.checkpoints, step


def _complaint(options: InitFrom, found: Match, targets: dict) -> str:
    if found.explained():
        return (
            f'--config.init_from.path={options.path!r}: no leaf is loaded; skip={options.skip} '
            'leaves out all of them'
        )
    counts = {
        'missing there': found.missing,
        'unused here': found.unused,
        'of another shape': list(found.mismatched),
    }
    words = ', '.join(
        f'{len(names)} {kind} ({", ".join(names[:3])}{", …" if len(names) > 3 else ""})'
        for kind, names in counts.items()
        if names
    )
    print(found.table(), flush=True)
    first = next(name for names in counts.values() for name in names)
    hint = nearest(first, targets) if first in found.unused else ''
    return (
        f'--config.init_from.path={options.path!r} does not fit this model: {words}{hint}.\n'
        "Explain each: init_from.rename=(('pattern there', 'name here'),), or "
        f"init_from.skip=('{re.escape(first.rsplit('/', 1)[0])}',) to keep the fresh values"
    )


def _insert(tree: dict, name: str, leaf: Any) -> None:
    *folders, last = name.split('/')
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[last] = leaf


def _bare(name: str) -> str:
    """'ema/params/a/b' and 'params/a/b' → 'a/b'."""
    parts = name.removeprefix('ema/').split('/', 1)
    return parts[1]


def _text(leaf: Any) -> str:
    return f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'


def _finite(leaf: jax.Array) -> bool:
    return not jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) or bool(
        jax.numpy.isfinite(leaf).all()
    )
