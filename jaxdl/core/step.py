"""The state, and the pure functions that make, advance and evaluate it.

One training step: gather the batch → the task learns from it → check → average. For most tasks, to
learn is: augment → model → metrics → gradient → update (`learner.py`). Everything random is a function of (seed, step), so a checkpoint is just the state. A step returns its metrics
as one small vector of sums and weights (`MetricPacking` names its entries), to need one transfer.
"""

from collections.abc import Callable
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdl.api import Tree
from jaxdl.core import config as config_lib
from jaxdl.core.config import Config
from jaxdl.core.learner import StepLearner, sums
from jaxdl.core.optim import path_name
from jaxdl.metrics import Mean, MetricPacking
from jaxdl.models.applied import Applied


class Health(flax.struct.PyTreeNode):
    """The counts of non-finite steps, kept in the state so that a resumed run continues them.

    Attributes:
        in_a_row: int32, updates dropped since the last good one.
        skipped: int32, updates dropped in the whole run.
        data_offset: int32, batches by which roll-backs moved the data order forward.
        rollbacks: int32, roll-backs so far.
    """

    in_a_row: jax.Array
    skipped: jax.Array
    data_offset: jax.Array
    rollbacks: jax.Array

    @classmethod
    def fresh(cls) -> 'Health':
        return cls(*(jnp.zeros((), jnp.int32) for _ in range(4)))


class LossScale(flax.struct.PyTreeNode):
    """The factor on the loss of a float16 run, adapted while it trains (arXiv:1710.03740).

    If gradients overflow it is halved and the update is dropped; GROWTH good steps double it.

    Attributes:
        factor: float32, on the mean loss.
        good: int32, steps since it changed.
    """

    GROWTH: ClassVar[int] = 1000
    MOST: ClassVar[float] = 2.0**24

    factor: jax.Array
    good: jax.Array

    @classmethod
    def start(cls, factor: float) -> 'LossScale | None':
        """None where `factor` is 0: off."""
        if not factor:
            return None
        return cls(jnp.full((), factor, jnp.float32), jnp.zeros((), jnp.int32))

    def after(self, finite: jax.Array) -> 'LossScale':
        grown = self.good + 1 >= self.GROWTH
        larger = jnp.where(grown, jnp.minimum(2 * self.factor, self.MOST), self.factor)
        return LossScale(
            jnp.where(finite, larger, jnp.maximum(self.factor / 2, 1.0)),
            jnp.where(finite & ~grown, self.good + 1, 0),
        )


class TrainState(flax.struct.PyTreeNode):
    """Exactly what a checkpoint holds.

    Attributes:
        step: int32, completed optimizer steps.
        params: the model's parameters, float32.
        model_state: its other variables (running statistics of BatchNorm).
        opt_state: the optimizer's state.
        ema: moving averages of params and model_state, or None.
        health: the counts of non-finite steps.
        loss_scale: the factor of a float16 run, else None.
        task_state: what the task keeps from step to step (Task.start), else None.
    """

    step: jax.Array
    params: Tree
    model_state: Tree
    opt_state: optax.OptState
    ema: Tree
    health: Health
    loss_scale: LossScale | None = None
    task_state: Tree = None

    def evaluated(self) -> dict[str, Tree]:
        """The 'params' and 'model_state' that evaluation uses: the averages, if there are any."""
        weights = {'params': self.params, 'model_state': self.model_state}
        return weights if self.ema is None else self.ema


class Traced:
    """Finds the packing of the metrics while the step is traced, which saves a second trace."""

    packing: MetricPacking | None = None

    def pack(self, metrics: dict[str, Mean]) -> jax.Array:
        self.packing = MetricPacking.of(metrics)
        return self.packing.pack(metrics)


# Entries of the packed metrics that the loop reads and does not log:
FINITE = '_finite'  # 1 if the update was applied
FIRST = '_first'  # the index in Steps.suspects of the first leaf that is not finite
RATE = 'learning_rate'
STOP = '_stop'  # devices whose process was asked to stop; only with several processes
COUNT = '_examples'  # examples under the mask of an evaluation batch


def hyper_parameters(config: Config) -> dict[str, np.generic]:
    """The arguments of a step that are numbers: the seed and the config's scalars."""
    values = {path: np.float32(value) for path, value in config_lib.scalars(config).items()}
    return {'seed': np.uint32(config.seed), **values}


def gather(batch: dict[str, jax.Array], resident: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Fetches the rows batch['id'] of a data set that is kept on the device."""
    if not resident:
        return dict(batch)
    rows = {name: jnp.take(values, batch['id'], axis=0) for name, values in resident.items()}
    return {**rows, **batch}


class Steps:
    """The pure functions of one config; `axis` names the device axis when compiled by pmap."""

    def __init__(self, config: Config, axis: str | None = None):
        self.config = config
        self.axis = axis
        # Moves gradients to the sharding of their parameters before they are used.
        self.place: Callable = lambda grads: grads
        # Moves the optimizer's state to the device if it is kept on the host between two steps.
        self.fetch: Callable = lambda opt_state: opt_state
        policy = config.divergence.policy
        # After this many dropped updates in a row, steps leave the whole state unchanged. The host
        # reads metrics some steps late, and the state at which a run stops must not depend on that.
        self.patience = config.divergence.max_skips if policy == 'skip' else 0

    def _config(self, hyper: dict[str, jax.Array]) -> Config:
        return config_lib.with_values(
            self.config, {path: value for path, value in hyper.items() if path != 'seed'}
        )

    def _sum(self, tree):
        return jax.lax.psum(tree, self.axis) if self.axis else tree

    # ---- initialisation ----

    def init(self, batch: dict[str, jax.Array], hyper: dict[str, jax.Array]) -> TrainState:
        """A fresh state for batches of the shapes and dtypes of `batch`."""
        config = self._config(hyper)
        key = jax.random.key(hyper['seed'])
        batch = config.task.augment(batch, jax.random.fold_in(key, 1))
        params_key, dropout_key = jax.random.split(jax.random.fold_in(key, 0))
        variables = config.model.init(
            {'params': params_key, 'dropout': dropout_key}, **config.task.inputs(batch), train=False
        )
        params = variables['params']
        model_state = {k: v for k, v in variables.items() if k != 'params'}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            model_state=model_state,
            health=Health.fresh(),
            loss_scale=LossScale.start(config.loss_scale),
            **self._rest(config, params, model_state, key),
        )

    def rest(self, params: Tree, model_state: Tree, hyper: dict) -> dict[str, Tree]:
        """The other fields of a fresh state that has these weights: opt_state, ema, task_state."""
        key = jax.random.key(hyper['seed'])
        return self._rest(self._config(hyper), params, model_state, key)

    def _rest(self, config: Config, params: Tree, model_state: Tree, key: jax.Array) -> dict:
        learner = StepLearner(config, self.axis, self.place)
        ema = {'params': params, 'model_state': model_state} if config.ema else None
        own = config.task.start(learner, params, model_state, jax.random.fold_in(key, 2**31 - 1))
        # Copies, because a buffer that stands twice in a state cannot be donated twice.
        return {
            'opt_state': learner.begin(params),
            'ema': jax.tree.map(jnp.copy, ema),
            'task_state': jax.tree.map(jnp.copy, own),
        }

    # ---- training ----

    def train_metrics(
        self, state: TrainState, batch: dict, resident: dict, hyper: dict
    ) -> tuple[TrainState, dict[str, Mean]]:
        """One optimizer step; the batch holds 'id', and the rows themselves unless resident."""
        state = state.replace(opt_state=self.fetch(state.opt_state))
        config = self._config(hyper)
        key = jax.random.fold_in(
            jax.random.key(hyper['seed']), state.step + state.health.data_offset + 2
        )
        if self.axis:
            key = jax.random.fold_in(key, jax.lax.axis_index(self.axis))
        batch = gather(batch, resident)
        stop = batch.pop(STOP, None)
        one = jnp.ones((), jnp.float32)
        learner = StepLearner(config, self.axis, self.place)
        new, metrics = config.task.learn(learner, state, batch, key)
        checked = learner.checked
        if config.task.defines('learn'):
            checked = [*sums((new.params, new.model_state)), metrics['loss'].total]
        metrics = learner.sum(metrics)
        if self.axis:
            # Each replica has updated the running statistics by itself; they must stay equal.
            new = new.replace(model_state=jax.lax.pmean(new.model_state, self.axis))
        if stop is not None:
            metrics = {**metrics, STOP: Mean(stop.sum(), one)}
        ema = state.ema
        if ema is not None:
            ema = self._averaged(config, state.step, ema, new.params, new.model_state)
        new = new.replace(step=state.step + 1, ema=ema)
        good = jnp.isfinite(jnp.stack(checked))  # in the order of `suspects`
        finite = good.all()
        rates = learner.rates(state.step)
        metrics |= {
            f'{RATE}_{name}' if index else RATE: Mean(jnp.float32(rate), one)
            for index, (name, rate) in enumerate(rates.items())
        }
        tried = jnp.zeros((), bool)
        if state.loss_scale is not None:
            # The loss scale grows until it overflows, so such a step is no sign of a divergence.
            tried = ~finite & (state.loss_scale.factor > 1)
            metrics = jax.tree.map(lambda x: jnp.where(tried, 0, x), metrics)
            metrics['loss_scale'] = Mean(state.loss_scale.factor, one)
            metrics['overflow'] = Mean(tried.astype(jnp.float32), one)
        new = self._guarded(state, new, finite, tried)
        metrics |= {
            FINITE: Mean((finite | tried).astype(jnp.float32), one),
            FIRST: Mean(jnp.argmin(good).astype(jnp.float32), one),
        }
        return new, metrics

    def suspects(self, state: TrainState) -> list[str]:
        """The names of the arrays that each step checks; FIRST is an index into this list."""
        params = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)]
        statistics = [
            path_name(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.model_state)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        if self.config.task.defines('learn'):
            return [
                *(f'params/{n}' for n in params),
                *(f'model_state/{n}' for n in statistics),
                'loss',
            ]
        return [
            *(f'gradient of params/{name}' for name in params),
            *(f'model_state/{name}' for name in statistics),
            'loss',
            *(f'update of params/{name}' for name in params),
        ]

    def _averaged(self, config, step, ema, params, model_state):
        # The average covers a fixed share of the run so far. So it forgets the random start in a
        # short run as well as in a long one (cf. arXiv:2312.02696, section 3.1).
        decay = 1.0 - 1.0 / jnp.maximum(config.ema * (step + 1.0), 1.0)
        return jax.tree.map(
            lambda mean, new: (mean * decay + new * (1 - decay)).astype(mean.dtype),
            ema,
            {'params': params, 'model_state': model_state},
        )

    def _guarded(
        self, old: TrainState, new: TrainState, finite: jax.Array, tried: jax.Array
    ) -> TrainState:
        """Drops a non-finite update; after `patience` of them in a row the state stays unchanged.

        An update that overflowed because of the loss scale (`tried`) is dropped but not counted.
        """
        health = old.health
        halted = health.in_a_row > self.patience
        keep = finite & ~halted

        def choose(a, b):
            return jax.tree.map(lambda x, y: jnp.where(keep, x, y), a, b)

        dropped = (~finite & ~tried & ~halted).astype(jnp.int32)
        counted = jnp.where(tried, health.in_a_row, health.in_a_row + 1)
        in_a_row = jnp.where(halted, health.in_a_row, jnp.where(finite, 0, counted))
        scale = old.loss_scale
        if scale is not None:
            after = scale.after(finite)
            scale = jax.tree.map(lambda x, y: jnp.where(halted, y, x), after, scale)
        stands = in_a_row > self.patience
        return TrainState(
            step=jnp.where(stands, old.step, new.step),
            params=choose(new.params, old.params),
            model_state=choose(new.model_state, old.model_state),
            opt_state=choose(new.opt_state, old.opt_state),
            ema=None if old.ema is None else choose(new.ema, old.ema),
            health=health.replace(in_a_row=in_a_row, skipped=health.skipped + dropped),
            loss_scale=scale,
            task_state=choose(new.task_state, old.task_state),
        )

    def train_step(self, packing: MetricPacking | Traced) -> Callable:
        """(state, batch, resident, hyper) → (state, packed metrics [size])."""

        def train_step(state, batch, resident, hyper):
            state, metrics = self.train_metrics(state, batch, resident, hyper)
            return state, packing.pack(metrics)

        return train_step

    def train_steps(self, packing: MetricPacking | Traced) -> Callable:
        """The same for a stack of batches [calls, batch, …] in one program → packed [calls, size]."""
        one = self.train_step(packing)

        def train_steps(state, batches, resident, hyper):
            state = state.replace(opt_state=self.fetch(state.opt_state))
            return jax.lax.scan(
                lambda state, batch: one(state, batch, resident, hyper), state, batches
            )

        return train_steps

    # ---- evaluation ----

    def eval_metrics(
        self, state: TrainState, batch: dict, resident: dict, hyper: dict
    ) -> dict[str, Mean]:
        """The metrics of one evaluation batch under its mask, with the averaged weights if any."""
        config = self._config(hyper)
        batch = gather(batch, resident)
        weights = state.evaluated()
        apply = Applied(config.model, weights['params'], weights['model_state'])
        counted = Mean(batch['mask'].sum(), jnp.ones((), jnp.float32))
        return self._sum({**config.task.evaluate(apply, batch), COUNT: counted})

    def eval_step(self, packing: MetricPacking) -> Callable:
        def eval_step(state, batch, resident, hyper):
            return packing.pack(self.eval_metrics(state, batch, resident, hyper))

        return eval_step
