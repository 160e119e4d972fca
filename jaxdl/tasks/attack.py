"""Adversarial examples: the worst image that an attack finds within a ball around each image."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdl.errors import above_zero, at_least, one_of
from jaxdl.models import ops
from jaxdl.tasks.losses import token_losses

Array = jax.Array


@dataclasses.dataclass
class Attack:
    """Projected gradient ascent within a ball around each image (PGD, arXiv:1706.06083).

    Pixels are in [0, 1]. One step as long as the radius, from the image itself, is the fast gradient
    sign method (FGSM, arXiv:1412.6572). The length of a step is given, not derived from their
    number, so that an attack of more steps visits all points of one with fewer.

    Attributes:
        norm: the distance that the radius bounds: 'linf' (of each pixel) or 'l2' (of the whole image).
        radius: the largest distance from the image.
        steps: gradient steps from each start.
        step_size: the length of a step, in the same distance.
        restarts: starts; more than one need random_start.
        random_start: start at a random point of the ball, otherwise at the image itself.
        objective: what a step raises: 'cross_entropy', or the 'margin' of the best wrong label over the right one, which cannot saturate.
    """

    scalars: ClassVar[tuple[str, ...]] = ('radius', 'step_size')

    norm: str = 'linf'
    radius: float = 0.1
    steps: int = 7
    step_size: float = 0.025
    restarts: int = 1
    random_start: bool = True
    objective: str = 'cross_entropy'

    def check(self):
        one_of(self, norm=('linf', 'l2'), objective=('cross_entropy', 'margin'))
        above_zero(self, 'radius', 'step_size')
        at_least(self, steps=1, restarts=1)
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f'restarts={self.restarts}: all starts are the same with random_start=False'
            )

    def budget(self) -> str:
        """What the attack may do, in words, to stand beside every accuracy under it."""
        name = {'linf': 'L∞', 'l2': 'L2'}[self.norm]
        start = 'random starts' if self.random_start else 'start at the image'
        return (
            f'{name} distance at most {self.radius:.4g} of pixels in [0, 1]; {self.steps} steps of '
            f'{self.step_size:.4g} up the {self.objective.replace("_", " ")}, '
            f'{self.restarts} {start}; the worst of all points counts'
        )

    def rise(self, logits: Array, labels: Array) -> Array:
        """The objective of each image, [batch]."""
        if self.objective == 'margin':
            return margin(logits, labels)
        return token_losses(logits, labels, 0.0)[0]

    def perturbed(self, rise: Callable[[Array], Array], images: Array, keys: Array) -> Array:
        """The point [batch, …] after the last step of one start: what adversarial training learns.

        Args:
            rise: images → [batch], the objective.
            images: float32 [batch, …] in [0, 1].
            keys: [batch] keys for the starts.
        """
        gradient = jax.grad(lambda x: rise(x).sum())

        def step(x, _):
            return self.moved(x, gradient(x), images), None

        x, _ = _repeat(step, self._start(images, keys), self.steps)
        return jax.lax.stop_gradient(x)

    def worst(
        self, logits: Callable[[Array], Array], images: Array, labels: Array, keys: Array
    ) -> tuple[Array, Array]:
        """Of all points of all starts and the images themselves, the one with the largest margin.

        Returns it, [batch, …], and whether any of these points is classified wrongly, bool [batch].
        So more steps or restarts never make an image safe that was not. The start number r of an
        image depends on its key and r alone.
        """

        def kept(best, x, found):
            old, size, fooled = best
            new = margin(found, labels)
            better = new > size
            wide = better.reshape(-1, *(1,) * (x.ndim - 1))
            wrong = found.argmax(-1) != labels
            return jnp.where(wide, x, old), jnp.where(better, new, size), fooled | wrong

        def total(x):
            found = logits(x)
            return self.rise(found, labels).sum(), found

        def step(carry, _):
            x, best = carry
            slope, found = jax.grad(total, has_aux=True)(x)
            return (self.moved(x, slope, images), kept(best, x, found)), None

        def restart(best, number):
            start = self._start(images, jax.vmap(jax.random.fold_in, (0, None))(keys, number))
            (x, best), _ = _repeat(step, (start, best), self.steps)
            return kept(best, x, logits(x)), None

        none = jnp.zeros(len(images), bool)
        best = kept((images, jnp.full(len(images), -jnp.inf), none), images, logits(images))
        (x, _, fooled), _ = _repeat(restart, best, self.restarts)
        return jax.lax.stop_gradient(x), fooled

    def moved(self, x: Array, gradient: Array, images: Array) -> Array:
        """`x` after a step along `gradient`, brought back into the ball and into [0, 1].

        The ball comes first: the images are in [0, 1], so clipping never leads away from them.
        """
        if self.norm == 'linf':
            apart = x + self.step_size * jnp.sign(gradient) - images
            apart = jnp.clip(apart, -self.radius, self.radius)
        else:
            length = _length(gradient)
            apart = x + self.step_size * gradient / jnp.maximum(length, 1e-12) - images
            apart = apart * jnp.minimum(1.0, self.radius / jnp.maximum(_length(apart), 1e-12))
        return jnp.clip(images + apart, 0.0, 1.0)

    def _start(self, images: Array, keys: Array) -> Array:
        """A uniformly random point of each ball, clipped to [0, 1]; or the images themselves."""
        if not self.random_start:
            return images
        shape = images.shape[1:]
        if self.norm == 'linf':
            apart = jax.vmap(lambda k: jax.random.uniform(k, shape, minval=-1.0))(keys)
            return jnp.clip(images + self.radius * apart, 0.0, 1.0)

        def inside(key):
            direction_key, length_key = jax.random.split(key)
            direction = jax.random.normal(direction_key, shape)
            length = jax.random.uniform(length_key) ** (1 / direction.size)
            return length * direction / jnp.sqrt((direction**2).sum())

        return jnp.clip(images + self.radius * jax.vmap(inside)(keys), 0.0, 1.0)


def margin(logits: Array, labels: Array) -> Array:
    """By how much the best wrong logit exceeds that of the label, [batch]; above 0: fooled."""
    right = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    own = jnp.where(right, logits, 0).sum(-1)
    return jnp.where(right, -jnp.inf, logits).max(-1) - own


def _length(x: Array) -> Array:
    """The Euclidean length of each image, [batch, 1, …]."""
    return jnp.sqrt((x**2).sum(tuple(range(1, x.ndim)), keepdims=True))


def _repeat(step: Callable, carry: Any, times: int) -> tuple[Any, Any]:
    """`step` so many times, as a loop; on a CPU written out.

    The CPU's compiler has a slow form alone for a convolution inside a loop (4 to 7 times as slow
    for a small network), so there the longer compilation pays.
    """
    unroll = times if ops.platform() in ('cpu', 'plain') else 1
    return jax.lax.scan(step, carry, jnp.arange(times), unroll=unroll)
