"""Small configs for tests: seconds to compile, real parts."""

import json
from pathlib import Path

import jax
import numpy as np

from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Checkpoint, Config, Mesh
from jaxdl.core.feed import Feed
from jaxdl.core.optim import AdamW, Constant, Players, Sgd
from jaxdl.core.pipeline import Order
from jaxdl.core.program import Program
from jaxdl.data.images.tfds import Tfds
from jaxdl.models.cnn import Cnn
from jaxdl.models.gan import Critic, Gan, Generator
from jaxdl.models.unet import UNet
from jaxdl.models.vae import Vae
from jaxdl.run.features import RunFeatures
from jaxdl.tasks.attack import Attack
from jaxdl.tasks.augment import RandomCrop
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.diffusion import Diffusion, Sampling
from jaxdl.tasks.distance import Distance
from jaxdl.tasks.gan import HingeGan
from jaxdl.tasks.robust import Adversarial
from jaxdl.tasks.vae import VariationalAutoencoder


def config(**changes) -> Config:
    """A CNN with BatchNorm, dropout and augmentation on the digits, 12 steps."""
    values = dict(
        model=Cnn(channels=(8,), pools=1, dense=16, dropout=0.2),
        task=Classification(augmentations=(RandomCrop(padding=1, mode='zeros'),)),
        data=Tfds('digits'),
        optimizer=Sgd(learning_rate=0.05, schedule=Constant(), weight_decay=1e-4),
        steps=12,
        batch_size=48,
        log_every=3,
        eval_every=6,
        ema=0.3,
        checkpoint=Checkpoint(every=4),
        mesh=Mesh(data=-1),
    )
    return Config(**{**values, **changes})


def diffusion(**changes) -> Config:
    """A U-Net that removes noise from digits, with dropped labels, dropout and averaged weights."""
    values = dict(
        model=UNet(channels=(8,), blocks=1, num_classes=10, dropout=0.1),
        task=Diffusion(sampling=Sampling(steps=2), shown=1),
        optimizer=AdamW(1e-3, eps=1e-4, schedule=Constant()),
    )
    return config(**{**values, **changes})


def gan(**changes) -> Config:
    """Two players on the digits: spectral norm, two updates of the critic, averaged weights."""
    values = dict(
        model=Gan(Generator(8, 1, (8,)), Critic((8,), spectral=True)),
        task=HingeGan(Distance(RunFeatures()), latent=8, shown=16, critic_steps=2),
        optimizer=Players(*(AdamW(1e-3, b1=0.5, eps=1e-4, schedule=Constant()) for _ in range(2))),
        steps=8,
        log_every=4,
        eval_every=4,
    )
    return config(**{**values, **changes})


def vae(**changes) -> Config:
    """A convolutional VAE of the digits, with an importance-weighted estimate."""
    values = dict(
        model=Vae(shape=(8, 8, 1), channels=(8,), convs=1, latent=4),
        task=VariationalAutoencoder(levels=17, importance=2, shown=2),
        optimizer=AdamW(1e-3, eps=1e-4, schedule=Constant()),
    )
    return config(**{**values, **changes})


def robust(**changes) -> Config:
    """The CNN, trained and evaluated under attack, with a certificate."""
    task = Adversarial(
        training=Attack('l2', 0.5, steps=2, step_size=0.3),
        attack=Attack('l2', 0.5, steps=3, step_size=0.2, restarts=2),
        certify=True,
    )
    return config(**{'task': task, **changes})


def program(run: Config, devices: int = 1) -> tuple[Program, Feed, Order]:
    """The compiled parts of a run on the first `devices` devices."""
    mesh = mesh_lib.make_mesh(run.mesh, jax.devices()[:devices])
    feed = Feed(run.data.train_source(), run.batch_size, mesh, placement=run.placement)
    order = Order(len(feed.source), run.batch_size, run.seed)
    return Program(run, mesh, feed.example), feed, order


def losses(run: Config, steps: int, devices: int = 1) -> tuple[np.ndarray, Program, list]:
    """The loss of each of `steps` steps, the program, and the final state's leaves."""
    made, feed, order = program(run, devices)
    step, packing = made.compile_train(feed.abstract(mask=False), feed.resident)
    state = made.init(feed.source.fetch(order.batch(0)))
    hyper, found = made.place_hyper(), []
    for index in range(steps):
        batch = feed.place(feed.load(order.batch(index)))
        state, packed = step(state, batch, feed.resident, hyper)
        found.append(packing.means(np.asarray(packed))['loss'])
    return np.asarray(found), made, jax.tree.map(np.asarray, jax.tree.leaves(state))


def samples(path: Path) -> dict[int, list[int]]:
    """{step: ids} of a samples.jsonl."""
    rows = map(json.loads, path.read_text().splitlines())
    return {row['step']: row['ids'] for row in rows}
