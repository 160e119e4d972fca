"""What all tasks of reinforcement learning share: environments, evaluation, pictures of an episode.

Evaluation plays full episodes in fresh environments. Each row of the evaluation set is the seed of one
(`jaxdl.data.seeds.Seeds`), so nothing of it depends on training or on the size of a batch.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.api import Apply, Batch, DataSet, Generated, Learner, Task, Tree
from jaxdl.environments.environment import Box, Discrete, Environment
from jaxdl.errors import UserError
from jaxdl.metrics import Mean
from jaxdl.models.applied import Applied

SEEDS = 0x65766C  # sets the keys of evaluation apart from those of training
FRAMES = 8  # of a picture of an episode
LONGEST = 2000  # steps of an episode that are kept to draw it


@dataclasses.dataclass
class Reinforcement(Task):
    """Learns to act in an environment; subclasses say how to choose an action and how to learn.

    Attributes:
        environment: where it acts; config.batch_size of them are played side by side.
        twin: the same environment by another hand, such as Gymnasium's own; None: none. The trained policy plays there too at the end of a run and in `jaxdl evaluate`.
    """

    environment: Environment
    twin: Environment | None = None

    @abc.abstractmethod
    def act(
        self,
        apply: Callable,
        observation: jax.Array,
        first: jax.Array,
        memory: Tree,
        keys: jax.Array | None,
    ) -> tuple[jax.Array, Tree]:
        """Actions as the environment takes them, and the memory after them.

        Args:
            apply: the model, called as in training, with train=False.
            observation: [rows, …].
            first: bool [rows], whether an episode begins.
            memory: what was returned before; at first what `blank` gives.
            keys: a key for each row to sample with; None: the best action.
        """

    def blank(self, apply: Callable, rows: int) -> Tree:
        """The memory before the first step, an array [rows, …] or a tree of such; (): none."""
        del apply, rows
        return ()

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Observations [rows, 1 (time), …] of zeros, by which a model is initialised."""
        rows = len(next(iter(batch.values())))
        seen = self.environment.observation
        return {'observation': jnp.zeros((rows, 1, *seen.shape), seen.dtype)}

    def metrics(self, outputs: Any, batch: Batch) -> dict[str, Mean]:
        raise TypeError(f'{type(self).__name__} learns by acting, not from a batch')

    def check_model(self, learner: Learner) -> None:
        """Raises UserError where model, environment and twin do not fit each other."""
        if self.twin is not None and _shown(self.environment) != _shown(self.twin):
            raise UserError(
                f'--config.task.twin: has {_shown(self.twin)}, but environment has '
                f'{_shown(self.environment)}; they must be alike'
            )
        space, model = self.environment.actions, learner.config.model
        count = space.count if isinstance(space, Discrete) else int(np.prod(space.shape))
        if getattr(model, 'actions', count) != count:
            raise UserError(
                f'--config.model.actions={model.actions}: the environment takes {_shown_space(space)}; '
                f'give model.actions={count}'
            )
        continuous = isinstance(space, Box)
        if getattr(model, 'continuous', continuous) != continuous:
            raise UserError(
                f'--config.model.continuous={not continuous}: the environment takes '
                f'{_shown_space(space)}; give model.continuous={continuous}'
            )

    # ---- evaluation ----

    def play(
        self,
        apply: Callable,
        environment: Environment,
        seeds: jax.Array,
        greedy: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """(returns, lengths) float32 [rows] of one full episode from each of `seeds` [rows].

        Rows with the same seed begin alike; `greedy` (bool [rows]) says which take the best action.
        """
        rows = len(seeds)
        root = jax.random.key(SEEDS)
        keys = jax.vmap(lambda seed: jax.random.fold_in(root, seed))(seeds)
        begin = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)
        state, observation = jax.vmap(environment.reset)(begin)

        def body(carry):
            time, state, observation, memory, over, earned, length = carry
            three = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, time + 1)))(keys)
            first = jnp.full(rows, time == 0)
            best, memory_after = self.act(apply, observation, first, memory, None)
            drawn, _ = self.act(apply, observation, first, memory, three[:, 0])
            chosen = greedy.reshape(-1, *[1] * (best.ndim - 1))
            action = jnp.where(chosen, best, drawn)
            step = jax.vmap(environment.step)(three[:, 1], state, action)
            earned += jnp.where(over, 0, step.reward)
            length += ~over
            over |= step.terminated | step.truncated
            return time + 1, step.state, step.observation, memory_after, over, earned, length

        def more(carry):
            time, *_, over, _, _ = carry
            return (time < environment.limit) & ~over.all()

        zeros = jnp.zeros(rows)
        blank = self.blank(apply, rows)
        start = (jnp.int32(0), state, observation, blank, jnp.zeros(rows, bool), zeros, zeros)
        *_, earned, length = jax.lax.while_loop(more, body, start)
        return earned, length

    def evaluate(self, apply: Apply, batch: Batch) -> dict[str, Mean]:
        """return and length of the best actions, sampled_return and sampled_length, returns [episodes]."""
        # Rows and modes interleaved, so that both modes of a row stay on the device of the row.
        seeds = jnp.repeat(batch['seed'], 2)
        greedy = jnp.arange(len(seeds)) % 2 == 0
        earned, length = self.play(apply, self.environment, seeds, greedy)
        mask, place = batch['mask'], batch['place'].astype(jnp.float32)
        values = jnp.where(mask > 0, earned[::2], 0)
        return {
            'return': Mean.of(earned[::2], mask),
            'length': Mean.of(length[::2], mask),
            'sampled_return': Mean.of(earned[1::2], mask),
            'sampled_length': Mean.of(length[1::2], mask),
            # Divided by 1 over the whole set, so that each entry is the return of its episode.
            'returns': Mean((place * values[:, None]).sum(0), mask.sum() / place.shape[1]),
        }

    def derived(self, means: dict[str, Any]) -> dict[str, float]:
        """Median and interquartile mean of the returns of the episodes of an evaluation."""
        returns = means.get('returns')
        if returns is None:
            return {}
        return {
            'return_median': float(np.median(returns)),
            'return_iqm': interquartile_mean(np.asarray(returns)),
        }

    # ---- after an evaluation ----

    def generate(
        self,
        model: nn.Module,
        variables: Tree,
        data: DataSet,
        *,
        final: bool,
        beat: Callable[[], None],
    ) -> Generated:
        """A strip of frames of one episode; at the end the returns in the twin environment."""
        found = Generated()
        strip = self._strip(model, variables)
        if strip is not None:
            found.pictures['episode'] = strip
        beat()
        if final and self.twin is not None:
            rows = data.eval_sources()['episodes']
            seeds = rows.fetch(np.arange(len(rows)))['seed']
            play = jax.jit(self._play_twin, static_argnums=0)
            earned, length = (np.asarray(x) for x in play(model, variables, seeds))
            beat()
            found.scores |= {
                'episodes/twin_return': float(earned.mean()),
                'episodes/twin_return_iqm': interquartile_mean(earned),
                'episodes/twin_length': float(length.mean()),
            }
        return found

    def _play_twin(self, model: nn.Module, variables: Tree, seeds: jax.Array):
        assert self.twin is not None
        apply = Applied.of(model, variables)
        return self.play(apply, self.twin, seeds, jnp.ones(len(seeds), bool))

    def _strip(self, model: nn.Module, variables: Tree) -> np.ndarray | None:
        """The frames of one episode side by side, uint8 [height, width, 3]."""
        state, observation = self.environment.reset(jax.random.key(SEEDS))
        if self.environment.draw(state, np.asarray(observation)) is None:
            return None
        states, seen, over = jax.device_get(self._episode(model)(variables))
        count = int(np.argmax(over)) + 1 if over.any() else len(over)
        frames = []
        for index in np.unique(np.linspace(0, count - 1, FRAMES).astype(int)):
            frame = self.environment.draw(
                jax.tree.map(lambda x, i=index: x[i], states), seen[index]
            )
            assert frame is not None
            frames.append(np.pad(frame, ((2, 2), (2, 2), (0, 0)), constant_values=127))
        return np.concatenate(frames, 1)

    @functools.cached_property
    def _episode(self) -> Callable:
        @functools.cache
        def compiled(model):
            return jax.jit(lambda variables: self._watched(model, variables))

        return compiled

    def _watched(self, model: nn.Module, variables: Tree):
        """(states, observations, ends) [steps] of a greedy episode, the first one before any step."""
        apply = Applied.of(model, variables)
        key = jax.random.key(SEEDS)
        state, observation = self.environment.reset(key)

        def body(carry, time):
            state, observation, memory = carry
            row = jax.tree.map(lambda x: x[None], observation)
            action, memory = self.act(apply, row, (time == 0)[None], memory, None)
            step = self.environment.step(jax.random.fold_in(key, time), state, action[0])
            kept = state, observation, step.terminated | step.truncated
            return (step.state, step.observation, memory), kept

        start = (state, observation, self.blank(apply, 1))
        steps = min(self.environment.limit, LONGEST)
        return jax.lax.scan(body, start, jnp.arange(steps))[1]


def interquartile_mean(values: np.ndarray) -> float:
    """The mean of the middle half of `values` (arXiv:2108.13264); quarters are cut by whole values."""
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def _shown(environment: Environment) -> str:
    seen = environment.observation
    return f'observations {list(seen.shape)} and {_shown_space(environment.actions)}'


def _shown_space(space: Discrete | Box) -> str:
    if isinstance(space, Discrete):
        return f'{space.count} discrete actions'
    return f'actions {list(space.shape)} of numbers'
