"""Replay: a ring buffer of transitions on the device, part of a task's state.

Every environment has a row of the buffer and samples come from each row alike, so a buffer that is
split over the devices with the environments is written and read without communication.
"""

import dataclasses
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from jaxdl.environments.arena import Transition
from jaxdl.errors import at_least

# Slots whose priorities are summed together. A look-up reads the sums of all blocks and one block:
# for 100,000 transitions on a CPU 3 times as fast as a binary tree of sums, which must be kept up to
# date besides, and 5 times as fast as the cumulative sum of all.
BLOCK = 64


class Stored(flax.struct.PyTreeNode):
    """The buffer: arrays whose first dimension is the environments.

    Attributes:
        rows: what `Replay.add` was given, each array [environments, slots, …].
        added: int32, steps that were written so far; the newest is in slot (added - 1) % slots.
        priorities: float32 [environments, slots, rounded up to blocks]; 0: not to be sampled. None:
            sampling is uniform.
        largest: float32 [environments], the largest priority so far, which new transitions get.
    """

    rows: Transition
    added: jax.Array
    priorities: jax.Array | None = None
    largest: jax.Array | None = None


class Sample(flax.struct.PyTreeNode):
    """Transitions over one or more steps, each leaf [samples, …].

    Attributes:
        observation: where the action was taken.
        action: what was done there.
        reward: discounted sum of the rewards up to `next_observation`.
        next_observation: n steps later, or the last of the episode.
        discount: factor on the value of `next_observation`: γ^steps, and 0 after an end; a time
            limit is no end.
        weight: correction of prioritised sampling, at most 1 (arXiv:1511.05952); 1 if uniform.
        slot: int32 [environments, samples of each], for `Replay.prioritise`.
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array
    discount: jax.Array
    weight: jax.Array
    slot: jax.Array


@dataclasses.dataclass
class Replay:
    """Which transitions are kept and how they are sampled.

    Attributes:
        capacity: transitions that are kept, over all environments.
        minimum: transitions before the first update, over all environments.
        steps: steps of a transition (n-step returns); 1: a single one.
        priority: exponent of prioritised sampling (arXiv:1511.05952), such as 0.6; 0: uniform.
        correction: exponent of the weights that correct for priorities, at the start; 1 at the end.
    """

    scalars: ClassVar[tuple[str, ...]] = ('priority', 'correction')

    capacity: int = 100_000
    minimum: int = 1_000
    steps: int = 1
    priority: float = 0.0
    correction: float = 0.4

    def check(self):
        at_least(self, capacity=2, minimum=1, steps=1, priority=0)
        if not self.minimum <= self.capacity:
            raise ValueError(
                f'minimum={self.minimum}: must be at most capacity={self.capacity}, '
                'or no update would ever come'
            )
        if isinstance(self.correction, int | float) and not 0 <= self.correction <= 1:
            raise ValueError(f'correction={self.correction}: must be in [0, 1]')

    def slots(self, environments: int) -> int:
        """Steps that are kept of each environment.

        Raises ValueError where they are too few.
        """
        slots = self.capacity // environments
        if slots <= self.steps or self.capacity % environments:
            raise ValueError(
                f'capacity={self.capacity}: must be a multiple of the {environments} environments, '
                f'and more than {self.steps} steps of each'
            )
        return slots

    @property
    def prioritised(self) -> bool:
        """A traced priority is never 0 (scalars that are 0 are constants)."""
        return not isinstance(self.priority, int | float) or self.priority > 0

    def start(self, example: Transition) -> Stored:
        """An empty buffer for rows like `example`, arrays or their shapes [environments, …]."""
        environments = len(example.reward)
        slots = self.slots(environments)
        rows = jax.tree.map(
            lambda x: jnp.zeros((environments, slots, *x.shape[1:]), x.dtype), example
        )
        stored = Stored(rows, jnp.zeros((), jnp.int32))
        if not self.prioritised:
            return stored
        padded = -(-slots // BLOCK) * BLOCK
        return stored.replace(
            priorities=jnp.zeros((environments, padded)), largest=jnp.ones(environments)
        )

    def add(self, stored: Stored, rows: Transition) -> Stored:
        """The buffer with one step of all environments, in place of the oldest if it is full.

        The actions may be in other units than the environment's.
        """
        slots = stored.rows.reward.shape[1]
        slot = stored.added % slots
        new = stored.replace(
            rows=jax.tree.map(lambda x, row: x.at[:, slot].set(row), stored.rows, rows),
            added=stored.added + 1,
        )
        if stored.priorities is None or stored.largest is None:
            return new
        # A transition can be sampled when its last step is there.
        ready = (new.added - self.steps) % slots
        first = jnp.where(new.added >= self.steps, stored.largest, 0)
        priorities = stored.priorities.at[:, slot].set(0).at[:, ready].set(first)
        return new.replace(priorities=priorities)

    def ready(self, stored: Stored) -> jax.Array:
        """Whether there are enough transitions to learn from: a boolean on the device."""
        environments = len(stored.rows.reward)
        return stored.added >= max(-(-self.minimum // environments), self.steps)

    def sample(
        self,
        stored: Stored,
        rng: jax.Array,
        count: int,
        *,
        discount: Any,
        progress: jax.Array | float = 0.0,
    ) -> Sample:
        """`count` transitions with replacement, the same number of each environment.

        `progress` is the fraction of the run that is done. In a buffer that is not `ready` the
        slots are arbitrary.

        Raises ValueError where `count` is no multiple of the environments.
        """
        environments, slots = stored.rows.reward.shape
        if count % environments:
            raise ValueError(
                f'{count} samples cannot be taken alike from {environments} environments; '
                'the number must be a multiple'
            )
        each = count // environments
        filled = jnp.minimum(stored.added, slots)
        choices = jnp.maximum(filled - self.steps + 1, 1)
        uniform = jax.random.uniform(rng, (environments, each))
        weight = jnp.ones(count)
        if stored.priorities is None:
            age = jnp.minimum((uniform * choices).astype(jnp.int32), choices - 1)
            slot = (stored.added - filled + age) % slots
        else:
            slot, chance = _by_priority(stored.priorities, uniform)
            exponent = self.correction + (1 - self.correction) * progress
            weight = (
                jnp.where(chance > 0, (1 / jnp.maximum(chance * choices, 1e-20)), 0) ** exponent
            )
            weight = (weight / jnp.maximum(weight.max(), 1e-20)).reshape(count)
        return self._transitions(stored.rows, slot, weight, discount)

    def _transitions(
        self, rows: Transition, slot: jax.Array, weight: jax.Array, discount: Any
    ) -> Sample:
        """The steps from `slot` [environments, each] on, put together to transitions."""
        slots = rows.reward.shape[1]

        def take(x, where):
            """x [environments, slots, …] at `where` [environments, …]; then all samples in a row."""
            found = jax.vmap(lambda row, index: row[index])(x, where)
            return found.reshape(-1, *found.shape[2:])

        window = (slot[..., None] + jnp.arange(self.steps)) % slots
        done = take(rows.terminated, window) | take(rows.truncated, window)  # [samples, steps]
        before = jnp.cumsum(done, axis=1) - done  # ends of an episode before each step
        powers = jnp.asarray(discount, jnp.float32) ** jnp.arange(self.steps + 1)
        rewards = jnp.where(before == 0, take(rows.reward, window), 0.0)
        length = (before == 0).sum(1)
        last = (slot + length.reshape(slot.shape) - 1) % slots
        return Sample(
            observation=take(rows.observation, slot),
            action=take(rows.action, slot),
            reward=(rewards * powers[:-1]).sum(1),
            next_observation=take(rows.next_observation, last),
            discount=jnp.where(take(rows.terminated, last), 0.0, powers[length]),
            weight=weight,
            slot=slot,
        )

    def prioritise(self, stored: Stored, slot: jax.Array, errors: jax.Array) -> Stored:
        """The buffer after `errors` [samples] of the transitions at `slot` were seen.

        The priority is (|error| + 1e-6)^priority. Without priorities nothing changes.
        """
        if stored.priorities is None or stored.largest is None:
            return stored
        new = ((jnp.abs(errors) + 1e-6) ** self.priority).reshape(slot.shape)
        # Rounding may choose, once in very many samples, a slot that must not be sampled: it stays so.
        new = jnp.where(jnp.take_along_axis(stored.priorities, slot, 1) > 0, new, 0)
        # A transition that was sampled twice gets the larger: no order of writing decides.
        cleared = jax.vmap(lambda row, at: row.at[at].set(0))(stored.priorities, slot)
        return stored.replace(
            priorities=jax.vmap(lambda row, at, x: row.at[at].max(x))(cleared, slot, new),
            largest=jnp.maximum(stored.largest, new.max(1)),
        )


def _by_priority(priorities: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Slots in proportion to their priorities in each row, and their probabilities.

    priorities [rows, slots], uniform [rows, samples] in [0, 1). The samples of a row come from
    equally large parts of its sum, one each, which lowers the variance (arXiv:1511.05952, B.2.1).
    """
    rows, samples = uniform.shape
    blocks = priorities.reshape(rows, -1, BLOCK)
    sums = jnp.cumsum(blocks.sum(2), axis=1)
    total = sums[:, -1:]
    wanted = (jnp.arange(samples) + uniform) / samples * total
    wanted = jnp.minimum(wanted, jnp.nextafter(total, jnp.zeros_like(total)))
    block = jax.vmap(lambda row, x: jnp.searchsorted(row, x, side='right'))(sums, wanted)
    block = jnp.minimum(block, sums.shape[1] - 1)
    before = jnp.where(block > 0, jnp.take_along_axis(sums, jnp.maximum(block - 1, 0), 1), 0)
    inner = jnp.cumsum(jnp.take_along_axis(blocks, block[..., None], 1), axis=2)
    # The sums of a block in two orders may differ by rounding: never past its last priority.
    most = jnp.nextafter(inner[..., -1], jnp.zeros_like(wanted))
    place = (inner <= jnp.minimum(wanted - before, most)[..., None]).sum(2)
    slot = block * BLOCK + jnp.minimum(place, BLOCK - 1)
    chance = jnp.take_along_axis(priorities, slot, 1) / jnp.maximum(total, 1e-20)
    return slot.astype(jnp.int32), chance
