"""Soft actor-critic for continuous actions (arXiv:1801.01290, arXiv:1812.05905)."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdl.api import Learner, Tree
from jaxdl.environments.environment import Box
from jaxdl.errors import UserError
from jaxdl.metrics import Mean
from jaxdl.tasks.off_policy import OffPolicy
from jaxdl.tasks.q_learning import call
from jaxdl.tasks.replay import Sample


def squashed(mean: jax.Array, log_std: jax.Array, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An action [batch, actions] in (-1, 1) and the logarithm [batch] of its density.

    The action is tanh of a Gaussian (arXiv:1812.05905, appendix C).
    """
    noise = jax.random.normal(rng, mean.shape)
    before = mean + jnp.exp(log_std) * noise
    # log(1 - tanh(x)²) = 2 (log 2 - x - softplus(-2 x)), which does not lose its digits for large x.
    change = 2 * (math.log(2) - before - jax.nn.softplus(-2 * before))
    density = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - change
    return jnp.tanh(before), density.sum(-1)


@dataclasses.dataclass
class Sac(OffPolicy):
    """Soft actor-critic: two critics, a squashed Gaussian policy, a temperature that is learned.

    The model is a `SoftActorCritic`, the optimizer an `optim.SacGroups`. Until the buffer holds
    replay.minimum transitions the actions are uniform.

    Attributes:
        entropy: the entropy that the temperature aims at, per number in an action.
    """

    scalars: ClassVar[tuple[str, ...]] = (*OffPolicy.scalars, 'entropy')

    entropy: float = -1.0

    def target(self, params: Tree) -> Tree:
        return params['critic']

    def check_model(self, learner: Learner) -> None:
        super().check_model(learner)
        if not isinstance(self.environment.actions, Box):
            raise UserError(
                '--config.task: Sac chooses numbers, but the environment takes one of several '
                'actions; use Dqn, Pqn or Ppo'
            )

    def _taken(self, action: jax.Array) -> jax.Array:
        """An action in (-1, 1) in the environment's units."""
        space = self.environment.actions
        assert isinstance(space, Box)
        return space.scaled(action.reshape(-1, *space.shape))

    def act(self, apply, observation, first, memory, keys):
        del first
        mean, log_std = apply(observation, train=False)
        noise = 0.0
        if keys is not None:
            noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
        return self._taken(jnp.tanh(mean + jnp.exp(log_std) * noise)), memory

    def explore(self, learner, state, observation, rng):
        own_key, other_key = jax.random.split(rng)
        mean, log_std = call(learner, state.params, observation)
        action, _ = squashed(mean, log_std, own_key)
        random = jax.random.uniform(other_key, action.shape, minval=-1, maxval=1)
        unit = jnp.where(self.replay.ready(state.task_state['replay']), action, random)
        return self._taken(unit), unit

    def improve(
        self, learner: Learner, state: Any, target: Tree, sample: Sample, rng: jax.Array
    ) -> tuple[Any, jax.Array, dict[str, Mean]]:
        next_key, own_key = jax.random.split(rng)
        params = state.params
        log_temperature = call(learner, params, method='log_temperature')
        temperature = jnp.exp(log_temperature)

        mean, log_std = call(learner, params, sample.next_observation)
        action, density = squashed(mean, log_std, next_key)
        both = call(
            learner, {**params, 'critic': target}, sample.next_observation, action, method='values'
        )
        wanted = sample.reward + sample.discount * (both.min(0) - temperature * density)

        def critic_loss(critic):
            both = call(
                learner,
                {**params, 'critic': critic},
                sample.observation,
                sample.action,
                method='values',
            )
            cost = 0.5 * ((both - wanted) ** 2).sum(0)
            return Mean.of(sample.weight * cost), (both, cost)

        grads, (values, cost) = learner.gradient(critic_loss, params['critic'])
        state = learner.update(state, grads, 'critic')
        params = state.params

        def actor_loss(actor):
            mean, log_std = call(learner, {**params, 'actor': actor}, sample.observation)
            action, density = squashed(mean, log_std, own_key)
            both = call(learner, params, sample.observation, action, method='values')
            return Mean.of(temperature * density - both.min(0)), density

        grads, density = learner.gradient(actor_loss, params['actor'])
        state = learner.update(state, grads, 'actor')

        wanted_entropy = self.entropy * sample.action.shape[-1]

        def temperature_loss(weights):
            log = call(learner, {**params, 'temperature': weights}, method='log_temperature')
            return Mean.of(-log * (density + wanted_entropy)), ()

        grads, _ = learner.gradient(temperature_loss, params['temperature'])
        state = learner.update(state, grads, 'temperature')
        error = jnp.abs(values - wanted).mean(0)
        metrics = {
            'loss': Mean.of(sample.weight * cost),
            'value': Mean.of(values),
            'error': Mean.of(error),
            'entropy': Mean.of(-density),
            'temperature': Mean.of(temperature),
        }
        return state, error, metrics
