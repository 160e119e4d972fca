"""Variational autoencoders: a bound on the likelihood of images, in bits per dimension."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.api import Apply, Batch, DataSet, Drawn, Generated, Task, Tree
from jaxdl.errors import at_least
from jaxdl.metrics import Mean
from jaxdl.models.vae import mean_of, mixture
from jaxdl.tasks import pictures
from jaxdl.tasks.distance import Distance, measure


@dataclasses.dataclass
class VariationalAutoencoder(Task):
    """Maximises the evidence lower bound of images (arXiv:1312.6114).

    The model is a jaxdl.models.vae.Vae, or another with its methods `encode` and `decode`. The
    batch holds 'image' uint8 [batch, height, width, channels] and 'id'. The likelihood of a pixel
    is a mixture of logistic distributions cut at the grey levels (arXiv:1701.05517, without its
    dependence between channels), so the bound is one on a probability, comparable with others on
    the same grey levels. All metrics but those of the latents are bits per dimension:
    per channel and pixel.

    Attributes:
        levels: grey levels that the images have, evenly from 0 to 255; digits have 17.
        beta: weight of the KL divergence in the loss; 1 is the bound (arXiv:1804.03599).
        importance: samples of the importance-weighted estimate in every evaluation; 0: none.
        shown: pictures in a row of the pictures of an evaluation; 0: no pictures.
        distance: what is measured of samples in every evaluation; None: nothing.
        augmentations: applied in order to every training batch, on the device.
    """

    scalars: ClassVar[tuple[str, ...]] = ('beta',)
    draw_options: ClassVar[tuple[str, ...]] = ('interpolate',)

    levels: int = 256
    beta: float = 1.0
    importance: int = 0
    shown: int = 8
    distance: Distance | None = None
    augmentations: tuple = ()

    def check(self):
        at_least(self, levels=2, beta=0, importance=0, shown=0)

    def augment(self, batch: Batch, rng: jax.Array) -> Batch:
        for index, augmentation in enumerate(self.augmentations):
            batch = augmentation(batch, jax.random.fold_in(rng, index + 1))
        return pictures.with_draws(batch, jax.random.fold_in(rng, 0))

    def inputs(self, batch: Batch) -> dict[str, jax.Array]:
        return {'images': pictures.scaled(batch['image'])}

    def metrics(self, outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        """The reconstruction of the mean latents; training and evaluation have the whole bound."""
        nats = -self._log_likelihood(outputs, self.inputs(batch)['images'])
        return {'loss': Mean.of(nats * self._bits(batch), batch.get('mask'))}

    def losses(self, apply: Apply, batch: Batch, rng: jax.Array) -> dict[str, Mean]:
        """loss, and the bound's two terms, reconstruction and kl."""
        mean, log_std = self._encoded(apply, batch, train=True)
        return self._bound(apply, batch, mean, log_std, train=True)

    def evaluate(self, apply: Apply, batch: Batch) -> dict[str, Mean]:
        """The bound with noise of the row's id, its terms, and the importance-weighted estimate.

        importance_weighted_K is -log of the mean of K weights p(x, z) / q(z | x), another bound,
        which K tightens (arXiv:1509.00519).
        """
        mean, log_std = self._encoded(apply, batch, train=False)
        found = self._bound(apply, batch, mean, log_std, train=False)
        found['latent_square'] = Mean.of(jnp.square(mean), batch.get('mask'))
        if self.importance:

            def weight(_, index):
                keys = pictures.row_keys(batch, index + 1)
                noise = pictures.normals(keys, mean.shape[1:])
                return None, self._log_weight(apply, batch, mean, log_std, noise)

            logs = jax.lax.scan(weight, None, jnp.arange(self.importance))[1]
            nats = math.log(self.importance) - jax.nn.logsumexp(logs, axis=0)
            name = f'importance_weighted_{self.importance}'
            found[name] = Mean.of(nats * self._bits(batch), batch.get('mask'))
        return found

    def derived(self, means: dict[str, Any]) -> dict[str, float]:
        """latent_std: the size of the mean latents, for the scale of a latent diffusion model."""
        square = means.get('latent_square')
        return {} if square is None else {'latent_std': math.sqrt(square)}

    def _bits(self, batch: Batch) -> float:
        """What turns nats of an image into bits per dimension."""
        return 1 / (math.log(2) * math.prod(batch['image'].shape[1:]))

    def _encoded(self, apply: Apply, batch: Batch, *, train: bool) -> tuple[jax.Array, jax.Array]:
        return apply(self.inputs(batch)['images'], train=train, method='encode')

    def _bound(self, apply, batch, mean, log_std, *, train: bool) -> dict[str, Mean]:
        noise = pictures.normals(pictures.row_keys(batch), mean.shape[1:])
        images, mask, bits = self.inputs(batch)['images'], batch.get('mask'), self._bits(batch)
        outputs = apply(mean + jnp.exp(log_std) * noise, train=train, method='decode')
        reconstruction = -self._log_likelihood(outputs, images) * bits
        kl = _sum((jnp.square(mean) + jnp.exp(2 * log_std) - 1) / 2 - log_std) * bits
        return {
            'loss': Mean.of(reconstruction + self.beta * kl, mask),
            'bound': Mean.of(reconstruction + kl, mask),
            'reconstruction': Mean.of(reconstruction, mask),
            'kl': Mean.of(kl, mask),
        }

    def _log_weight(self, apply, batch, mean, log_std, noise) -> jax.Array:
        """log p(x, z) / q(z | x) in nats, [batch], for one z of each row."""
        latents = mean + jnp.exp(log_std) * noise
        outputs = apply(latents, train=False, method='decode')
        likelihood = self._log_likelihood(outputs, self.inputs(batch)['images'])
        return likelihood + _sum((jnp.square(noise) - jnp.square(latents)) / 2 + log_std)

    def _log_likelihood(self, outputs: jax.Array, images: jax.Array) -> jax.Array:
        if outputs.shape[:-1] != images.shape:
            raise ValueError(
                f'the model gives outputs {outputs.shape} for images {images.shape}; it must be an '
                'autoencoder such as jaxdl.models.vae.Vae'
            )
        return _sum(log_probability(outputs, images, self.levels))

    # ---- pictures ----

    def preview(self, batch: Batch) -> dict[str, jax.Array]:
        return {'images': batch['image']} if batch['image'].dtype == jnp.uint8 else {}

    def draw(self, model: Any, variables: Tree, data: DataSet, n: int, **options: Any) -> Drawn:
        """See Task.draw: means of the likelihood for latents of the prior."""
        image = jax.ShapeDtypeStruct((1, *pictures.image_shape(data)), jnp.float32)
        mean, _ = jax.eval_shape(
            lambda x: model.apply(variables, x, train=False, method='encode'), image
        )
        latents = pictures.starts(
            n,
            mean.shape[1:],
            seed=options.get('seed', 0),
            interpolate=options.get('interpolate', 0),
        )
        decode = functools.partial(_decoded, model, variables)
        return Drawn(pictures.as_bytes(pictures.in_parts(decode, latents)))

    def generate(
        self,
        model: Any,
        variables: Tree,
        data: DataSet,
        *,
        final: bool,
        beat: Callable[[], None],
    ) -> Generated:
        """Test images above their reconstructions, samples, walks between two test images."""
        found = measure(
            self.distance,
            lambda n: self.draw(model, variables, data, n, seed=1).images,
            data,
            final=final,
            beat=beat,
        )
        if not self.shown:
            return found
        real = pictures.real_images(data, 4 * self.shown)
        whole = len(real) // self.shown * self.shown
        real, columns = (real[:whole], self.shown) if whole else (real, len(real))
        encoded = jax.jit(
            lambda x: model.apply(variables, pictures.scaled(x), train=False, method='encode')[0]
        )(real)
        again = pictures.as_bytes(_decoded(model, variables, encoded))
        rows = [part.reshape(-1, columns, *real.shape[1:]) for part in (real, again)]
        pairs = np.stack(rows, 1).reshape(-1, *real.shape[1:])
        found.pictures['reconstructions'] = pictures.tiled(pairs, columns)
        beat()
        samples = self.draw(model, variables, data, self.shown**2).images
        found.pictures['samples'] = pictures.tiled(samples, self.shown)
        ends = encoded[:columns, None], encoded[-columns:, None]
        share = jnp.linspace(0, 1, self.shown).reshape(1, -1, *(1 for _ in encoded.shape[1:]))
        walks = (ends[0] + share * (ends[1] - ends[0])).reshape(-1, *encoded.shape[1:])
        between = pictures.as_bytes(_decoded(model, variables, walks))
        found.pictures['interpolations'] = pictures.tiled(between, self.shown)
        beat()
        return found


def _sum(values: jax.Array) -> jax.Array:
    """The sum over all but the first dimension."""
    return values.reshape(len(values), -1).sum(1)


@functools.partial(jax.jit, static_argnums=0)
def _decoded(model: Any, variables: Tree, latents: jax.Array) -> jax.Array:
    """The mean images in [-1, 1] of latents."""
    return mean_of(model.apply(variables, latents, train=False, method='decode'))


def log_probability(outputs: jax.Array, images: jax.Array, levels: int) -> jax.Array:
    """log probability in nats of each value of images in [-1, 1], under a mixture of logistics.

    A grey level has the mass between half a level below and half a level above; the first and the
    last have all that lies beyond.

    Args:
        outputs: [..., 3 · parts], see jaxdl.models.vae.mixture.
        images: [...]; the nearest of the values -1 + 2 k / (levels - 1) is taken.
        levels: how many values there are.
    """
    logits, means, log_scales = mixture(outputs)
    factor = jnp.exp(-jnp.maximum(log_scales, -7.0))
    half = 1 / (levels - 1)
    x = jnp.rint((images[..., None] + 1) / (2 * half)) * (2 * half) - 1
    above, below = (x + half - means) * factor, (x - half - means) * factor
    # σ(a) - σ(b) = σ(a) σ(-b) (1 - e^(b-a)), in which nothing cancels.
    first, last = x < -1 + half, x > 1 - half
    low = jnp.where(last, 0.0, jax.nn.log_sigmoid(above))
    high = jnp.where(first, 0.0, jax.nn.log_sigmoid(-below))
    inside = jnp.log(-jnp.expm1(-2 * half * factor))
    mass = low + high + jnp.where(first | last, 0.0, inside)
    return jax.nn.logsumexp(jax.nn.log_softmax(logits) + mass, axis=-1)
