"""PQN: Q-learning from many environments at once, without replay or target network (arXiv:2407.04811)."""

import dataclasses
from typing import Any, ClassVar

import jax

from jaxdl.api import Batch, Learner, Tree
from jaxdl.environments.arena import advance, begin
from jaxdl.errors import at_least
from jaxdl.metrics import Mean
from jaxdl.tasks.q_learning import QLearning, call, chosen, epsilon_greedy
from jaxdl.tasks.returns import lambda_returns


@dataclasses.dataclass
class Pqn(QLearning):
    """Parallelised Q-learning; the model needs LayerNorm (`norm` of a QNetwork) to stay stable.

    One step of the loop is `horizon` steps of each of the config.batch_size environments, so
    horizon * batch_size environment steps, then epochs * minibatches updates on Q(λ) targets.

    Attributes:
        horizon: steps of every environment in one step of the loop.
        epochs: how often each transition is learned from.
        minibatches: updates in an epoch; each has horizon / minibatches steps of every environment.
        discount: γ, the factor on what is earned one step later.
        decay: λ of the targets; 0: one step, 1: all steps.
        reward_scale: factor on the rewards in the targets.
    """

    scalars: ClassVar[tuple[str, ...]] = ('discount', 'decay', 'reward_scale')
    sharding: ClassVar[tuple] = ((r'^task_state/arena/', 'batch'),)

    horizon: int = 32
    epochs: int = 2
    minibatches: int = 8
    discount: float = 0.99
    decay: float = 0.65
    reward_scale: float = 1.0

    def check(self):
        at_least(self, horizon=1, epochs=1, minibatches=1, discount=0, decay=0, reward_scale=0)
        for name in ('discount', 'decay'):
            if getattr(self, name) > 1:
                raise ValueError(f'{name}={getattr(self, name)}: must be at most 1')
        if self.horizon % self.minibatches:
            raise ValueError(
                f'minibatches={self.minibatches}: must divide horizon={self.horizon}, since each '
                'has the same number of steps of every environment'
            )

    def updates(self, group: str = '') -> int:
        del group
        return self.epochs * self.minibatches

    def start(self, learner: Learner, params: Tree, model_state: Tree, rng: jax.Array) -> Tree:
        """The environments."""
        self.check_model(learner)
        return {'arena': begin(self.environment, rng, learner.config.batch_size)}

    def learn(
        self, learner: Learner, state: Any, batch: Batch, rng: jax.Array
    ) -> tuple[Any, dict[str, Mean]]:
        """See Pqn; the batch says only how many environments there are."""
        del batch
        act_key, order_key = jax.random.split(rng)
        epsilon = self.exploration.at(state.step / learner.config.steps)

        def act(arena, key):
            explore_key, step_key = jax.random.split(key)
            action = epsilon_greedy(
                explore_key, call(learner, state.params, arena.observation), epsilon
            )
            return advance(self.environment, arena, action, step_key)

        arena = state.task_state['arena']
        arena, seen = jax.lax.scan(act, arena, jax.random.split(act_key, self.horizon))
        after = seen.next_observation
        best = call(learner, state.params, after.reshape(-1, *after.shape[2:])).max(-1)
        wanted = lambda_returns(
            self.reward_scale * seen.reward,
            best.reshape(seen.reward.shape),
            seen.terminated,
            seen.done,
            self.discount,
            self.decay,
        )
        rows = jax.tree.map(
            lambda x: x.swapaxes(0, 1), (seen.observation, seen.action, wanted)
        )  # [environments, horizon, …]

        def epoch(state, key):
            # Steps are shuffled within each environment, so that each device keeps its own.
            order = jax.random.uniform(key, wanted.shape[::-1]).argsort(1)

            def cut(x):
                x = jax.vmap(lambda row, index: row[index])(x, order)
                return x.reshape(len(x), self.minibatches, -1, *x.shape[2:]).swapaxes(0, 1)

            return jax.lax.scan(update, state, jax.tree.map(cut, rows))

        def update(state, part):
            observation, action, wanted = (x.reshape(-1, *x.shape[2:]) for x in part)

            def loss(params):
                value = chosen(call(learner, params, observation), action)
                cost = 0.5 * (value - wanted) ** 2
                return Mean.of(cost), (cost, value)

            grads, (cost, value) = learner.gradient(loss, state.params)
            return learner.update(state, grads), {
                'loss': Mean.of(cost),
                'value': Mean.of(value),
            }

        state, metrics = jax.lax.scan(epoch, state, jax.random.split(order_key, self.epochs))
        metrics = jax.tree.map(lambda x: x.sum((0, 1)), metrics)
        state = state.replace(task_state={'arena': arena})
        return state, {**metrics, **self.episodes(arena)}
