"""Generation of images by two players: a generator, and a critic that tells its images from real ones.

The model is a jaxdl.models.gan.Gan, or any module with its methods `generate` and `judge` and
parameters in the groups 'generator' and 'critic', each of which has an optimizer of its own
(jaxdl.core.optim.Players). The averaged weights of config.ema are those that generate.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdl.api import Batch, DataSet, Drawn, Generated, Learner, Task, Tree
from jaxdl.errors import UserError, at_least
from jaxdl.metrics import Mean
from jaxdl.models.applied import Applied
from jaxdl.tasks.distance import Distance, measure
from jaxdl.tasks.pictures import as_bytes, id_keys, in_parts, normals, scaled, starts, tiled


@dataclasses.dataclass
class GanTask(Task):
    """What all losses of generator and critic share; a subclass gives `critic_loss`, `generator_loss`.

    The batch holds 'image' (uint8 [batch, height, width, channels], or floats as they are generated)
    and 'id'. The latent vectors of a step follow from the seed, the step and the ids, whatever the
    devices.

    Attributes:
        latent: numbers in a latent vector, drawn from the normal distribution.
        critic_steps: updates of the critic before one of the generator; each takes its part of the batch.
        gamma: weight of the squared gradient of the critic's score at real and at generated images (R1 and R2), halved as in the papers; 0: none.
        distance: what is measured of generated images in every evaluation.
        shown: generated images in the picture of an evaluation.
    """

    scalars: ClassVar[tuple[str, ...]] = ('gamma',)
    draw_options: ClassVar[tuple[str, ...]] = ('interpolate',)

    distance: Distance
    latent: int = 64
    critic_steps: int = 1
    gamma: float = 0.0
    shown: int = 64

    def check(self):
        at_least(self, latent=1, critic_steps=1, gamma=0, shown=0)

    @abc.abstractmethod
    def critic_loss(self, real: jax.Array, fake: jax.Array) -> jax.Array:
        """The critic's loss of each pair of scores, [batch]."""

    @abc.abstractmethod
    def generator_loss(self, real: jax.Array, fake: jax.Array) -> jax.Array:
        """The generator's loss of each pair of scores, [batch]."""

    def inputs(self, batch: Batch) -> dict[str, jax.Array]:
        return {'images': scaled(batch['image']), 'latents': self.latents(batch)}

    def latents(self, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """A latent vector for each row, from its id and `key`."""
        return normals(id_keys(batch, key), (self.latent,))

    def metrics(self, outputs: Any, batch: Batch) -> dict[str, Mean]:
        """loss (the critic's, without penalties), generator_loss, accuracy, and the mean scores.

        accuracy is the share of pairs in which the real image has the higher score; 0.5 means that
        the critic cannot tell.
        """
        _, real, fake = outputs
        return self._scored(real, fake, batch.get('mask'))

    def _scored(self, real: jax.Array, fake: jax.Array, mask: jax.Array | None) -> dict[str, Mean]:
        return {
            'loss': Mean.of(self.critic_loss(real, fake), mask),
            'generator_loss': Mean.of(self.generator_loss(real, fake), mask),
            'accuracy': Mean.of(real > fake, mask),
            'real_score': Mean.of(real, mask),
            'fake_score': Mean.of(fake, mask),
        }

    # ---- the step ----

    def start(self, learner: Learner, params: Tree, model_state: Tree, rng: jax.Array) -> Tree:
        """The key of all latent vectors; the key of a step differs from device to device."""
        return {'latents': jax.random.key_data(rng)}

    def updates(self, group: str = '') -> int:
        return self.critic_steps if group == 'critic' else 1

    def learn(
        self, learner: Learner, state: Any, batch: Batch, rng: jax.Array
    ) -> tuple[Any, dict[str, Mean]]:
        """`critic_steps` updates of the critic on a part of the batch each, then one of the generator."""
        parts = self.critic_steps
        if len(batch['image']) % parts:
            raise UserError(
                f'--config.task.critic_steps={parts}: each takes its part of the batch, and does '
                f'not divide the {len(batch["image"])} images of a device; change batch_size'
            )
        rows = {
            name: batch[name].reshape(-1, parts, *batch[name].shape[1:]) for name in ('image', 'id')
        }
        key = jax.random.wrap_key_data(state.task_state['latents'])
        keys = jax.random.split(jax.random.fold_in(key, state.step), parts + 1)
        found: dict[str, Mean] = {}
        for index in range(parts):
            part = {name: value[:, index] for name, value in rows.items()}
            made = self.latents(part, keys[index])
            state, new = self._critic_step(learner, state, scaled(part['image']), made, rng)
            found = {name: new[name].merge(found[name]) if found else new[name] for name in new}
        made = self.latents(part, keys[parts])
        state, loss = self._generator_step(learner, state, scaled(part['image']), made, rng)
        return state, {**found, 'generator_loss': loss}

    def _critic_step(self, learner, state, images, latents, rng):
        call = functools.partial(_call, learner.model, rng)
        fake, model_state = call(state.params, state.model_state, 'generate', latents)
        both = jnp.concatenate([images, jax.lax.stop_gradient(fake)])
        count = len(images)

        def loss(weights):
            params = {**state.params, 'critic': weights}

            def judged(shown):
                scores, kept = call(params, model_state, 'judge', shown)
                return scores.sum(), (scores, kept)

            if isinstance(self.gamma, int | float) and not self.gamma:
                _, (scores, kept) = judged(both)
                penalties = {}
            else:
                slope, (scores, kept) = jax.grad(judged, has_aux=True)(both)
                sizes = jnp.square(slope).sum(tuple(range(1, slope.ndim)))
                penalties = {'r1': Mean.of(sizes[:count]), 'r2': Mean.of(sizes[count:])}
            metrics = {**self._scored(scores[:count], scores[count:], None), **penalties}
            total = metrics['loss'].total
            for penalty in penalties.values():
                total += self.gamma / 2 * penalty.total
            metrics['loss'] = Mean(total, metrics['loss'].weight)
            return metrics['loss'], (kept, metrics)

        grads, (model_state, metrics) = learner.gradient(loss, state.params['critic'])
        return learner.update(state.replace(model_state=model_state), grads, 'critic'), metrics

    def _generator_step(self, learner, state, images, latents, rng):
        call = functools.partial(_call, learner.model, rng)

        def loss(weights):
            params = {**state.params, 'generator': weights}
            fake, kept = call(params, state.model_state, 'generate', latents)
            scores, kept = call(params, kept, 'judge', jnp.concatenate([images, fake]))
            real, fake = scores[: len(images)], scores[len(images) :]
            mean = Mean.of(self.generator_loss(real, fake))
            return mean, (kept, mean)

        grads, (model_state, mean) = learner.gradient(loss, state.params['generator'])
        return learner.update(state.replace(model_state=model_state), grads, 'generator'), mean

    # ---- images ----

    def draw(
        self,
        model: Any,
        variables: Tree,
        data: DataSet,
        n: int,
        *,
        seed: int = 0,
        interpolate: int = 0,
    ) -> Drawn:
        """See Task.draw."""
        latents = starts(n, (self.latent,), seed=seed, interpolate=interpolate)
        return Drawn(as_bytes(in_parts(lambda part: _generate(model, variables, part), latents)))

    def generate(
        self,
        model: Any,
        variables: Tree,
        data: DataSet,
        *,
        final: bool,
        beat: Callable[[], None],
    ) -> Generated:
        """Pictures of samples and of walks between two of them; the distances to real images."""

        def draw(n, **options):
            return self.draw(model, variables, data, n, **options).images

        found = measure(self.distance, lambda n: draw(n, seed=1), data, final=final, beat=beat)
        if self.shown:
            columns = max(int(self.shown**0.5), 1)
            found.pictures['samples'] = tiled(draw(self.shown // columns * columns), columns)
            found.pictures['interpolations'] = tiled(draw(32, seed=2, interpolate=8), 8)
        return found


@dataclasses.dataclass
class R3Gan(GanTask):
    """R3GAN's loss: each real image against a generated one, with R1 and R2 (arXiv:2501.05441)."""

    gamma: float = 1.0

    def critic_loss(self, real, fake):
        return jax.nn.softplus(fake - real)

    def generator_loss(self, real, fake):
        return jax.nn.softplus(real - fake)


@dataclasses.dataclass
class HingeGan(GanTask):
    """The hinge loss (arXiv:1705.02894); its critic wants spectral normalisation (arXiv:1802.05957)."""

    def critic_loss(self, real, fake):
        return jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)

    def generator_loss(self, real, fake):
        del real
        return -fake


def _call(model, rng, params, model_state, method, x):
    """The result of a method in training, and the model's other variables after it."""
    apply = Applied(model, params, model_state, rng)
    return apply(x, train=True, method=method), apply.model_state


@functools.partial(jax.jit, static_argnums=0)
def _generate(model, variables, latents):
    return model.apply(variables, latents, train=False, method='generate')
