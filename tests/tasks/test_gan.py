"""Two players: their steps against a plain optax loop, spectral norms, pictures, and the ring."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl.api import DataSet
from jaxdl.core import config as config_lib
from jaxdl.core.config import Config, Mesh
from jaxdl.core.optim import AdamW, Constant, Players, Sgd
from jaxdl.data.arrays import ArraySource
from jaxdl.errors import UserError
from jaxdl.models.gan import Critic, Gan, Generator
from jaxdl.run.features import RunFeatures
from jaxdl.run.loop import train
from jaxdl.tasks.distance import Distance
from jaxdl.tasks.gan import HingeGan, R3Gan
from tests import small


class Points(nn.Module):
    """A generator of points in the plane."""

    width: int = 16

    @nn.compact
    def __call__(self, latents, *, train):
        x = nn.tanh(nn.Dense(self.width)(latents))
        return nn.Dense(2)(nn.tanh(nn.Dense(self.width)(x)))


class Judge(nn.Module):
    """A critic of points; `spectral` as in models.gan."""

    width: int = 16
    spectral: bool = False

    @nn.compact
    def __call__(self, points, *, train):
        def dense(width):
            if self.spectral:
                return lambda x: nn.SpectralNorm(nn.Dense(width), collection_name='spectral')(
                    x, update_stats=train
                )
            return nn.Dense(width)

        x = nn.tanh(dense(self.width)(points))
        return dense(1)(nn.tanh(dense(self.width)(x)))[:, 0]


@dataclasses.dataclass
class Ring(DataSet):
    """Eight narrow Gaussians on a circle."""

    examples: int = 4096

    def train_source(self):
        rng = np.random.default_rng(0)
        angle = 2 * np.pi * rng.integers(0, 8, self.examples) / 8
        points = np.stack([np.cos(angle), np.sin(angle)], 1)
        points += 0.03 * rng.normal(size=points.shape)
        return ArraySource({'image': points.astype(np.float32)})

    def eval_sources(self):
        return {}


OFF = Distance(RunFeatures())


def points_config(task, spectral=False, **changes) -> Config:
    values = dict(
        model=Gan(Points(), Judge(spectral=spectral)),
        task=task,
        data=Ring(256),
        optimizer=Players(
            generator=AdamW(2e-3, b1=0.0, eps=1e-4, schedule=Constant()),
            critic=Sgd(0.05, momentum=0.9, nesterov=False, schedule=Constant()),
        ),
        steps=20,
        batch_size=16 * task.critic_steps,
        mesh=Mesh(data=1),
    )
    return Config(**{**values, **changes})


# ---- the step -------------------------------------------------------------------------------------


def r3gan(real, fake):
    return jnp.log1p(jnp.exp(fake - real)), jnp.log1p(jnp.exp(real - fake))


def hinge(real, fake):
    return jnp.maximum(0, 1 - real) + jnp.maximum(0, 1 + fake), -fake


@pytest.mark.parametrize(
    ('task', 'losses', 'spectral'),
    [
        (R3Gan(OFF, latent=3, gamma=0.5, critic_steps=2), r3gan, False),
        (HingeGan(OFF, latent=3), hinge, True),
    ],
)
def test_two_optimizers_follow_a_plain_loop(task, losses, spectral):
    """20 steps written with optax and nothing of the task but its latent vectors."""
    run = points_config(task, spectral)
    found, made, leaves = small.losses(run, 20)
    final = jax.tree.unflatten(jax.tree.structure(made.abstract), leaves)
    _, feed, order = small.program(run)
    start = made.init(feed.source.fetch(order.batch(0)))
    key = jax.random.wrap_key_data(start.task_state['latents'])
    g, c, kept = start.params['generator'], start.params['critic'], start.model_state
    generator, critic = Points(), Judge(spectral=spectral)
    g_rule, c_rule = optax.adam(2e-3, b1=0.0, eps=1e-4), optax.sgd(0.05, momentum=0.9)
    g_state, c_state = g_rule.init(g), c_rule.init(c)

    def made_of(g, latents):
        return generator.apply({'params': g}, latents, train=True)

    def judged(c, kept, points):
        own = {name: value['critic'] for name, value in kept.items()}
        scores, new = critic.apply({'params': c, **own}, points, train=True, mutable=list(own))
        return scores, {name: {'critic': value} for name, value in new.items()}

    @jax.jit
    def critic_grad(c, kept, real, fake):
        return jax.value_and_grad(critic_loss, has_aux=True)(c, kept, real, fake)

    @jax.jit
    def generator_grad(g, c, kept, real, latents):
        return jax.grad(generator_loss, has_aux=True)(g, c, kept, real, latents)

    def critic_loss(c, kept, real, fake):
        def total(points):
            scores, new = judged(c, kept, points)
            return scores.sum(), (scores, new)

        slope, (scores, new) = jax.grad(total, has_aux=True)(jnp.concatenate([real, fake]))
        pairs = losses(scores[:16], scores[16:])[0]
        penalty = (slope**2).sum(-1)
        return (pairs + task.gamma / 2 * (penalty[:16] + penalty[16:])).mean(), new

    def generator_loss(g, c, kept, real, latents):
        scores, new = judged(c, kept, jnp.concatenate([real, made_of(g, latents)]))
        return losses(scores[:16], scores[16:])[1].mean(), new

    for index in range(20):
        ids = order.batch(index)
        real = feed.source.fetch(ids)['image'].reshape(16, task.critic_steps, 2)
        ids = jnp.asarray(ids).reshape(16, task.critic_steps)
        keys = jax.random.split(jax.random.fold_in(key, index), task.critic_steps + 1)

        def latents(part, key, ids=ids):
            return jnp.stack(
                [jax.random.normal(jax.random.fold_in(key, i), (3,)) for i in ids[:, part]]
            )

        values = []
        for part in range(task.critic_steps):
            fake = made_of(g, latents(part, keys[part]))
            (value, kept), grads = critic_grad(c, kept, real[:, part], fake)
            values.append(float(value))
            updates, c_state = c_rule.update(grads, c_state, c)
            c = optax.apply_updates(c, updates)
        assert found[index] == pytest.approx(np.mean(values), rel=1e-5)
        grads, kept = generator_grad(g, c, kept, real[:, part], latents(part, keys[-1]))
        updates, g_state = g_rule.update(grads, g_state, g)
        g = optax.apply_updates(g, updates)
    ours = final.params, final.model_state
    theirs = {'generator': g, 'critic': c}, kept
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_part_of_the_batch_for_each_update_of_the_critic():
    made, feed, _ = small.program(points_config(R3Gan(OFF, critic_steps=3), batch_size=32))
    with pytest.raises(UserError, match=r'critic_steps=3: .* does not divide the 32 images'):
        made.compile_train(feed.abstract(mask=False), feed.resident)


# ---- the networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(('size', 'channels', 'blocks'), [(28, 1, 0), (32, 3, 1)])
def test_shapes_and_groups(size, channels, blocks):
    model = Gan(
        Generator(size, channels, (8, 4), blocks), Critic((4, 8), blocks=blocks, spectral=True)
    )
    latents, images = jnp.ones((2, 5)), jnp.zeros((2, size, size, channels))
    (made, real, fake), variables = jax.eval_shape(
        lambda key: model.init_with_output(key, images, latents, train=False), jax.random.key(0)
    )
    assert set(variables) == {'params', 'spectral'}
    assert set(variables['params']) == {'generator', 'critic'}
    assert made.shape == images.shape and real.shape == fake.shape == (2,)


def test_spectral_norm_is_the_largest_singular_value():
    """After enough steps of the power iteration every layer has norm 1, by numpy's own values."""
    model = Critic((3,), blocks=1, spectral=True)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
    params, kept = variables['params'], {'spectral': variables['spectral']}
    step = jax.jit(
        lambda kept: model.apply(
            {'params': params, **kept}, images, train=True, mutable=['spectral']
        )[1]
    )
    for _ in range(100):
        kept = step(kept)
    sigmas = {
        '/'.join(str(key.key) for key in path if not key.key.startswith('SpectralNorm')): value
        for path, value in jax.tree_util.tree_leaves_with_path(kept['spectral'])
    }
    checked = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.ndim > 1:
            name = '/'.join(key.key for key in path)
            largest = np.linalg.svd(np.reshape(leaf, (-1, leaf.shape[-1])), compute_uv=False)[0]
            assert float(sigmas[f'{name}/sigma']) == pytest.approx(largest, rel=1e-3), name
            checked += 1
    assert checked == 4


# ---- runs -----------------------------------------------------------------------------------------


def test_a_run_shows_images_and_distances(tmp_path, one_device):
    train(small.config(steps=3, eval_every=0, ema=0.0), str(tmp_path / 'judge'))
    task = HingeGan(
        Distance(RunFeatures(str(tmp_path / 'judge')), samples=120, bootstrap=4), latent=8, shown=16
    )
    train(small.gan(task=task), str(tmp_path / 'run'))
    rows = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').open()]
    measured = [row for row in rows if 'eval/test/frechet_judge' in row]
    assert [row['step'] for row in measured] == [4, 8]
    assert all(row['eval/test/samples_judge'] == 120 for row in measured)
    assert 'eval/test/novelty_judge' in measured[1] and measured[1]['eval/test/generator_loss']
    assert rows[-1]['train/learning_rate_critic'] > 0
    names = {p.name for p in (tmp_path / 'run' / 'samples' / '8' / 'eval').iterdir()}
    assert {'samples.png', 'interpolations.png', 'test'} <= names
    note = json.loads((tmp_path / 'run' / 'run.json').read_text())['scores']
    assert note['test/frechet_judge'].startswith(
        '120 samples against 359 images of test; 16 inputs'
    )


def test_pictures_follow_from_the_seed():
    run = small.gan()
    model = run.model
    init = lambda key: model.init(key, jnp.ones((1, 8)), train=False, method='generate')  # noqa: E731
    variables = jax.jit(init)(jax.random.key(0))
    draw = lambda n=20, **options: run.task.draw(model, variables, run.data, n, **options).images  # noqa: E731
    first = draw(seed=3)
    assert first.shape == (20, 8, 8, 1) and first.dtype == np.uint8
    assert np.array_equal(first, draw(seed=3)) and not np.array_equal(first, draw(seed=4))
    walk = draw(interpolate=10)
    assert walk.shape == first.shape and not np.array_equal(walk[9], walk[10])
    steps = np.abs(np.diff(walk.astype(int), axis=0)).mean((1, 2, 3))
    assert steps[:9].max() < steps[9], 'two rows, each in small steps'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'optimizer': AdamW()}, "updates the group 'critic', so it must be an optim.Groups"),
        ({'model': Gan(Generator(8, 1, (8, 8, 8, 8)), Critic((8,)))}, 'cannot be halved 4 times'),
        ({'task': HingeGan(OFF, critic_steps=0)}, 'critic_steps=0: must be at least 1'),
        ({'task': HingeGan(Distance(RunFeatures('/no/run')))}, 'holds no run; train a classifier'),
        ({'task': HingeGan(Distance(RunFeatures(), samples=2))}, 'must be 0 or above neighbours'),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        run = small.gan(**change)
        config_lib.check(run)
        made, feed, _ = small.program(run)
        made.compile_train(feed.abstract(mask=False), feed.resident)


@pytest.mark.slow
def test_no_mode_of_a_ring_is_lost():
    """Eight Gaussians: each gets at least half of its share, and most samples are near one."""
    task = R3Gan(OFF, latent=8, gamma=0.1)
    run = points_config(
        task,
        model=Gan(Points(128), Judge(128)),
        data=Ring(),
        optimizer=Players(*(AdamW(1e-3, b1=0.0, b2=0.9, schedule=Constant()) for _ in range(2))),
        steps=4000,
        batch_size=128 * task.critic_steps,
        ema=0.05,
        placement='device',
    )
    _, made, leaves = small.losses(run, run.steps)
    final = jax.tree.unflatten(jax.tree.structure(made.abstract), leaves)
    weights = {'params': final.ema['params'], **final.ema['model_state']}
    latents = jax.random.normal(jax.random.key(0), (4000, 8))
    points = np.asarray(run.model.apply(weights, latents, train=False, method='generate'))
    angle = 2 * np.pi * np.arange(8) / 8
    modes = np.stack([np.cos(angle), np.sin(angle)], 1)
    apart = np.linalg.norm(points[:, None] - modes, axis=-1)
    near = apart.min(1) < 0.12  # four standard deviations
    shares = np.bincount(apart.argmin(1)[near], minlength=8) / len(points)
    assert near.mean() > 0.7, f'{near.mean():.2f} of the samples are near a mode'
    assert shares.min() > 0.5 / 8, f'shares of the modes: {np.round(shares, 3)}'
