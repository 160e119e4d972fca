"""Proximal policy optimisation (arXiv:1707.06347), with the details of arXiv:2006.05990.

One step of the run is a rollout of `rollout` steps of all environments and the epochs of minibatches
on it. A minibatch is drawn so that every device keeps its environments: without a memory each takes
its share of every environment's time steps, in a random order of its own; with one it takes whole
environments, one of each group of neighbours.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxdl.api import Batch, Learner, Tree
from jaxdl.environments import arena as arena_lib
from jaxdl.environments.arena import Arena
from jaxdl.environments.environment import Box
from jaxdl.errors import UserError, at_least, one_of
from jaxdl.metrics import Mean
from jaxdl.models.applied import Applied
from jaxdl.models.moments import RewardScale
from jaxdl.tasks import returns
from jaxdl.tasks.reinforcement import Reinforcement


class Experience(NamedTuple):
    """What the policy is trained on, all [time, environments, …].

    Attributes:
        observation: what the action was chosen on.
        first: bool, whether that began an episode.
        action: in the units of the policy.
        log_prob: of the action when it was chosen.
        value: of the observation when the action was chosen.
        advantage: float32.
        target: of the value.
    """

    observation: jax.Array
    first: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array


@dataclasses.dataclass
class Ppo(Reinforcement):
    """Learns a policy and a value function; the model is a jaxdl.models.policy.ActorCritic.

    Attributes:
        rollout: steps of each environment between two updates of the policy.
        epochs: times that all of a rollout is learned from.
        minibatches: updates of an epoch; divides `rollout`, or with a memory batch_size.
        discount: γ, how much a reward one step later counts.
        trace: λ of the advantages; 0 trusts the value function, 1 the rewards.
        clip: how far the probability of an action may move, as a ratio.
        value_clip: how far a value may move in an epoch; 0: as far as it likes.
        value_weight: of the value's loss.
        entropy_weight: of the policy's entropy, which keeps it from deciding early.
        target_kl: no more updates on a rollout after one from which the policy moved further than this; 0: no limit.
        scale_rewards: divide rewards by the running deviation of the discounted return.
    """

    scalars: ClassVar[tuple[str, ...]] = (
        'discount',
        'trace',
        'clip',
        'value_weight',
        'entropy_weight',
    )
    sharding: ClassVar[tuple] = ((r'^task_state/(arena|memory|rewards/discounted)', 'batch'),)

    rollout: int = 128
    epochs: int = 4
    minibatches: int = 4
    discount: float = 0.99
    trace: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    target_kl: float = 0.0
    scale_rewards: bool = False

    def check(self):
        at_least(self, rollout=1, epochs=1, minibatches=1, clip=0, value_clip=0)
        at_least(self, value_weight=0, entropy_weight=0, target_kl=0)
        for name in ('discount', 'trace'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name}={getattr(self, name)}: must be in [0, 1]')
        one_of(self, scale_rewards=(False, True))

    def updates(self, group: str = '') -> int:
        return self.epochs * self.minibatches

    # ---- acting ----

    def blank(self, apply: Callable, rows: int) -> Tree:
        return apply(rows, method='blank', train=False)

    def act(self, apply, observation, first, memory, keys):
        seen = apply(observation[:, None], first[:, None], memory, train=False)
        policy = jax.tree.map(lambda x: x[:, 0] if x.ndim > 1 else x, seen.policy)
        if keys is None:
            action = policy.mode()
        else:
            axes = jax.tree.map(lambda x: 0 if x.ndim > 1 else None, policy)
            action = jax.vmap(lambda one, key: one.sample(key), in_axes=(axes, 0))(policy, keys)
        return self._taken(action), seen.memory

    def _taken(self, action: jax.Array) -> jax.Array:
        """The action in the environment's units."""
        space = self.environment.actions
        return space.scaled(action.reshape(-1, *space.shape)) if isinstance(space, Box) else action

    # ---- learning ----

    def start(self, learner: Learner, params: Tree, model_state: Tree, rng: jax.Array) -> Tree:
        self.check_model(learner)
        count, model = learner.config.batch_size, learner.config.model
        whole, name = (count, 'batch_size') if model.memory else (self.rollout, 'task.rollout')
        if whole % self.minibatches:
            raise UserError(
                f'--config.task.minibatches={self.minibatches}: must divide {name}={whole}'
            )
        return {
            'arena': arena_lib.begin(self.environment, rng, count),
            'memory': model.blank(count) if model.memory else None,
            'rewards': RewardScale.fresh(count) if self.scale_rewards else None,
        }

    def learn(
        self, learner: Learner, state: Any, batch: Batch, rng: jax.Array
    ) -> tuple[Any, dict[str, Mean]]:
        del batch  # only the number of its rows counts
        act_key, learn_key = jax.random.split(rng)
        own, state = state.task_state, state.replace(task_state=None)
        before = own['memory']
        if before is None:
            before = learner.config.model.blank(len(own['arena'].first))
        arena, memory, seen, acted, following = self._roll_out(
            learner, state, own['arena'], before, act_key
        )
        rewards, reward = own['rewards'], seen.reward
        if rewards is not None:
            rewards = rewards.seen(reward, seen.done, self.discount)
            reward = rewards.scaled(reward)
        advantage = returns.advantages(
            reward, acted.value, following, seen.terminated, seen.done, self.discount, self.trace
        )
        experience = Experience(
            seen.observation,
            seen.first,
            seen.action,
            acted.log_prob,
            acted.value,
            advantage,
            advantage + acted.value,
        )
        state, metrics = self._descend(learner, state, experience, before, learn_key)
        if own['memory'] is not None:
            own = {**own, 'memory': memory}
        state = state.replace(
            model_state=self._observed(learner, state, seen.observation),
            task_state={**own, 'arena': arena, 'rewards': rewards},
        )
        finished = arena.finished > 0
        apart = experience.target - experience.value
        left = apart.var() / jnp.maximum(experience.target.var(), 1e-8)
        metrics |= {
            # Of the newest finished episode of each environment, while the policy changed.
            'episode_return': Mean.of(arena.last_return, finished),
            'episode_length': Mean.of(arena.last_length, finished),
            'explained_variance': Mean(1 - left, jnp.ones(())),
        }
        return state, metrics

    def _observed(self, learner: Learner, state: Any, observation: jax.Array) -> Tree:
        """The model's state after it has seen the observations [time, environments, …]."""
        if not state.model_state:
            return state.model_state
        apply = Applied(learner.model, state.params, state.model_state)
        apply(observation, method='observe', train=True)
        return apply.model_state

    def _roll_out(
        self, learner: Learner, state: Any, arena: Arena, memory: jax.Array, key: jax.Array
    ):
        """Plays `rollout` steps.

        Returns (arena, memory, transitions, what the policy chose and thought, the values of what
        followed each step), the last three [time, environments, …].
        """
        environment = self.environment
        # An episode that is cut off lasted `limit` steps, so that each environment has at most
        # `most` of those in a rollout. Only their last observations are kept for bootstrapping.
        most = -(-self.rollout // environment.limit)
        model = Applied(learner.model, state.params, state.model_state)

        def apply(observation, first, memory):
            return model(observation[:, None], first[:, None], memory, train=False)

        def step(carry, key):
            arena, memory, last, last_memory, cuts = carry
            choose, go = jax.random.split(key)
            acted = apply(arena.observation, arena.first, memory)
            policy = jax.tree.map(lambda x: x[:, 0] if x.ndim > 1 else x, acted.policy)
            action = policy.sample(choose)
            kept = Chosen(policy.log_prob(action), acted.value[:, 0], cuts)
            arena, seen = arena_lib.advance(environment, arena, self._taken(action), go)
            here = (jnp.arange(most)[:, None] == cuts) & seen.truncated
            last = _where(here, seen.next_observation, last)
            last_memory = _where(here, acted.memory, last_memory)
            carry = arena, acted.memory, last, last_memory, cuts + seen.truncated
            small = seen._replace(action=action, next_observation=())
            return carry, (small, kept)

        blank = jax.tree.map(
            lambda x: jnp.zeros((most, *x.shape), x.dtype), (arena.observation, memory)
        )
        cuts = jnp.zeros(len(arena.first), jnp.int32)
        carry, (seen, kept) = jax.lax.scan(
            step, (arena, memory, *blank, cuts), jax.random.split(key, self.rollout)
        )
        arena, memory, last, last_memory, _ = carry
        # The values of the last observations of episodes that were cut off, and of what is seen now.
        observations = jnp.concatenate([last, arena.observation[None]])
        memories = jnp.concatenate([last_memory, memory[None]])
        first = jnp.concatenate([jnp.zeros((most, len(cuts)), bool), arena.first[None]])
        values = jax.vmap(apply)(observations, first, memories).value[..., 0]
        cut = values[0] if most == 1 else jnp.take_along_axis(values, kept.cuts, 0)
        following = jnp.concatenate([kept.value[1:], values[-1:]])
        # An environment that cuts episodes off earlier still: the value one step before stands in.
        cut = jnp.where(kept.cuts < most, cut, kept.value)
        following = jnp.where(seen.truncated, cut, following)
        return arena, memory, seen, kept, following

    def _descend(
        self,
        learner: Learner,
        state: Any,
        experience: Experience,
        memory: jax.Array,
        key: jax.Array,
    ) -> tuple[Any, dict[str, Mean]]:
        """The epochs of minibatches; the metrics are means over all of them."""

        def minibatch(carry, part):
            state, stopped = carry
            grads, metrics = learner.gradient(
                lambda params: self._loss(learner, {**state.model_state, 'params': params}, *part),
                state.params,
            )
            new = learner.update(state, grads)
            if self.target_kl:
                new = jax.tree.map(lambda a, b: jnp.where(stopped, b, a), new, state)
                metrics['stopped'] = Mean(stopped.astype(jnp.float32), jnp.ones(()))
                stopped |= metrics['kl'].value() > self.target_kl
            return (new, stopped), metrics

        def epoch(carry, key):
            carry, metrics = jax.lax.scan(minibatch, carry, self._parts(experience, memory, key))
            return carry, jax.tree.map(lambda x: x.sum(0), metrics)

        keys = jax.random.split(key, self.epochs)
        (state, _), metrics = jax.lax.scan(epoch, (state, jnp.zeros((), bool)), keys)
        return state, jax.tree.map(lambda x: x.sum(0), metrics)

    def _parts(self, experience: Experience, memory: jax.Array, key: jax.Array):
        """All of a rollout in a random order: (experience [minibatches, time, environments, …],
        memories [minibatches, environments, units] before it)."""
        time, count = experience.first.shape
        parts = self.minibatches
        if memory.shape[1]:
            groups = (count // parts, parts)
            order = jnp.argsort(jax.random.uniform(key, groups), axis=1)

            def cut(x):  # [lead, environments, …] to [minibatches, lead, environments, …]
                x = x.reshape(x.shape[0], *groups, *x.shape[2:])
                index = order.reshape(1, *groups, *[1] * (x.ndim - 3))
                return jnp.moveaxis(jnp.take_along_axis(x, index, 2), 2, 0)

            return jax.tree.map(cut, experience), cut(memory[None])[:, 0]
        order = jnp.argsort(jax.random.uniform(key, (time, count)), axis=0)

        def shuffled(x):
            x = jnp.take_along_axis(x, order.reshape(time, count, *[1] * (x.ndim - 2)), 0)
            return x.reshape(parts, time // parts, *x.shape[1:])

        return jax.tree.map(shuffled, experience), jnp.zeros((parts, count, 0))

    def _loss(
        self, learner: Learner, variables: Tree, part: Experience, memory: jax.Array
    ) -> tuple[Mean, dict[str, Mean]]:
        """The loss of a minibatch [time, environments, …], and the metrics."""
        # A memory reads along the second axis.
        flip = _flipped if memory.shape[1] else lambda x: x
        observation, first = flip(part.observation), flip(part.first)
        acted = Applied.of(learner.model, variables)(
            observation, first if memory.shape[1] else None, memory, train=False
        )
        policy, value = acted.policy, acted.value
        action, old, before, advantage, target = map(flip, part[2:])
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        logs = policy.log_prob(action) - old
        ratio = jnp.exp(logs)
        bounded = jnp.clip(ratio, 1 - self.clip, 1 + self.clip)
        gain = jnp.minimum(ratio * advantage, bounded * advantage)
        apart = jnp.square(value - target)
        if self.value_clip:
            near = before + jnp.clip(value - before, -self.value_clip, self.value_clip)
            apart = jnp.maximum(apart, jnp.square(near - target))
        entropy = policy.entropy()
        loss = -gain + self.value_weight * 0.5 * apart - self.entropy_weight * entropy
        metrics = {
            'loss': Mean.of(loss),
            'policy_loss': Mean.of(-gain),
            'value_loss': Mean.of(0.5 * apart),
            'entropy': Mean.of(entropy),
            'kl': Mean.of(ratio - 1 - logs),  # never below 0 (joschu.net/blog/kl-approx.html)
            'clipped': Mean.of(jnp.abs(ratio - 1) > self.clip),
        }
        return metrics['loss'], metrics


class Chosen(NamedTuple):
    """What the policy chose and thought in a step of a rollout, each [environments].

    Attributes:
        log_prob: of the action.
        value: of the observation.
        cuts: int32, episodes of the rollout that were cut off before this step.
    """

    log_prob: jax.Array
    value: jax.Array
    cuts: jax.Array


def _where(here: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """`new` [environments, …] in the places `here` [places, environments] of `old`."""
    return jnp.where(here.reshape(*here.shape, *[1] * (new.ndim - 1)), new[None], old)


def _flipped(x: jax.Array) -> jax.Array:
    return x.swapaxes(0, 1)
