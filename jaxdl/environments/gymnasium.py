"""Gymnasium's environments, which are Python objects, behind the functional interface.

The state of one is the seed of its episode and the actions taken so far. That decides everything, as
long as the environment is deterministic given its seed. So it can be saved, copied and taken back like
any other state, and a run resumes bit for bit. The host keeps the living objects by their state; one
that it does not have, as after a resume, is made again by playing the actions.
"""

import collections
import dataclasses
import functools
import threading
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.api import Tree
from jaxdl.environments.environment import Box, Discrete, Environment, Step
from jaxdl.errors import nearest

INSTALL = 'python -m pip install -r requirements-rl.txt'


@dataclasses.dataclass
class Gymnasium(Environment):
    """An environment of Gymnasium by its id; stepped by the host, all in turn.

    Its observations are one array and its actions discrete from 0 or a bounded box; an episode has a
    limit of steps.

    Attributes:
        name: such as 'CartPole-v1' or 'LunarLander-v3'.
        settings: pairs (name, value) of the environment's own arguments.
        most: steps after which an episode is truncated; 0: what Gymnasium says.
        kept: living objects that the host keeps; more than are played at a time.
    """

    name: str = 'CartPole-v1'
    settings: tuple = ()
    most: int = 0
    kept: int = 4096

    def check(self):
        try:
            import gymnasium
        except ImportError:
            raise ValueError(f'name={self.name!r}: needs gymnasium; {INSTALL}') from None
        if self.name not in gymnasium.registry and ':' not in self.name:
            raise ValueError(
                f'name={self.name!r}: Gymnasium has no such environment'
                f'{nearest(self.name, gymnasium.registry)}'
            )
        try:
            host = self._host
        except Exception as error:  # whatever the environment's own packages raise
            raise ValueError(f'name={self.name!r}: {error}; {INSTALL}') from None
        host.check()

    @property
    def _host(self) -> 'Host':
        return _host(self.name, tuple(map(tuple, self.settings)), self.most, self.kept)

    @property
    def limit(self) -> int:
        return self._host.limit

    @property
    def actions(self) -> Discrete | Box:
        return self._host.actions

    @property
    def observation(self) -> jax.ShapeDtypeStruct:
        return self._host.seen

    def reset(self, key: jax.Array) -> tuple[Tree, jax.Array]:
        state = self._fresh(key)
        host = self._host
        observation = jax.pure_callback(
            host.reset, host.seen, state['seed'], True, vmap_method='broadcast_all'
        )
        return state, observation

    def _fresh(self, key: jax.Array) -> Tree:
        shape, kind = self._host.action
        return {
            'seed': jax.random.bits(key, (), jnp.uint32),
            'count': jnp.zeros((), jnp.int32),
            'over': jnp.zeros((), bool),
            'digest': jnp.zeros((), jnp.uint32),
            'actions': jnp.zeros((self.limit, *shape), kind),
        }

    def step(self, key: jax.Array, state: Tree, action: jax.Array) -> Step:
        del key
        host = self._host
        action = jnp.asarray(action, state['actions'].dtype)
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        flag = jax.ShapeDtypeStruct((), jnp.bool_)
        digest = jax.ShapeDtypeStruct((), jnp.uint32)
        observation, reward, terminated, truncated, digest = jax.pure_callback(
            host.step,
            (host.seen, scalar, flag, flag, digest),
            state,
            action,
            vmap_method='broadcast_all',
        )
        count = state['count']
        here = jnp.arange(self.limit) == count
        here = here.reshape(-1, *[1] * action.ndim)
        state = {
            'seed': state['seed'],
            'count': count + 1,
            'over': terminated | truncated,
            'digest': digest,
            'actions': jnp.where(here, action, state['actions']),
        }
        return Step(state, observation, reward, terminated, truncated)

    def renew(self, key, done, state, observation):
        """Resets only those that are done: a reset takes the host as long as several steps."""
        fresh, host = self._fresh(key), self._host
        new = jax.pure_callback(
            host.reset, host.seen, fresh['seed'], done, vmap_method='broadcast_all'
        )
        return jax.tree.map(lambda a, b: jnp.where(done, a, b), (fresh, new), (state, observation))


class Host:
    """The living environments of one id, by (seed, steps, digest of the actions)."""

    def __init__(self, name: str, settings: tuple, most: int, kept: int):
        self.name, self.settings, self.kept = name, settings, kept
        # Several may be alike: episodes with the same seed and so far the same actions.
        self.alive: collections.OrderedDict[tuple, list] = collections.OrderedDict()
        self.spare: list[Any] = []
        self.lock = threading.Lock()
        self.replayed = 0  # steps that were played again
        first = self.make()
        self.spare.append(first)
        limit = first.spec.max_episode_steps if first.spec is not None else None
        self.limit = most or limit or 0
        self.space, self.sight = first.action_space, first.observation_space

    def make(self) -> Any:
        import gymnasium

        # The checker warns about environments at every step, which costs as much as the step.
        return gymnasium.make(self.name, disable_env_checker=True, **dict(self.settings))

    def check(self) -> None:
        """Raises ValueError where the environment does not fit the interface."""
        if not self.limit:
            raise ValueError('most=0: this environment has no limit of steps of its own; give one')
        if getattr(self.sight, 'shape', None) is None:
            raise ValueError(
                f'name={self.name!r}: its observations are {self.sight}, not one array'
            )
        _ = self.actions

    @functools.cached_property
    def actions(self) -> Discrete | Box:
        space = self.space
        if hasattr(space, 'n') and not getattr(space, 'start', 0):
            return Discrete(int(space.n))
        if not hasattr(space, 'low') or not np.isfinite([space.low, space.high]).all():
            raise ValueError(
                f'name={self.name!r}: its actions are {space}; they must be Discrete from 0, or a '
                'bounded Box'
            )
        return Box(np.asarray(space.low, np.float32), np.asarray(space.high, np.float32))

    @property
    def action(self) -> tuple[tuple[int, ...], Any]:
        """Shape and dtype of an action."""
        space = self.actions
        return ((), jnp.int32) if isinstance(space, Discrete) else (space.shape, jnp.float32)

    @functools.cached_property
    def seen(self) -> jax.ShapeDtypeStruct:
        kind = np.float32 if self.sight.dtype == np.float64 else self.sight.dtype
        return jax.ShapeDtypeStruct(self.sight.shape, kind)

    def _begun(self, seed: int) -> tuple[Any, np.ndarray]:
        environment = self.spare.pop() if self.spare else self.make()
        return environment, environment.reset(seed=seed)[0]

    def _keep(self, key: tuple, environment: Any) -> None:
        self.alive.setdefault(key, []).append(environment)
        if len(self.alive) > self.kept:
            self.spare.extend(self.alive.popitem(last=False)[1])

    def _take(self, key: tuple, actions: np.ndarray) -> Any:
        """The environment with this state; if the host has none, its actions are played again."""
        if key in self.alive:
            environment = self.alive[key].pop()
            if not self.alive[key]:
                del self.alive[key]
            return environment
        environment, _ = self._begun(key[0])
        for action in actions[: key[1]]:
            environment.step(_plain(action))
            self.replayed += 1
        return environment

    def reset(self, seeds: Any, wanted: Any) -> np.ndarray:
        """Observations [rows, …] at the start of an episode; zeros where it is not wanted."""
        seeds, wanted = np.asarray(seeds), np.broadcast_to(np.asarray(wanted), np.shape(seeds))
        out = np.zeros((*seeds.shape, *self.seen.shape), self.seen.dtype)
        with self.lock:
            for place in np.ndindex(seeds.shape):
                if wanted[place]:
                    environment, out[place] = self._begun(int(seeds[place]))
                    self._keep((int(seeds[place]), 0, 0), environment)
        return out

    def step(self, state: Any, actions: Any) -> tuple:
        """The results of one step of each, [rows, …], and the digests of their actions."""
        state, actions = jax.tree.map(np.asarray, (state, actions))
        rows = state['seed'].shape
        observation = np.zeros((*rows, *self.seen.shape), self.seen.dtype)
        reward, digest = np.zeros(rows, np.float32), np.zeros(rows, np.uint32)
        terminated, truncated = np.zeros(rows, bool), np.zeros(rows, bool)
        with self.lock:
            for place in np.ndindex(rows):
                if state['over'][place]:  # an evaluation goes on until the last episode is over
                    terminated[place] = True
                    continue
                key = tuple(int(state[name][place]) for name in ('seed', 'count', 'digest'))
                environment = self._take(key, state['actions'][place])
                action = actions[place]
                found = environment.step(_plain(action))
                observation[place], reward[place] = found[0], found[1]
                over = key[1] + 1 >= self.limit
                terminated[place], truncated[place] = found[2], found[3] or over
                digest[place] = zlib.crc32(action.tobytes(), key[2])
                if found[2] or found[3] or over:
                    self.spare.append(environment)
                else:
                    self._keep((key[0], key[1] + 1, int(digest[place])), environment)
        return observation, reward, terminated, truncated, digest


def _plain(action: np.ndarray) -> Any:
    return int(action) if action.ndim == 0 and action.dtype.kind == 'i' else action


@functools.cache
def _host(name: str, settings: tuple, most: int, kept: int) -> Host:
    return Host(name, settings, most, kept)
