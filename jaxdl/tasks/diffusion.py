"""Diffusion models and rectified flows: remove noise from images, and draw images by doing so.

All are trained and sampled in the same coordinates, x = x₀ + σ·n (arXiv:2206.00364). What is called
DDPM, v-prediction, EDM or rectified flow is then how a network's raw output F is made into a
denoiser, D(x, σ) = c_skip · x + c_out · F(c_in · x), how σ is drawn in training, and which sigmas a
sampler visits.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.api import (
    Apply,
    Batch,
    DataSet,
    Drawn,
    Generated,
    Learner,
    Limits,
    Task,
    Tree,
    facts_of,
)
from jaxdl.errors import UserError, above_zero, at_least, below_one, nearest, one_of
from jaxdl.metrics import Mean
from jaxdl.models.denoiser import Latent
from jaxdl.tasks import pictures, samplers
from jaxdl.tasks.distance import Distance, measure

PARAMETRISATIONS = ('edm', 'epsilon', 'v', 'flow')


def coefficients(kind: str, sigma: jax.Array, sigma_data: float) -> tuple[jax.Array, ...]:
    """(c_skip, c_out, c_in) of a parametrisation, each of the shape of `sigma`.

    'epsilon' and 'v' are those of DDPM, whose noisy image is x / sqrt(1 + σ²) (arXiv:2006.11239,
    2202.00512). In 'flow' it is (1 - t) x₀ + t n with t = σ / (1 + σ), and F is the velocity n - x₀
    (arXiv:2209.03003).
    """
    if kind == 'edm':
        total = jnp.sqrt(sigma**2 + sigma_data**2)
        return sigma_data**2 / total**2, sigma * sigma_data / total, 1 / total
    if kind == 'flow':
        return 1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma)
    root = jnp.sqrt(1 + sigma**2)
    if kind == 'v':
        return 1 / root**2, -sigma / root, 1 / root
    return jnp.ones_like(sigma), -sigma, 1 / root


@dataclasses.dataclass
class LogNormal:
    """ln σ is normal (arXiv:2206.00364); for a flow that is the logit-normal t of arXiv:2403.03206.

    Attributes:
        mean: mean of ln σ.
        std: its deviation.
    """

    mean: float = -1.2
    std: float = 1.2

    def check(self):
        above_zero(self, 'std')

    def sigma(self, u: jax.Array) -> jax.Array:
        """σ of a `u` that is uniform in (0, 1)."""
        return jnp.exp(self.mean + self.std * jax.scipy.special.ndtri(jnp.clip(u, 1e-6, 1 - 1e-6)))


@dataclasses.dataclass
class Uniform:
    """Uniform in a flow's time t = σ / (1 + σ), or in the angle of DDPM's cosine schedule.

    Attributes:
        of: 'time', or 'angle': σ = tan(π u / 2) (arXiv:2102.09672).
    """

    of: str = 'time'

    def check(self):
        one_of(self, of=('time', 'angle'))

    def sigma(self, u: jax.Array) -> jax.Array:
        """σ of a `u` that is uniform in (0, 1)."""
        u = jnp.clip(u, 1e-6, 1 - 1e-6)
        return u / (1 - u) if self.of == 'time' else jnp.tan(jnp.pi / 2 * u)


@dataclasses.dataclass
class Sampling:
    """How images are drawn; `jaxdl sample` may choose another sampler, other steps and guidance.

    Attributes:
        sampler: 'euler', 'heun', 'ddim' or 'dpmpp_2m'; heun evaluates the denoiser twice a step but the last.
        steps: steps of the sampler.
        schedule: sigmas even in 'karras' (σ^(1/rho)) or in a flow's 'time'.
        sigma_min: the last sigma before 0, with 'karras'; also the smallest in training.
        sigma_max: the first sigma; also the largest in training.
        rho: the exponent of 'karras'.
        eta: share of the noise that 'ddim' draws anew, in [0, 1].
        guidance: strength of classifier-free guidance; 1: none. Any other doubles the evaluations.
    """

    sampler: str = 'heun'
    steps: int = 18
    schedule: str = 'karras'
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    eta: float = 0.0
    guidance: float = 1.0

    def check(self):
        one_of(self, sampler=samplers.SAMPLERS, schedule=('karras', 'time'))
        at_least(self, steps=1, guidance=0)
        above_zero(self, 'sigma_min', 'sigma_max', 'rho')
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f'sigma_min={self.sigma_min}: must be below sigma_max={self.sigma_max}'
            )
        if not 0 <= self.eta <= 1:
            raise ValueError(f'eta={self.eta}: must be in [0, 1]')
        if self.eta and self.sampler != 'ddim':
            raise ValueError(f"eta={self.eta}: is for sampler='ddim'; set it to 0")

    def sigmas(self) -> jax.Array:
        """[steps + 1], falling to 0."""
        if self.schedule == 'time':
            return samplers.straight(self.steps, self.sigma_max)
        return samplers.karras(self.steps, self.sigma_min, self.sigma_max, self.rho)

    def note(self) -> str:
        """How an image is drawn, in words."""
        calls = samplers.EVALUATIONS[self.sampler](self.steps) * (1 if self.guidance == 1 else 2)
        text = f'{self.sampler}, {self.steps} steps, {calls} evaluations of the model a picture'
        return text if self.guidance == 1 else f'{text}, guidance {self.guidance:g}'


@dataclasses.dataclass
class Diffusion(Task):
    """Trains a network to remove noise from images, and draws images with it.

    The model is a jaxdl.models.denoiser.Denoiser: a UNet, a DiT, or either in the latent space of
    a trained autoencoder. The batch holds 'image' (uint8 [batch, height, width, channels]), 'id' and,
    for a model with classes, 'label'. loss is the mean square error of the raw output, whatever it
    predicts, so only losses of the same parametrisation and noise compare.

    Attributes:
        parametrisation: what the network's output is made into: 'edm', 'epsilon' (the noise), 'v', or 'flow' (the velocity of a rectified flow).
        sigma_data: deviation of the scaled images, for 'edm'.
        noise: how σ is drawn in training.
        weighting: 'uniform' weighs the errors of the raw output equally; 'min_snr' as arXiv:2303.09556.
        snr_cap: largest signal-to-noise ratio 1/σ² that counts with 'min_snr'.
        label_dropout: probability of training on an image without its class, which guidance needs.
        sampling: how images are drawn.
        shown: images of each class, or rows of images, in the picture of an evaluation; 0: no pictures.
        likelihood: images of the first evaluation set whose likelihood is estimated in the final evaluation; 0: none.
        distance: what is measured of drawn images in every evaluation; None: nothing.
        augmentations: applied in order to every training batch, on the device.
    """

    scalars: ClassVar[tuple[str, ...]] = ('label_dropout',)
    draw_options: ClassVar[tuple[str, ...]] = (
        'label', 'guidance', 'steps', 'sampler', 'interpolate', 'inpaint', 'mask',
    )  # fmt: skip

    parametrisation: str = 'edm'
    sigma_data: float = 0.5
    noise: LogNormal | Uniform = dataclasses.field(default_factory=LogNormal)
    weighting: str = 'uniform'
    snr_cap: float = 5.0
    label_dropout: float = 0.1
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    shown: int = 4
    likelihood: int = 0
    distance: Distance | None = None
    augmentations: tuple = ()

    def check(self):
        one_of(self, parametrisation=PARAMETRISATIONS, weighting=('uniform', 'min_snr'))
        above_zero(self, 'sigma_data', 'snr_cap')
        below_one(self, 'label_dropout')
        at_least(self, shown=0, likelihood=0)

    def ranges(self, limits: Limits) -> dict[str, int]:
        return {'label': limits.classes} if limits.classes else {}

    def augment(self, batch: Batch, rng: jax.Array) -> Batch:
        """The batch after all augmentations, with its noise levels, and some labels dropped."""
        keys = jax.random.split(rng, 3)
        for index, augmentation in enumerate(self.augmentations):
            batch = augmentation(batch, jax.random.fold_in(rng, index + len(keys)))
        batch = pictures.with_draws(batch, keys[0])
        count = len(batch['image'])
        # Evenly spread over a batch, so that its mean varies less (arXiv:2107.00630, appendix I.1).
        level = (jax.random.uniform(keys[1]) + jnp.arange(count) / count) % 1
        batch = {**batch, 'level': level}
        if 'label' in batch and not (
            isinstance(self.label_dropout, int | float) and self.label_dropout == 0
        ):
            dropped = jax.random.uniform(keys[2], (count,)) < self.label_dropout
            batch['label'] = jnp.where(dropped, -1, batch['label'])
        return batch

    def inputs(self, batch: Batch) -> dict[str, Any]:
        images = pictures.scaled(batch['image'])
        return {
            'images': images,
            'noise': jnp.zeros(len(images)),
            'labels': batch.get('label', jnp.full(len(images), -1, jnp.int32)),
        }

    def start(self, learner: Learner, params: Tree, model_state: Tree, rng: jax.Array) -> None:
        """No state; refuses an autoencoder that nobody has trained."""
        if isinstance(learner.model, Latent) and not learner.config.init_from.path:
            raise UserError(
                '--config.init_from.path: a latent model needs the weights of its autoencoder; give '
                'the folder of its run, and rename as in configs/fashion_diffusion.py'
            )

    def metrics(self, outputs: jax.Array, batch: Batch) -> dict[str, Mean]:
        """The mean square of an output; training and evaluation have the loss."""
        return {'loss': Mean.of(jnp.square(outputs), batch.get('mask'))}

    def losses(self, apply: Apply, batch: Batch, rng: jax.Array) -> dict[str, Mean]:
        """loss, where each example has its own noise level."""
        return self._loss(apply, batch, train=True)

    def evaluate(self, apply: Apply, batch: Batch) -> dict[str, Mean]:
        """loss, with noise level and noise that follow from the row's id."""
        return self._loss(apply, batch, train=False)

    def _loss(self, apply: Apply, batch: Batch, *, train: bool) -> dict[str, Mean]:
        """The weighted mean square error of the network's raw output."""
        given, sampling = self.inputs(batch), self.sampling
        x = apply(given['images'], train=False, method='encode')
        noise = pictures.normals(pictures.row_keys(batch), x.shape[1:])
        level = batch.get('level')
        if level is None:
            level = jax.vmap(jax.random.uniform)(pictures.row_keys(batch, 1))
        sigma = jnp.clip(self.noise.sigma(level), sampling.sigma_min, sampling.sigma_max)
        wide = sigma.reshape(-1, *(1 for _ in x.shape[1:]))
        c_skip, c_out, c_in = coefficients(self.parametrisation, wide, self.sigma_data)
        noisy = x + wide * noise
        found = apply(c_in * noisy, noise_input(sigma), given['labels'], train=train)
        if found.shape != x.shape:
            raise ValueError(f'the model gives {found.shape} for images {x.shape}')
        errors = jnp.square(found - (x - c_skip * noisy) / c_out)
        errors = errors.mean(tuple(range(1, errors.ndim)))
        if self.weighting == 'min_snr':
            # The paper weighs errors of x₀ by min(SNR, cap); those of F are 1 / c_out² as large.
            errors = errors * jnp.minimum(sigma**-2, self.snr_cap) * c_out.reshape(-1) ** 2
        return {'loss': Mean.of(errors, batch.get('mask'))}

    # ---- pictures ----

    def preview(self, batch: Batch) -> dict[str, jax.Array]:
        return {'images': batch['image']} if batch['image'].dtype == jnp.uint8 else {}

    def draw(self, model: Any, variables: Tree, data: DataSet, n: int, **options: Any) -> Drawn:
        """See Task.draw."""
        sampling, classes = self.sampling, facts_of(model).limits().classes or 0
        for name in ('label', 'guidance'):
            if name in options and not classes:
                flag = 'class' if name == 'label' else name
                raise UserError(f'--{flag}: the model was trained without classes; leave it out')
        label = options.get('label')
        if label is not None and not 0 <= label < classes:
            raise UserError(f'--class={label}: must be in 0 … {classes - 1}')
        if 'sampler' in options and options['sampler'] not in samplers.SAMPLERS:
            raise UserError(
                f'--sampler={options["sampler"]}: must be one of {", ".join(samplers.SAMPLERS)}'
                f'{nearest(options["sampler"], samplers.SAMPLERS)}'
            )
        chosen = {k: options[k] for k in ('sampler', 'steps', 'guidance') if k in options}
        if chosen.get('sampler', 'ddim') != 'ddim':
            chosen['eta'] = 0.0
        sampling = dataclasses.replace(sampling, **chosen)
        row = options.get('interpolate', 0)
        if label is None:
            labels = jnp.arange(n) // (row or 1) % max(classes, 1)
        else:
            labels = jnp.full(n, label)
        images = self._drawn(
            model,
            variables,
            data,
            labels if classes else jnp.full(n, -1),
            sampling,
            seed=options.get('seed', 0),
            interpolate=row,
            inpaint=options.get('inpaint'),
            mask=options.get('mask'),
        )
        return Drawn(images, sampling.note())

    def _drawn(
        self,
        model: Any,
        variables: Tree,
        data: DataSet,
        labels: jax.Array,
        sampling: Sampling,
        *,
        seed: int = 0,
        interpolate: int = 0,
        inpaint: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        beat: Callable[[], None] = lambda: None,
        trajectories: bool = False,
    ) -> np.ndarray:
        """uint8 images [n, …], or with `trajectories` [n, steps + 1, …]: what was foreseen, and drawn."""
        shape, space = pictures.image_shape(data), self._space(model, variables, data)
        known = None
        if inpaint is not None and mask is not None:
            if space != shape:
                raise UserError(
                    '--inpaint: this model draws in a latent space, whose parts are not those of '
                    'the picture; a model of the images themselves can'
                )
            known = (pictures.scaled(jnp.asarray(inpaint)), jnp.asarray(mask)[..., None])
        noise = pictures.starts(len(labels), space, seed=seed, interpolate=interpolate)
        key = jax.random.key(seed) if sampling.eta else None
        part = 0

        def call(noise, labels):
            nonlocal part
            part += 1
            return _sampled(
                model,
                (self.parametrisation, self.sigma_data, sampling.sampler, sampling.eta),
                sampling.guidance == 1,
                trajectories,
                variables,
                noise,
                labels,
                sampling.sigmas(),
                jnp.float32(sampling.guidance),
                None if key is None else jax.random.fold_in(key, part),
                known,
            )

        found = pictures.in_parts(call, noise, labels.astype(jnp.int32), beat=beat)
        return pictures.as_bytes(found)

    def generate(
        self,
        model: Any,
        variables: Tree,
        data: DataSet,
        *,
        final: bool,
        beat: Callable[[], None],
    ) -> Generated:
        """Samples, a row for each class, and distances; at the end also how samples come about."""
        found = measure(
            self.distance,
            lambda n: self.draw(model, variables, data, n, seed=1).images,
            data,
            final=final,
            beat=beat,
        )
        classes = facts_of(model).limits().classes or 0
        if self.shown:
            rows = min(classes, 20) or self.shown
            labels = jnp.repeat(jnp.arange(rows) if classes else jnp.full(rows, -1), self.shown)
            draw = functools.partial(self._drawn, model, variables, data, beat=beat)
            images = draw(labels, self.sampling)
            found.pictures['samples'] = pictures.tiled(images, self.shown)
            found.notes['samples'] = self.sampling.note()
            if final:
                few = labels[:: self.shown]
                images = draw(few, self.sampling, trajectories=True)
                columns = np.unique(np.linspace(0, images.shape[1] - 1, 10).astype(int))
                path = images[:, columns].reshape(-1, *images.shape[2:])
                found.pictures['trajectories'] = pictures.tiled(path, len(columns))
                walks = draw(jnp.repeat(few, 8), self.sampling, interpolate=8)
                found.pictures['interpolations'] = pictures.tiled(walks, 8)
        if final and self.likelihood:
            name, bits, note = self._likelihood(model, variables, data, beat)
            found.scores[f'{name}/likelihood'] = bits
            found.notes[f'{name}/likelihood'] = note
        return found

    def _likelihood(self, model, variables, data, beat) -> tuple[str, float, str]:
        """(evaluation set, bits per dimension, how they were computed)."""
        sources = data.eval_sources()
        if not sources or pictures.image_shape(data) != self._space(model, variables, data):
            raise UserError(
                f'--config.task.likelihood={self.likelihood}: needs an evaluation set, and a model '
                'of the images themselves; set it to 0'
            )
        name, source = next(iter(sources.items()))
        rows = source.fetch(np.arange(min(self.likelihood, len(source))))
        images, steps = jnp.asarray(rows['image']), 40
        labels = jnp.asarray(rows.get('label', np.full(len(images), -1)), jnp.int32)
        sigmas = samplers.karras(steps + 1, self.sampling.sigma_min, self.sampling.sigma_max)[:-1]
        keys = jax.random.split(jax.random.key(0), 2)
        # Grey levels spread evenly over their width: a density of the levels, so that a density
        # of the images bounds their probability (arXiv:1511.01844).
        spread = jax.random.uniform(keys[0], images.shape)
        x = (images.astype(jnp.float32) + spread) / 128 - 1
        kind = (self.parametrisation, self.sigma_data)
        call = functools.partial(_log_density, model, kind, variables, sigmas, keys[1])
        nats = pictures.in_parts(call, x, labels, beat=beat)
        size = math.prod(images.shape[1:])
        bits = float(7 - nats.mean() / (size * math.log(2)))  # a level is 1/128 wide
        note = (
            f'bits per dimension of {len(images)} images by the probability-flow ODE, {steps} steps '
            f'of order four, one Hutchinson probe, σ from {self.sampling.sigma_min:g}'
        )
        return name, bits, note

    def _space(self, model, variables, data) -> tuple[int, ...]:
        image = jax.ShapeDtypeStruct((1, *pictures.image_shape(data)), jnp.float32)
        call = functools.partial(model.apply, train=False, method='encode')
        return jax.eval_shape(call, variables, image).shape[1:]


def noise_input(sigma: jax.Array) -> jax.Array:
    """What a network is told about σ: about -1.5 to 1.1."""
    return jnp.log(sigma) / 4


def denoiser(
    model: Any, kind: tuple[str, float], variables: Tree, labels: jax.Array
) -> samplers.Denoise:
    """D(x, σ) of a trained network for one label a row."""

    def denoise(x, sigma):
        c_skip, c_out, c_in = coefficients(kind[0], sigma, kind[1])
        noise = jnp.full(len(x), noise_input(sigma))
        return c_skip * x + c_out * model.apply(variables, c_in * x, noise, labels, train=False)

    return denoise


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sampled(
    model, kind, plain, trajectories, variables, noise, labels, sigmas, guidance, key, known
):
    """Images [batch, …] in [-1, 1]; with `trajectories` [batch, steps + 1, …]."""
    denoise = denoiser(model, kind[:2], variables, labels)
    if not plain:
        free = denoiser(model, kind[:2], variables, jnp.full_like(labels, -1))
        denoise = samplers.guided(denoise, free, guidance)
    if known is not None:
        denoise = samplers.inpainted(denoise, *known)
        noise = noise + known[0] / sigmas[0] * ~known[1]
    x, seen = samplers.sample(kind[2], denoise, sigmas[0] * noise, sigmas, key=key, eta=kind[3])

    def decoded(x):
        return model.apply(variables, x, train=False, method='decode')

    if not trajectories:
        return decoded(x)
    path = jnp.concatenate([seen, x[None]])
    flat = decoded(path.reshape(-1, *path.shape[2:]))
    return flat.reshape(*path.shape[:2], *flat.shape[1:]).swapaxes(0, 1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_density(model, kind, variables, sigmas, key, x, labels):
    denoise = denoiser(model, kind, variables, labels)
    return samplers.log_likelihood(denoise, x, sigmas, key=key)
