"""The step of algorithms that learn from a replay buffer: act, store, sample, update."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdl.api import Batch, Learner, Tree
from jaxdl.environments.arena import advance, begin
from jaxdl.environments.environment import Discrete
from jaxdl.errors import UserError, above_zero, at_least
from jaxdl.metrics import Mean
from jaxdl.tasks.q_learning import ValueBased
from jaxdl.tasks.replay import Replay, Sample, Stored


@dataclasses.dataclass
class OffPolicy(ValueBased):
    """Learns from transitions of a replay buffer, with averaged weights for the targets.

    One step of the loop is `rounds` times: `horizon` steps of each of the config.batch_size
    environments, then `gradients` updates; so rounds * horizon * batch_size environment steps and
    rounds * gradients updates. Before the buffer holds replay.minimum transitions nothing is
    updated.

    Attributes:
        replay: the buffer.
        rounds: rounds in one step of the loop.
        horizon: steps of every environment in a round.
        gradients: updates in a round.
        samples: transitions of an update, over all environments.
        discount: γ, the factor on what is earned one step later.
        tau: share of the new weights in the target's at each of its updates; 1 copies them.
        target_every: updates between two of the target.
    """

    scalars: ClassVar[tuple[str, ...]] = ('discount', 'tau')
    sharding: ClassVar[tuple] = (
        (r'^task_state/(arena|replay/rows)/', 'batch'),
        (r'^task_state/replay/(priorities|largest)$', 'batch'),
    )

    replay: Replay = dataclasses.field(default_factory=Replay)
    rounds: int = 32
    horizon: int = 1
    gradients: int = 1
    samples: int = 128
    discount: float = 0.99
    tau: float = 0.005
    target_every: int = 1

    def check(self):
        at_least(self, rounds=1, horizon=1, gradients=1, samples=1, target_every=1, discount=0)
        above_zero(self, 'tau')
        for name in ('tau', 'discount'):
            if getattr(self, name) > 1:
                raise ValueError(f'{name}={getattr(self, name)}: must be at most 1')

    # ---- what an algorithm defines ----

    @abc.abstractmethod
    def target(self, params: Tree) -> Tree:
        """The part of the weights of which averages are kept."""

    @abc.abstractmethod
    def explore(
        self, learner: Learner, state: Any, observation: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The actions [environments, …] that the environments take, and those that are stored."""

    @abc.abstractmethod
    def improve(
        self, learner: Learner, state: Any, target: Tree, sample: Sample, rng: jax.Array
    ) -> tuple[Any, jax.Array, dict[str, Mean]]:
        """The state after one update, the errors [samples] of the values, metrics with 'loss'."""

    # ---- what they share ----

    def updates(self, group: str = '') -> int:
        del group
        return self.rounds * self.gradients

    def progress(self, learner: Learner, state: Any) -> jax.Array:
        """The fraction of the run that is done."""
        return state.step / learner.config.steps

    def start(self, learner: Learner, params: Tree, model_state: Tree, rng: jax.Array) -> Tree:
        """The environments, an empty buffer, the target's weights and how often they were updated."""
        self.check_model(learner)
        count = learner.config.batch_size
        for name in ('samples', 'replay.capacity'):
            value = self.samples if name == 'samples' else self.replay.capacity
            if value % count:
                raise UserError(
                    f'--config.task.{name}={value}: must be a multiple of '
                    f'config.batch_size={count}, the number of environments'
                )
        arena = begin(self.environment, rng, count)
        space = self.environment.actions
        shape, kind = ((), jnp.int32) if isinstance(space, Discrete) else (space.shape, jnp.float32)
        action = jnp.zeros((count, *shape), kind)
        example = jax.eval_shape(lambda: advance(self.environment, arena, action, rng)[1])
        return {
            'arena': arena,
            'replay': self.replay.start(example),
            'target': self.target(params),
            'updates': jnp.zeros((), jnp.int32),
        }

    def learn(
        self, learner: Learner, state: Any, batch: Batch, rng: jax.Array
    ) -> tuple[Any, dict[str, Mean]]:
        """See OffPolicy; the batch says only how many environments there are."""
        del batch

        def one_round(state, key):
            act_key, learn_key = jax.random.split(key)
            state = self._collect(learner, state, act_key)
            return self._improve(learner, state, learn_key)

        state, metrics = jax.lax.scan(one_round, state, jax.random.split(rng, self.rounds))
        metrics = jax.tree.map(lambda x: x.sum(0), metrics)
        return state, {**metrics, **self.episodes(state.task_state['arena'])}

    def _collect(self, learner: Learner, state: Any, rng: jax.Array) -> Any:
        """`horizon` steps of all environments, stored."""

        def one(carry, key):
            arena, replay = carry
            act_key, step_key = jax.random.split(key)
            action, kept = self.explore(learner, state, arena.observation, act_key)
            arena, transition = advance(self.environment, arena, action, step_key)
            return (arena, self.replay.add(replay, transition._replace(action=kept))), None

        own = state.task_state
        (arena, replay), _ = jax.lax.scan(
            one, (own['arena'], own['replay']), jax.random.split(rng, self.horizon)
        )
        return state.replace(task_state={**own, 'arena': arena, 'replay': replay})

    def _improve(self, learner: Learner, state: Any, rng: jax.Array) -> tuple[Any, dict[str, Mean]]:
        """`gradients` updates, if the buffer is ready."""
        own = state.task_state
        replay: Stored = own['replay']
        # What the updates change; the transitions stay outside, so that no branch copies them.
        light = {
            'target': own['target'],
            'updates': own['updates'],
            'priorities': replay.priorities,
            'largest': replay.largest,
        }

        def one(state, key):
            own = state.task_state
            sample_key, key = jax.random.split(key)
            stored = replay.replace(priorities=own['priorities'], largest=own['largest'])
            sample = self.replay.sample(
                stored,
                sample_key,
                self.samples,
                discount=self.discount,
                progress=self.progress(learner, state),
            )
            state, errors, metrics = self.improve(learner, state, own['target'], sample, key)
            stored = self.replay.prioritise(stored, sample.slot, errors)
            count = own['updates'] + 1
            share = jnp.where(count % self.target_every == 0, self.tau, 0.0)
            target = jax.tree.map(
                lambda old, new: (1 - share) * old + share * new,
                own['target'],
                self.target(state.params),
            )
            own = {
                'target': target,
                'updates': count,
                'priorities': stored.priorities,
                'largest': stored.largest,
            }
            return state.replace(task_state=own), metrics

        def some(state):
            state, metrics = jax.lax.scan(one, state, jax.random.split(rng, self.gradients))
            return state, jax.tree.map(lambda x: x.sum(0), metrics)

        def none(state):
            _, metrics = jax.eval_shape(some, state)
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

        new, metrics = jax.lax.cond(
            self.replay.ready(replay), some, none, state.replace(task_state=light)
        )
        light = new.task_state
        replay = replay.replace(priorities=light['priorities'], largest=light['largest'])
        own = {**own, 'replay': replay, 'target': light['target'], 'updates': light['updates']}
        return new.replace(task_state=own), metrics
