"""One config compiled for one mesh: the abstract state with its shardings, init, train, eval.

The loop trains with it, `evaluate` uses only the evaluation, `plan` compiles it without devices.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from jaxdl.api import Tree, facts_of
from jaxdl.core import batched_init, sharding
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.compiled_step import compile_pmap, compile_step
from jaxdl.core.config import Config
from jaxdl.core.step import Steps, Traced, TrainState, hyper_parameters
from jaxdl.errors import UserError
from jaxdl.metrics import MetricPacking
from jaxdl.models import layout
from jaxdl.models.layers import batch_axis


class Program:
    """The compiled functions of one run, or of several that differ only in seed and scalars.

    Several runs are lanes of one program: the same functions under vmap, with a lane axis in front
    of the state, the hyper-parameters, each batch and the metrics.

    Args:
        config: the config of the run, or of any lane.
        mesh: the devices.
        example: one row of the training set, {name: array}; only shapes and dtypes count.
        lanes: how many runs; 0: a single one, without the lane axis.

    Attributes:
        abstract: the shapes and shardings of the state of ONE run.
    """

    def __init__(
        self,
        config: Config,
        mesh: jax.sharding.Mesh,
        example: dict[str, np.ndarray],
        *,
        lanes: int = 0,
    ):
        self.config = config
        self.mesh = mesh
        self.lanes = lanes
        self.steps = Steps(config, axis='data' if config.compile == 'pmap' else None)
        self.hyper = hyper_parameters(config)
        self.example = example
        sharding.check_splits(mesh, config.model, config.rules)
        # Two rows are enough: the shapes of the state do not depend on the size of this batch.
        self._init_batch = {
            name: jax.ShapeDtypeStruct((2, *np.shape(value)), np.asarray(value).dtype)
            for name, value in example.items()
        }
        self._plain = Steps(config)  # for tracing outside pmap, where there is no device axis
        try:
            self._init = self._scoped(jax.jit(self._plain.init).trace)(self._init_batch, self.hyper)
        except ValueError as error:
            raise UserError(
                f'the model cannot take this data ({_shapes(example)}): {error}'
            ) from error
        except KeyError as error:
            if error.args and error.args[0] in example:
                raise
            raise UserError(
                f'{type(config.task).__name__} or the model needs {error} in an example; '
                f'there are {", ".join(example)}'
            ) from error
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._init.out_info)
        rules = (*config.rules, *facts_of(config.model).sharding, *config.task.sharding)
        if config.task.sharding and config.compile == 'pmap':
            raise UserError(
                f"--config.compile='pmap': the state of {type(config.task).__name__} is split over "
                "the devices, which pmap's program cannot do; use compile='jit'"
            )
        self.shardings = sharding.state_shardings(shapes, rules, mesh)
        if config.mesh.zero:
            self.shardings = self.shardings.replace(
                opt_state=sharding.split_further(
                    shapes.opt_state, self.shardings.opt_state, 'data', mesh
                )
            )
        place = self.shardings.params
        if config.mesh.zero:
            place = sharding.split_further(shapes.params, place, 'data', mesh)
        if config.compile == 'jit':
            self.steps.place = lambda grads: jax.lax.with_sharding_constraint(grads, place)
        if config.mesh.offload:
            kept = sharding.in_host_memory(shapes.opt_state, self.shardings.opt_state)
            self.shardings = self.shardings.replace(opt_state=kept)
            for steps in (self.steps, self._plain):
                steps.fetch = lambda opt_state: sharding.to_device_memory(opt_state, kept)
        self.abstract: TrainState = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            self.shardings,
        )
        self.traces: list[str] = []
        self._train_jaxpr: ClosedJaxpr | None = None

    def check_example(self, example: dict[str, np.ndarray]) -> None:
        """Raises UserError where the rows are not those that the program was made for."""
        there, here = _shapes(self.example), _shapes(example)
        if there != here:
            raise UserError(
                f'{type(self.config.data).__name__}.example() gives {there}, but a row of the '
                f'training set is {here}; they must have the same arrays'
            )

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Code traced inside this context knows the mesh and how activations are split over it."""
        mesh = self.config.mesh
        chosen = layout.Layout(pipe_parts=mesh.pipe_parts, context_by=mesh.context_by)
        with (
            jax.set_mesh(self.mesh),
            nn.logical_axis_rules(sharding.activations(mesh)),
            layout.use(chosen),
        ):
            yield

    def _scoped(self, function: Callable) -> Callable:
        def scoped(*args, **kwargs):
            with self.scope():
                return function(*args, **kwargs)

        return scoped

    def place_hyper(self, hypers: Sequence[dict] = ()) -> dict[str, jax.Array]:
        """The hyper-parameters on the mesh: those of each lane, or the config's own."""
        hyper = self.hyper
        if self.lanes:
            hyper = jax.tree.map(lambda *values: np.stack(values), *hypers)
        return mesh_lib.put(hyper, mesh_lib.replicated(self.mesh))

    # ---- states ----

    def init(self, rows: dict[str, np.ndarray], hyper: dict | None = None) -> TrainState:
        """A fresh state of one run, each device making only its own part.

        `rows` are real training examples, the same on every process: some models compute their
        first layer from them. Lanes are initialised one by one, so that each gets exactly the
        numbers of a run of its own.
        """
        function, arguments = self._initialiser
        return function(*arguments(rows, self.hyper if hyper is None else hyper))

    @functools.cached_property
    def _initialiser(self) -> tuple[Callable, Callable]:
        """(the jitted initialisation, a function of rows and hyper-parameters to its arguments).

        If no weight depends on the rows, the jaxpr that was traced for the shapes is run without
        its forward pass: tracing and lowering that again would take most of the time.
        """
        whole = self._init.jaxpr
        jaxpr, used = dce_jaxpr(whole.jaxpr, [True] * len(whole.jaxpr.outvars))
        function: Callable = self._plain.init
        arguments: Callable = lambda rows, hyper: (rows, hyper)  # noqa: E731
        if not any(used[: len(self._init_batch)]):
            wanted = used[len(self._init_batch) :]
            closed = ClosedJaxpr(jaxpr, whole.consts)
            # Not on several devices, where the compiler might make the whole stack of layers on
            # each of them, and not on a CPU, where it saves no time.
            devices = self.mesh.devices.flat
            alone = len(devices) == 1 and devices[0].platform == 'gpu'
            values = batched_init.together(closed) if alone else jaxpr_as_fun(closed)
            tree = jax.tree.structure(self.shardings)

            def from_values(inputs):
                return jax.tree.unflatten(tree, values(*inputs))

            def wanted_values(rows, hyper):
                del rows
                leaves = jax.tree.leaves(hyper)
                return ([x for x, need in zip(leaves, wanted, strict=True) if need],)

            function, arguments = from_values, wanted_values
        return self._scoped(jax.jit(function, out_shardings=self.shardings)), arguments

    def adopt(
        self, state: TrainState, params: Tree, model_state: Tree, hyper: dict | None = None
    ) -> TrainState:
        """A fresh state with these weights; the buffers of `state` are freed."""
        # Freed before the new ones are made, so that both are never in memory at once.
        names = ('opt_state', 'ema', 'task_state')
        for leaf in jax.tree.leaves([getattr(state, name) for name in names]):
            leaf.delete()
        places = {name: getattr(self.shardings, name) for name in names}
        jitted = jax.jit(self._plain.rest, out_shardings=places)
        values = self.hyper if hyper is None else hyper
        rest = self._scoped(jitted)(params, model_state, values)
        return state.replace(params=params, model_state=model_state, **rest)

    def join(self, states: Sequence[TrainState]) -> TrainState:
        """The states of all lanes as the one state that the compiled step takes."""
        if not self.lanes:
            return states[0]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def split(self, state: TrainState) -> list[TrainState]:
        """The inverse of `join`: the states of all lanes."""
        if not self.lanes:
            return [state]
        # Copied to the host at once: slicing on the device compiles a program per leaf and lane.
        host = jax.device_get(state)
        return [
            jax.device_put(jax.tree.map(lambda x, i=lane: np.array(x[i]), host), self.shardings)
            for lane in range(self.lanes)
        ]

    def _many(self, tree: Tree) -> Tree:
        """The abstract arrays of one run with the lane axis in front."""
        if not self.lanes:
            return tree
        return jax.tree.map(lambda leaf: mesh_lib.stacked(leaf, self.lanes), tree)

    # ---- compiling ----

    def packing(self, function: Callable, batch: dict, resident: dict) -> MetricPacking:
        """The names and shapes of the metrics that `function` of Steps returns.

        Raises:
            UserError: the task cannot take the outputs of the model.
        """
        try:
            found = self._scoped(jax.eval_shape)(
                function, self.abstract, batch, _abstract(resident), self.hyper
            )
        except ValueError as error:
            raise UserError(f'the model and the task do not fit: {error}') from error
        return MetricPacking.of(found[1] if isinstance(found, tuple) else found)

    def compile_train(self, batch: dict, resident: dict) -> tuple[Callable, MetricPacking]:
        """(state, batch, resident, hyper) → (state, packed); the buffers of the state are donated.

        `batch` is one batch. With steps_per_call = k the step takes k batches and returns k packed
        metrics, both on a new first axis. With lanes, the lane axis comes in front of that.
        """
        calls = self.config.steps_per_call
        make = self.steps.train_step if calls == 1 else self.steps.train_steps
        found = Traced()
        if self.config.compile == 'pmap':  # pmap is traced at its first call
            found.packing = self.packing(self._plain.train_metrics, batch, resident)
        if calls > 1:
            batch = {k: mesh_lib.stacked(v, calls) for k, v in batch.items()}
        function = make(found)
        if self.lanes:
            function = jax.vmap(function, in_axes=(0, 0, None, 0))
        self.batch = self._many(batch)
        try:
            step = self._compile(function, self.batch, resident, train=True)
        except ValueError as error:
            if found.packing is not None:
                raise
            raise UserError(f'the model and the task do not fit: {error}') from error
        assert found.packing is not None
        return step, found.packing

    def train_jaxpr(self, batch: dict, resident: dict) -> ClosedJaxpr:
        """The jaxpr of one call of the training step, on all devices and lanes together."""
        if self._train_jaxpr is not None:
            return self._train_jaxpr
        count = self._scoped(jax.make_jaxpr(self._plain.train_metrics))  # the step without pmap
        return count(self.abstract, batch, _abstract(resident), self.hyper)

    def eval_packing(self, batch: dict, resident: dict) -> MetricPacking:
        """The names and shapes of the metrics of one evaluation batch."""
        return self.packing(self._plain.eval_metrics, batch, resident)

    def compile_eval(self, batch: dict, resident: dict, packing: MetricPacking) -> Callable:
        """(state, batch, resident, hyper) → metrics packed as `eval_packing` says, of each lane."""
        function = self.steps.eval_step(packing)
        if self.lanes:
            function = jax.vmap(function, in_axes=(0, None, None, 0))
        return self._compile(function, batch, resident, train=False)

    @functools.cached_property
    def preview(self) -> Callable:
        """(rows, seed) → the task's pictures of augmented rows.

        They are {name: uint8 [rows, height, width, channels]}.
        """
        task = self.config.task

        def show(rows, seed):
            return task.preview(task.augment(rows, jax.random.fold_in(jax.random.key(seed), 2)))

        return jax.jit(show)

    def _compile(self, function: Callable, batch: dict, resident: dict, *, train: bool) -> Callable:
        name = function.__name__

        def traced(*args):
            self.traces.append(name)
            return function(*args)

        traced.__name__ = name
        if self.config.compile == 'pmap':
            inner = traced

            def traced(*args):
                with batch_axis('data'):  # BatchNorm takes its statistics over all devices
                    return inner(*args)

            return compile_pmap(
                traced,
                donate=train,
                mesh=self.mesh,
                stacked=train and self.config.steps_per_call > 1,
            )
        everywhere = mesh_lib.replicated(self.mesh)
        state = self._many(self.abstract)
        shardings = jax.tree.map(lambda x: x.sharding, state)
        out = (shardings, everywhere) if train else everywhere
        hyper = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=everywhere), self.hyper
        )
        arguments = (state, batch, _abstract(resident), self._many(hyper))

        def look(jaxpr):
            self._train_jaxpr = jaxpr if train else self._train_jaxpr

        return self._scoped(compile_step)(
            traced, arguments, out, donate=train, mesh=self.mesh, look=look
        )


def _abstract(tree: Tree) -> Tree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None)),
        tree,
    )


def _shapes(example: dict[str, np.ndarray]) -> str:
    """The names, dtypes and shapes of one example."""
    arrays = {name: np.asarray(value) for name, value in sorted(example.items())}
    return ', '.join(f'{name} {a.dtype}{list(a.shape)}' for name, a in arrays.items())


def known_program(config: Config, mesh: jax.sharding.Mesh, *, lanes: int = 0) -> Program | None:
    """The program of a config whose rows are known without reading data, else None.

    So what a model cannot take is an error before anything is read or prepared.
    """
    row = config.data.example()
    return (
        None
        if row is None
        else Program(config, mesh, {'id': np.zeros((), np.int32), **row}, lanes=lanes)
    )
