"""The environments of gymnax: CartPole, Acrobot, MountainCar, Pendulum, MinAtar, bsuite and others."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.api import Tree
from jaxdl.environments import drawing
from jaxdl.environments.environment import Box, Discrete, Environment, Step
from jaxdl.errors import nearest

INSTALL = 'python -m pip install -r requirements-rl.txt'


@dataclasses.dataclass
class Gymnax(Environment):
    """An environment of gymnax by its name.

    The observations of MinAtar are bool [10, 10, channels], all others are as gymnax has them.

    Attributes:
        name: such as 'CartPole-v1', 'Breakout-MinAtar' or 'MemoryChain-bsuite'.
        settings: pairs (name, value) of gymnax's own parameters that differ from its defaults, such as ('memory_length', 10) or ('max_steps_in_episode', 200).
    """

    name: str = 'CartPole-v1'
    settings: tuple = ()

    def check(self):
        try:
            import gymnax
        except ImportError:
            raise ValueError(f'name={self.name!r}: needs gymnax; {INSTALL}') from None
        known = gymnax.registered_envs
        if self.name not in known:
            raise ValueError(
                f'name={self.name!r}: gymnax has no such environment{nearest(self.name, known)}; '
                f'it has {", ".join(known)}'
            )
        _made(self.name, tuple(map(tuple, self.settings)))

    @property
    def _parts(self) -> tuple[Any, Any]:
        return _made(self.name, tuple(map(tuple, self.settings)))

    @property
    def limit(self) -> int:
        return int(self._parts[1].max_steps_in_episode)

    @property
    def actions(self) -> Discrete | Box:
        inner, values = self._parts
        with jax.ensure_compile_time_eval():
            space = inner.action_space(values)
            if hasattr(space, 'n'):
                return Discrete(int(space.n))
            low, high = (
                np.broadcast_to(np.asarray(bound, np.float32), space.shape)
                for bound in (space.low, space.high)
            )
        return Box(low, high)

    def reset(self, key: jax.Array) -> tuple[Tree, jax.Array]:
        inner, values = self._parts
        observation, state = inner.reset_env(key, values)
        kinds = _kinds(self.name, tuple(map(tuple, self.settings)))
        state = jax.tree.map(lambda x, kind: jnp.asarray(x, kind), state, kinds)
        return state, self._seen(observation)

    def step(self, key: jax.Array, state: Tree, action: jax.Array) -> Step:
        inner, values = self._parts
        observation, new, reward, terminated, _ = inner.step_env(key, state, action, values)
        truncated = inner.is_truncated(new, values)
        new = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype).reshape(old.shape), new, state)
        return Step(
            new,
            self._seen(observation),
            jnp.asarray(reward, jnp.float32).reshape(()),
            jnp.asarray(terminated, bool).reshape(()),
            jnp.asarray(truncated, bool).reshape(()),
        )

    def _seen(self, observation: jax.Array) -> jax.Array:
        minatar = self.name.endswith('-MinAtar')
        return jnp.asarray(observation, bool if minatar else jnp.result_type(observation))

    def draw(self, state: Any, observation: np.ndarray) -> np.ndarray | None:
        if self.name == 'CartPole-v1':
            return drawing.cart_pole(float(state.x), float(state.theta))
        if self.name == 'Pendulum-v1':
            return drawing.pendulum(float(state.theta))
        if self.name.endswith('-MinAtar'):
            return drawing.channels(observation)
        return None


@functools.cache
def _made(name: str, settings: tuple) -> tuple[Any, Any]:
    """The environment and its parameters.

    Raises ValueError where it does not have one of the settings.
    """
    import inspect

    import gymnax

    # What is made keeps arrays, and is kept: they must not belong to a function that is traced.
    with jax.ensure_compile_time_eval():
        plain, values = gymnax.make(name)
        own = {field.name for field in dataclasses.fields(values)}
        making = set(inspect.signature(type(plain)).parameters)
        for pair in settings:
            if len(pair) != 2 or pair[0] not in own | making:
                raise ValueError(
                    f'settings={settings}: must be pairs (name, value); {name} has '
                    f'{", ".join(sorted(own | making))}'
                )
        given = dict(settings)
        made, values = gymnax.make(name, **{k: v for k, v in given.items() if k in making})
        return made, values.replace(**{k: v for k, v in given.items() if k in own - making})


@functools.cache
def _kinds(name: str, settings: tuple) -> Tree:
    """The dtypes of the state's leaves: some begin as integers and go on as floats."""
    inner, values = _made(name, settings)
    key = jax.random.key(0)
    _, first = jax.eval_shape(lambda: inner.reset_env(key, values))
    space = inner.action_space(values)
    action = jnp.zeros(space.shape, jnp.int32 if hasattr(space, 'n') else jnp.float32)

    def step(state):
        return inner.step_env(key, state, action, values)[1]

    later = jax.eval_shape(step, first)
    return jax.tree.map(lambda a, b: jnp.promote_types(a.dtype, b.dtype), first, later)
