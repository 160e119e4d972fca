"""DQN with its common extensions: double, duelling, n-step, prioritised replay."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdl.api import Learner, Tree
from jaxdl.errors import at_least
from jaxdl.metrics import Mean
from jaxdl.tasks.off_policy import OffPolicy
from jaxdl.tasks.q_learning import QLearning, call, chosen, epsilon_greedy
from jaxdl.tasks.replay import Sample


def targets(sample: Sample, target_values: jax.Array, choosing_values: jax.Array) -> jax.Array:
    """The values [samples] that the chosen actions should have (arXiv:1509.06461, equation 4).

    Both arguments are values [samples, actions] of the next observations: those of the target
    network, and those that choose the action. In plain DQN they are the same, in double DQN the
    network that learns chooses.
    """
    return sample.reward + sample.discount * chosen(target_values, choosing_values.argmax(-1))


@dataclasses.dataclass
class Dqn(QLearning, OffPolicy):
    """Deep Q-learning (Mnih et al. 2015); the model gives the values of all actions.

    Duelling heads are a field of the model, n-step returns and priorities are fields of the replay.

    Attributes:
        double: the network that learns chooses the action, the target network values it (arXiv:1509.06461).
        huber: errors beyond it count linearly in the loss; 0: all count by their square.
    """

    double: bool = True
    huber: float = 1.0

    def check(self):
        super().check()
        at_least(self, huber=0)

    def target(self, params: Tree) -> Tree:
        return params

    def explore(self, learner, state, observation, rng):
        values = call(learner, state.params, observation)
        action = epsilon_greedy(rng, values, self.exploration.at(self.progress(learner, state)))
        return action, action

    def improve(
        self, learner: Learner, state: Any, target: Tree, sample: Sample, rng: jax.Array
    ) -> tuple[Any, jax.Array, dict[str, Mean]]:
        del rng

        valued = call(learner, target, sample.next_observation)
        choosing = valued
        if self.double:
            choosing = call(learner, state.params, sample.next_observation)
        wanted = targets(sample, valued, choosing)

        def loss(params):
            value = chosen(call(learner, params, sample.observation), sample.action)
            error = value - wanted
            cost = optax.huber_loss(error, delta=self.huber) if self.huber else 0.5 * error**2
            return Mean.of(sample.weight * cost), (error, value, cost)

        grads, (error, value, cost) = learner.gradient(loss, state.params)
        metrics = {
            'loss': Mean.of(sample.weight * cost),
            'value': Mean.of(value),
            'error': Mean.of(jnp.abs(error)),
        }
        return learner.update(state, grads), error, metrics
