"""What algorithms that learn the values of discrete actions share: exploration and choices."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdl.api import Batch, Learner, Tree
from jaxdl.environments.arena import Arena
from jaxdl.environments.environment import Box
from jaxdl.errors import UserError
from jaxdl.metrics import Mean
from jaxdl.models.applied import Applied
from jaxdl.tasks.reinforcement import Reinforcement


@dataclasses.dataclass
class Exploration:
    """ε-greedy: a random action with probability ε, which falls in a straight line.

    Attributes:
        start: ε at the start.
        final: ε after `fraction` of the run.
        fraction: share of the run over which ε falls.
    """

    scalars: ClassVar[tuple[str, ...]] = ('start', 'final')

    start: float = 1.0
    final: float = 0.05
    fraction: float = 0.5

    def check(self):
        for name in ('start', 'final', 'fraction'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name}={getattr(self, name)}: must be in [0, 1]')

    def at(self, progress: jax.Array | float) -> jax.Array:
        """ε when `progress` (0 to 1) of the run is done."""
        share = jnp.clip(progress / self.fraction, 0, 1) if self.fraction else 1.0
        return jnp.asarray(self.start + (self.final - self.start) * share, jnp.float32)


def call(learner: Learner, params: Tree, *inputs: jax.Array, method: str | None = None) -> Any:
    """What the model says with these weights, while it is trained."""
    return Applied(learner.model, params, {})(*inputs, train=True, method=method)


def epsilon_greedy(rng: jax.Array, values: jax.Array, epsilon: jax.Array) -> jax.Array:
    """int32 [batch]: the action of the largest of `values` [batch, actions], or a random one."""
    whether, which = jax.random.split(rng)
    best = values.argmax(-1).astype(jnp.int32)
    other = jax.random.randint(which, best.shape, 0, values.shape[-1], jnp.int32)
    return jnp.where(jax.random.uniform(whether, best.shape) < epsilon, other, best)


def chosen(values: jax.Array, action: jax.Array) -> jax.Array:
    """The values [batch] of one action of each row; values [batch, actions], action int [batch]."""
    return jnp.take_along_axis(values, action[..., None], -1)[..., 0]


@dataclasses.dataclass
class ValueBased(Reinforcement):
    """Tasks whose models take observations [rows, …] without time and memory."""

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {'observations': super().inputs(batch)['observation'][:, 0]}

    def episodes(self, arena: Arena) -> dict[str, Mean]:
        """Return and length of the newest finished episode of each environment, while it learned."""
        finished = arena.finished > 0
        return {
            'episode_return': Mean.of(arena.last_return, finished),
            'episode_length': Mean.of(arena.last_length, finished),
        }


@dataclasses.dataclass
class QLearning(ValueBased):
    """Acts by a model that gives the values of all actions, such as a QNetwork.

    Evaluation takes the best action, and samples with exploration.final.

    Attributes:
        exploration: how often an action is random in training.
    """

    exploration: Exploration = dataclasses.field(default_factory=Exploration)

    def act(self, apply, observation, first, memory, keys):
        del first
        values = apply(observation, train=False)
        if keys is None:
            return values.argmax(-1).astype(jnp.int32), memory

        def one(key, row):
            return epsilon_greedy(key, row[None], jnp.float32(self.exploration.final))[0]

        return jax.vmap(one)(keys, values), memory

    def check_model(self, learner: Learner) -> None:
        super().check_model(learner)
        if isinstance(self.environment.actions, Box):
            raise UserError(
                f'--config.task: {type(self).__name__} chooses one of several actions, but the '
                'environment takes numbers; use Sac or Ppo'
            )
