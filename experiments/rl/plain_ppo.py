"""PPO as one compiled program in the style of purejaxrl, to measure jaxdl's speed against.

No checkpoints, no logs, no evaluation; gymnax, Flax and optax alone. The rollout, the advantages and the
minibatches are those of purejaxrl's ppo.py: a random permutation of all samples in each epoch, and an
episode that is cut off counts as one that ended.
"""

from typing import NamedTuple

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax


class Network(nn.Module):
    """Two torsos of tanh layers, or with channels one convolutional torso of relu."""

    actions: int
    widths: tuple[int, ...] = (64, 64)
    channels: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x):
        def torso(x):
            for width in self.widths:
                layer = nn.Dense(width, kernel_init=nn.initializers.orthogonal(np.sqrt(2)))
                x = (nn.relu if self.channels else nn.tanh)(layer(x))
            return x

        if self.channels:
            for channels in self.channels:
                x = nn.relu(nn.Conv(channels, (3, 3), padding='VALID')(x))
            first = other = torso(x.reshape(len(x), -1))
        else:
            first, other = torso(x), torso(x)
        logits = nn.Dense(self.actions, kernel_init=nn.initializers.orthogonal(0.01))(first)
        value = nn.Dense(1, kernel_init=nn.initializers.orthogonal(1.0))(other)
        return logits, value[:, 0]


class Row(NamedTuple):
    done: jax.Array
    action: jax.Array
    value: jax.Array
    reward: jax.Array
    log_prob: jax.Array
    seen: jax.Array


def log_prob_of(logits, action):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]


def make_train(
    name,
    *,
    network,
    environments,
    rollout,
    epochs,
    minibatches,
    updates,
    rate,
    discount=0.99,
    trace=0.95,
    clip=0.2,
):
    """A function of a key that trains and returns the mean return of the last episodes an update."""
    environment, values = gymnax.make(name)
    total = updates * epochs * minibatches
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adam(lambda n: rate * (1 - n / total), eps=1e-5)
    )

    def train(key):
        key, init_key, reset_key = jax.random.split(key, 3)
        shape = environment.observation_space(values).shape
        params = network.init(init_key, jnp.zeros((1, *shape)))
        reset = jax.vmap(environment.reset, in_axes=(0, None))
        seen, state = reset(jax.random.split(reset_key, environments), values)
        zeros = jnp.zeros(environments)

        def step(carry, _):
            params, state, seen, earned, last, key = carry
            key, act_key, step_key = jax.random.split(key, 3)
            logits, value = network.apply(params, seen)
            action = jax.random.categorical(act_key, logits)
            after, state, reward, terminated, truncated, _ = jax.vmap(
                environment.step, in_axes=(0, 0, 0, None)
            )(jax.random.split(step_key, environments), state, action, values)
            done = terminated | truncated
            earned = earned + reward
            last, earned = jnp.where(done, earned, last), jnp.where(done, 0, earned)
            row = Row(done, action, value, reward, log_prob_of(logits, action), seen)
            return (params, state, after, earned, last, key), row

        def update(carry, _):
            params, opt_state, state, seen, earned, last, key = carry
            (_, state, seen, earned, last, key), rows = jax.lax.scan(
                step, (params, state, seen, earned, last, key), None, rollout
            )
            _, last_value = network.apply(params, seen)

            def backward(carry, row):
                later, following = carry
                error = row.reward + discount * following * (1 - row.done) - row.value
                later = error + discount * trace * (1 - row.done) * later
                return (later, row.value), later

            _, advantage = jax.lax.scan(
                backward, (jnp.zeros_like(last_value), last_value), rows, reverse=True, unroll=16
            )
            target = advantage + rows.value

            def loss(params, batch):
                row, advantage, target = batch
                logits, value = network.apply(params, row.seen)
                ratio = jnp.exp(log_prob_of(logits, row.action) - row.log_prob)
                scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                gain = jnp.minimum(ratio * scaled, jnp.clip(ratio, 1 - clip, 1 + clip) * scaled)
                near = row.value + jnp.clip(value - row.value, -clip, clip)
                apart = jnp.maximum((value - target) ** 2, (near - target) ** 2)
                logs = jax.nn.log_softmax(logits)
                entropy = -(jnp.exp(logs) * logs).sum(-1).mean()
                return -gain.mean() + 0.25 * apart.mean() - 0.01 * entropy

            def minibatch(carry, batch):
                params, opt_state = carry
                change, opt_state = optimizer.update(jax.grad(loss)(params, batch), opt_state)
                return (optax.apply_updates(params, change), opt_state), None

            def epoch(carry, _):
                params, opt_state, key = carry
                key, order_key = jax.random.split(key)
                size = rollout * environments
                order = jax.random.permutation(order_key, size)
                parts = jax.tree.map(
                    lambda x: jnp.take(x.reshape(size, *x.shape[2:]), order, axis=0).reshape(
                        minibatches, -1, *x.shape[2:]
                    ),
                    (rows, advantage, target),
                )
                (params, opt_state), _ = jax.lax.scan(minibatch, (params, opt_state), parts)
                return (params, opt_state, key), None

            (params, opt_state, key), _ = jax.lax.scan(
                epoch, (params, opt_state, key), None, epochs
            )
            return (params, opt_state, state, seen, earned, last, key), last.mean()

        start = (params, optimizer.init(params), state, seen, zeros, zeros, key)
        return jax.lax.scan(update, start, None, updates)[1]

    return train
