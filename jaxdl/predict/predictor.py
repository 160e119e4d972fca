"""A trained run as a function: files or arrays in, predictions out."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from jaxdl.api import Inputs, Rows, Source
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.feed import Feed
from jaxdl.core.ranges import bounds_of
from jaxdl.data.arrays import ArraySource
from jaxdl.errors import UserError, nearest
from jaxdl.metrics import Mean
from jaxdl.models.applied import Applied
from jaxdl.run.open_run import Restored, open_run

NAMES = 'input'  # the key of the inputs' names among the predictions


class Predictor:
    """The model of a run with its newest good weights, averaged if the run averages them.

    Args:
        run: the opened run.

    Attributes:
        config: the run's config.
        step: the step of the checkpoint.
        class_names: the names of the labels in order; () if they have none.
        row: one row of the training set; only shapes and dtypes count.
        weights: the 'params' and 'model_state'.
    """

    def __init__(self, run: Restored):
        self.config, self.step, self.class_names = run.config, run.step, run.class_names
        self._program, self.row = run.program, run.program.example
        self.weights = run.state.evaluated()
        self._apply = jax.jit(self._predictions)
        if not self.config.task.defines('predictions'):
            self.config.task.predictions(None, {})  # says so

    def predict(self, given: Any) -> dict[str, np.ndarray]:
        """The predictions of the run's task, {name: [inputs, …]}, and 'input' if they have names.

        For a classifier these are 'label' (a number; `class_names` has its name), 'probability' and
        'probabilities' of all classes; for a language model the 'loss' of each text in nats a token.

        Args:
            given: a path of a picture, a folder of pictures, a text file with one text a line, a
                folder of text files or a .npz file; or a list of paths, of texts or of pairs; or an
                array [inputs, …], or a dict of such arrays by the names of a row.

        Raises:
            UserError: it is nothing that the run's data set or model takes.
        """
        inputs = self._inputs(given)
        found = self.over(inputs.source, inputs.owner)
        names = np.array(list(inputs.names), object)
        return {NAMES: names, **found} if len(names) else found

    def over(self, source: Source, owner: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The predictions of all rows of a source; `owner` is that of jaxdl.api.Inputs."""
        return {
            name: _divided(*value) if isinstance(value, tuple) else value
            for name, value in self.sums(source, owner).items()
        }

    def sums(self, source: Source, owner: np.ndarray | None = None) -> dict[str, Any]:
        """As `over`, with a Mean as the pair (totals, weights), float64 [inputs]."""
        feed, parts = self._feed(source), []
        absent = self.row.keys() - feed.example.keys()
        if absent and (missing := absent & self.needed.keys()):
            raise UserError(f'{self._needs()}; {", ".join(sorted(missing))} is missing')
        with self._program.scope():
            for batch in feed.evaluation(ahead=self.config.prefetch):
                parts.append(self._apply(self.weights, batch))
                for leaf in jax.tree.leaves(parts[-1]):
                    leaf.copy_to_host_async()
                if len(parts) > 2:
                    parts[-3] = jax.device_get(parts[-3])
        found = {}
        # Single numbers first, as a reader of a table wants them; jit has sorted the names.
        for name in sorted(parts[0], key=lambda name: jax.tree.leaves(parts[0][name])[0].ndim):
            column = [jax.device_get(part[name]) for part in parts]
            if isinstance(column[0], Mean):
                pairs = ([m.total for m in column], [m.weight for m in column])
                found[name] = tuple(
                    _added(np.concatenate(x)[: len(source)].astype(np.float64), owner)
                    for x in pairs
                )
            else:
                found[name] = _added(np.concatenate(column)[: len(source)], owner)
        return found

    # ---- the compiled function ----

    def _predictions(self, weights: dict, batch: dict) -> dict[str, Any]:
        size = next(iter(batch.values())).shape[0]
        for name in self.row.keys() - batch.keys():  # the task may read what it does not use
            like = np.asarray(self.row[name])
            batch = {**batch, name: jnp.zeros((size, *like.shape), like.dtype)}
        apply = Applied(self.config.model, weights['params'], weights['model_state'])
        outputs = apply(**self.config.task.inputs(batch), train=False)
        return self.config.task.predictions(outputs, batch)

    def function(self, weights: dict, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """The predictions of a batch of rows, with Means divided; to be traced."""
        found = self._predictions(weights, batch)
        return {k: v.value() if isinstance(v, Mean) else v for k, v in found.items()}

    @functools.cached_property
    def needed(self) -> Rows:
        """The arrays of a row that the predictions depend on, in the order of their names."""
        batch = {
            name: jax.ShapeDtypeStruct((2, *np.shape(value)), np.asarray(value).dtype)
            for name, value in self.row.items()
        }
        with self._program.scope():
            jaxpr = jax.make_jaxpr(self._predictions)(self.weights, batch).jaxpr
        _, used = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
        read = used[len(jax.tree.leaves(self.weights)) :]
        names = [name for name, is_read in zip(sorted(batch), read, strict=True) if is_read]
        return {name: np.asarray(self.row[name]) for name in names}

    def _needs(self) -> str:
        shapes = ', '.join(f'{n} {v.dtype}{["n", *v.shape]}' for n, v in self.needed.items())
        return f'the model needs {shapes}'.replace("'n'", 'n')

    # ---- inputs ----

    def _feed(self, source: Source) -> Feed:
        """Batches of one size, at most that of the run's evaluation; fewer rows make smaller ones."""
        mesh = self._program.mesh
        unit = mesh_lib.batch_shards(mesh)
        most = self.config.eval_batch_size or self.config.batch_size
        size = min(most, 1 << max(len(source) - 1, 0).bit_length())
        size = -(-size // unit) * unit
        bounds = bounds_of(self.config)
        return Feed(source, size, mesh, placement='stream', ranges=bounds, name='the input')

    def _inputs(self, given: Any) -> Inputs:
        if isinstance(given, str | os.PathLike) and os.fspath(given).endswith('.npz'):
            given = self._read(os.fspath(given))
        if hasattr(given, 'shape') and getattr(given, 'dtype', np.dtype('O')).kind in 'biuf':
            if len(self.needed) != 1:
                raise UserError(f'{self._needs()}; give them as a dict')
            given = {next(iter(self.needed)): np.asarray(given)}
        if isinstance(given, dict):
            return Inputs(ArraySource(self._checked(given)))
        if isinstance(given, str | os.PathLike) and not os.path.exists(given):
            folder, name = os.path.split(os.fspath(given))
            there = os.listdir(folder or '.') if os.path.isdir(folder or '.') else []
            raise UserError(f'{given}: there is no such file or folder{nearest(name, there)}')
        return self.config.data.inputs_from(given, self.row)

    def _read(self, path: str) -> dict[str, np.ndarray]:
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError) as error:
            raise UserError(f'{path}: no .npz file that can be read ({error})') from None

    def _checked(self, given: dict[str, Any]) -> Rows:
        """The arrays that are needed, in the shapes and dtypes of a row."""
        rows = {}
        for name, like in self.needed.items():
            if name not in given:
                raise UserError(
                    f'{self._needs()}; given are {", ".join(map(str, given)) or "none"}'
                )
            array = np.asarray(given[name])
            if array.ndim == like.ndim and array.shape[1:] == like.shape[:-1]:
                array = array[..., None] if like.shape[-1:] == (1,) else array
            integers = array.dtype.kind in 'iu' and like.dtype.kind in 'iu'
            if array.shape[1:] != like.shape or not len(array):
                raise UserError(f'{self._needs()}; given is {name} {list(array.shape)}')
            fits = array.dtype.kind == like.dtype.kind or integers
            if not fits or (integers and not np.array_equal(array.astype(like.dtype), array)):
                raise UserError(
                    f'{self._needs()}; given is {name} {array.dtype}'
                    f'{f" from {array.min()} to {array.max()}" if array.size else ""}'
                )
            rows[name] = array.astype(like.dtype)
        if len({len(array) for array in rows.values()}) > 1:
            sizes = ', '.join(f'{name} {len(array)}' for name, array in rows.items())
            raise UserError(f'the arrays have different lengths: {sizes}')
        return rows


def _divided(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """total / weight as float32, and nan where nothing was counted."""
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0).astype(
        np.float32
    )


def _added(values: np.ndarray, owner: np.ndarray | None) -> np.ndarray:
    """The sums over the rows of each input."""
    if owner is None:
        return values
    found = np.zeros((int(owner.max()) + 1, *values.shape[1:]), values.dtype)
    np.add.at(found, owner, values)
    return found


def load(workdir: str | os.PathLike, *, step: int | None = None, config: str = '') -> Predictor:
    """The trained model of a run's folder; see Predictor. No training data is needed.

    Args:
        workdir: the run's folder.
        step: the checkpoint; the newest good one unless given.
        config: 'FILE[:variant]', the config file whose classes the run may use; it is run.

    Raises:
        UserError: there is no run or no good checkpoint, or its task predicts nothing.
    """
    return Predictor(open_run(os.fspath(workdir), step=step, config_file=config, data=False))


def named(found: dict[str, np.ndarray], class_names: Sequence[str]) -> dict[str, np.ndarray]:
    """The predictions with each integer 'label' replaced by the name of its class."""
    names = np.array(class_names, object)
    return {
        key: names[value]
        if key == 'label' and 0 < value.max(initial=0) + 1 <= len(names)
        else value
        for key, value in found.items()
    }
