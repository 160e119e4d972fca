"""One config compiled for one mesh: the abstract state with its shardings, init, train, eval.

The trainer runs it, `evaluate` uses its half, `plan` compiles it without devices.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxdl import parallel
from jaxdl.config import Config
from jaxdl.errors import UserError
from jaxdl.models.layers import batch_axis
from jaxdl.optim import path_name
from jaxdl.step import Packing, Steps, TrainState, hyper_parameters

# Logical activation axes of the models → mesh axes. An axis of size 1 splits nothing.
ACTIVATIONS = (
    ('batch', parallel.BATCH_AXES),
    ('length', 'context'),
    ('embed', None),
    ('mlp', 'tensor'),
    ('heads', 'tensor'),
    ('kv', None),
    ('vocab', 'tensor'),
    ('height', None),
    ('width', None),
    ('channels', None),
)


class Program:
    """The compiled functions of one run.

    Args:
        config: the run.
        mesh: its devices.
        example: one row of the training set, {name: array}; only shapes and dtypes count.
    """

    def __init__(self, config: Config, mesh: jax.sharding.Mesh, example: dict[str, np.ndarray]):
        self.config = config
        self.mesh = mesh
        self.steps = Steps(config, axis='data' if config.compile == 'pmap' else None)
        self.hyper = hyper_parameters(config)
        self.example = example
        # Batch statistics and shapes do not depend on the size of the batch used to initialise.
        self._init_batch = {
            name: jax.ShapeDtypeStruct((2, *np.shape(value)), np.asarray(value).dtype)
            for name, value in example.items()
        }
        self._plain = Steps(config)  # shapes are traced outside pmap, where no axis is bound
        try:
            shapes = self._scoped(jax.eval_shape)(self._plain.init, self._init_batch, self.hyper)
        except ValueError as error:
            rows = ', '.join(
                f'{k} {v.dtype}{list(v.shape[1:])}' for k, v in self._init_batch.items()
            )
            raise UserError(f'the model cannot take this data ({rows}): {error}') from error
        self.shardings = parallel.state_shardings(shapes, config.rules, mesh)
        self.abstract: TrainState = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            self.shardings,
        )
        self.traces: list[str] = []
        self._train_jaxpr: Any = None

    def _scoped(self, function: Callable) -> Callable:
        """Runs `function` (which traces) where models find the mesh and the logical axes."""

        def scoped(*args, **kwargs):
            with jax.set_mesh(self.mesh), nn.logical_axis_rules(ACTIVATIONS):
                return function(*args, **kwargs)

        return scoped

    def place_hyper(self) -> dict[str, jax.Array]:
        return parallel.put(self.hyper, parallel.replicated(self.mesh))

    def init(self, rows: dict[str, np.ndarray]) -> TrainState:
        """A fresh state, each device making only its own part.

        `rows` are real training examples, the same on every process: some models compute a first
        layer from them. Where none does, the compiler drops the whole forward pass.
        """
        jitted = jax.jit(self._plain.init, out_shardings=self.shardings)
        return self._scoped(jitted)(rows, self.hyper)

    def packing(self, function: Callable, batch: Any, resident: Any) -> Packing:
        """The names and shapes of the metrics that `function` of Steps returns."""
        found = self._scoped(jax.eval_shape)(
            function, self.abstract, batch, _abstract(resident), self.hyper
        )
        return Packing.of(found[1] if isinstance(found, tuple) else found)

    def compile_train(self, batch: dict, resident: dict) -> tuple[Callable, Packing]:
        """(state, batch, resident, hyper) → (state, packed); the state is given away.

        With steps_per_call = k the batch and the packed metrics have a first axis of k.
        """
        packing = self.packing(self._plain.train_metrics, batch, resident)
        calls = self.config.steps_per_call
        make = self.steps.train_step if calls == 1 else self.steps.train_steps
        if calls > 1:
            place = parallel.batch_sharding(self.mesh, leading=1)
            batch = {
                k: jax.ShapeDtypeStruct((calls, *v.shape), v.dtype, sharding=place)
                for k, v in batch.items()
            }
        return self._compile(make(packing), batch, resident, train=True), packing

    def train_jaxpr(self, batch: dict, resident: dict) -> Any:
        """The jaxpr of a call of the compiled training step, on all devices together."""
        if self._train_jaxpr is not None:
            return self._train_jaxpr
        count = self._scoped(jax.make_jaxpr(self._plain.train_metrics))  # what pmap compiles
        return count(self.abstract, batch, _abstract(resident), self.hyper)

    def compile_eval(self, batch: dict, resident: dict) -> tuple[Callable, Packing]:
        """(state, batch, resident, hyper) → packed."""
        packing = self.packing(self._plain.eval_metrics, batch, resident)
        return self._compile(self.steps.eval_step(packing), batch, resident, train=False), packing

    def preview(self, rows: dict) -> dict:
        """The task's pictures of augmented rows, {name: uint8 [rows, height, width, channels]}."""
        task = self.config.task

        def show(rows, seed):
            return task.preview(task.augment(rows, jax.random.fold_in(jax.random.key(seed), 2)))

        return jax.device_get(jax.jit(show)(rows, self.hyper['seed']))

    def blame(self, state: TrainState, batch: dict, resident: dict, hyper: dict) -> list:
        """[(leaf, whether it is finite)] for the metrics, gradients and statistics of one step."""
        found = self._scoped(jax.jit(self._plain.blame))(state, batch, resident, hyper)
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(found))
        return [(path_name(path), bool(good)) for path, good in leaves]

    def _compile(self, function: Callable, batch: dict, resident: dict, *, train: bool) -> Callable:
        name = function.__name__

        def traced(*args):
            self.traces.append(name)
            return function(*args)

        traced.__name__ = name
        if self.config.compile == 'pmap':
            inner = traced

            def traced(*args):
                with batch_axis('data'):  # BatchNorm shares its statistics over the devices
                    return inner(*args)

            return parallel.compile_pmap(
                traced,
                donate=train,
                mesh=self.mesh,
                stacked=train and self.config.steps_per_call > 1,
            )
        everywhere = parallel.replicated(self.mesh)
        out = (self.shardings, everywhere) if train else everywhere
        hyper = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=everywhere), self.hyper
        )
        arguments = (self.abstract, batch, _abstract(resident), hyper)

        def look(jaxpr):
            self._train_jaxpr = jaxpr if train else self._train_jaxpr

        return self._scoped(parallel.compile_step)(
            traced, arguments, out, donate=train, mesh=self.mesh, look=look
        )


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None)),
        tree,
    )
