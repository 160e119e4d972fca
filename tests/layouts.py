"""Small models, the layouts they can be trained in, and how one is trained for some steps."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jaxdl.api import DataSet
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Config, Mesh
from jaxdl.core.feed import Feed
from jaxdl.core.optim import AdamW, Constant, Players
from jaxdl.core.pipeline import Order
from jaxdl.core.program import Program
from jaxdl.data.arrays import ArraySource
from jaxdl.data.synthetic import SyntheticImages
from jaxdl.models.cnn import Cnn
from jaxdl.models.dit import DiT
from jaxdl.models.gan import Critic, Gan, Generator
from jaxdl.models.rnn import RnnLM
from jaxdl.models.seq2seq import Seq2Seq
from jaxdl.models.transformer import TransformerLM
from jaxdl.models.unet import UNet
from jaxdl.models.vae import Vae
from jaxdl.run.features import RunFeatures
from jaxdl.tasks.attack import Attack
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.diffusion import Diffusion
from jaxdl.tasks.distance import Distance
from jaxdl.tasks.gan import R3Gan
from jaxdl.tasks.language_model import LanguageModel
from jaxdl.tasks.robust import Adversarial
from jaxdl.tasks.translation import Translation
from jaxdl.tasks.vae import VariationalAutoencoder

VOCAB = 37  # no axis divides it
STEPS = 10


@dataclasses.dataclass
class Tokens(DataSet):
    """Random packed token rows, two documents each, and unequal numbers of targets that count."""

    length: int = 16
    pairs: bool = False

    def train_source(self):
        rng = np.random.default_rng(0)
        shape = (64, self.length)
        tokens = rng.integers(0, VOCAB, (64, self.length + 1)).astype(np.int32)
        cut = rng.integers(1, self.length - 2, (64, 1))
        place = np.arange(self.length)[None]
        segments = np.where(place < cut, 1, 2).astype(np.int32)
        positions = np.where(place < cut, place, place - cut).astype(np.int32)
        if self.pairs:
            ends = rng.integers(self.length // 2, self.length + 1, (64, 1))
            full = {'segments': np.where(place < ends, segments, 0), 'positions': positions}
            source = {f'source_{name}': value.astype(np.int32) for name, value in full.items()}
            target = {f'target_{name}': value.astype(np.int32) for name, value in full.items()}
            rows = rng.integers(0, VOCAB, shape).astype(np.int32)
            pair = {'source': rows, 'target': tokens[:, :-1], 'targets': tokens[:, 1:]}
            return ArraySource({**pair, **source, **target})
        mask = rng.random(shape) < rng.random((64, 1))
        return ArraySource(
            {
                'tokens': tokens[:, :-1],
                'targets': tokens[:, 1:],
                'segments': segments,
                'positions': positions,
                'target_mask': mask,
            }
        )

    def eval_sources(self):
        return {}


def families() -> dict[str, tuple[Any, Any, Any]]:
    """{name: (model, task, data)}."""
    shape = dict(width=16, heads=4, layers=2, vocab=VOCAB, max_length=16, scan_layers=True)
    images = SyntheticImages(num_examples=64, shape=(8, 8, 1), num_classes=4)
    # From the image itself: under pmap each device has random starts of its own. A step of the L2
    # attack is a smooth function of the gradient, the sign of a gradient near 0 is rounding.
    attack = Attack('l2', 0.5, steps=2, step_size=0.3, random_start=False)
    return {
        'vae': (
            Vae(shape=(8, 8, 1), channels=(8, 8), convs=1, latent=4),
            VariationalAutoencoder(),
            images,
        ),
        'unet': (UNet(channels=(8, 8), blocks=1, num_classes=4), Diffusion(), images),
        'dit': (
            DiT(width=16, heads=4, layers=2, patch=2, num_classes=4, scan_layers=True),
            Diffusion(parametrisation='flow'),
            images,
        ),
        'cnn': (
            Cnn(channels=(8, 8), pools=1, dense=16, num_classes=4),
            Classification(num_classes=4),
            images,
        ),
        'robust': (
            Cnn(channels=(8, 8), pools=1, dense=16, num_classes=4),
            Adversarial(num_classes=4, training=attack),
            images,
        ),
        'gan': (
            Gan(Generator(8, 1, (8,)), Critic((8,), blocks=1, spectral=True)),
            R3Gan(Distance(RunFeatures()), latent=8, critic_steps=2),
            images,
        ),
        'lstm': (RnnLM(vocab=VOCAB, width=16, layers=1), LanguageModel(), Tokens()),
        'decoder': (
            TransformerLM(**shape, kv_heads=2, positions='rotary', head_chunks=2),
            LanguageModel(),
            Tokens(),
        ),
        'encoder_decoder': (
            Seq2Seq(**shape, decoder_layers=2, dropout=0.0, mlp_width=32),
            Translation(label_smoothing=0.1),
            Tokens(pairs=True),
        ),
    }


LAYOUTS: dict[str, dict] = {
    'data': dict(mesh=Mesh(data=8)),
    'fsdp': dict(mesh=Mesh(data=1, fsdp=8)),
    'data_fsdp': dict(mesh=Mesh(data=2, fsdp=4)),
    'tensor': dict(mesh=Mesh(data=1, tensor=2)),
    'data_tensor': dict(mesh=Mesh(data=4, tensor=2)),
    'fsdp_tensor': dict(mesh=Mesh(data=1, fsdp=4, tensor=2)),
    'pmap': dict(mesh=Mesh(data=8), compile='pmap'),
    'accumulation': dict(mesh=Mesh(data=4), accumulate=4),
    'pipe': dict(mesh=Mesh(data=1, pipe=2)),
    'data_fsdp_pipe': dict(mesh=Mesh(data=2, fsdp=2, pipe=2, pipe_parts=2)),
    'ring': dict(mesh=Mesh(data=2, context=4, context_by='ring')),
    'heads': dict(mesh=Mesh(data=4, context=2, context_by='heads')),
    'sequence': dict(mesh=Mesh(data=2, tensor=2, sequence=True)),
    'all': dict(mesh=Mesh(data=1, pipe=2, context=2, tensor=2, sequence=True)),
    'zero': dict(mesh=Mesh(data=8, zero=True)),
    'offload': dict(mesh=Mesh(data=4, offload=True)),
}
# Those that every model can use; the others split stacked layers or attention.
ANY_MODEL = tuple(LAYOUTS)[:8]


def devices_of(run: Config) -> int:
    """The devices that the mesh of a layout fills."""
    return math.prod(getattr(run.mesh, axis) for axis in Mesh.AXES)


def config(family: str, **changes) -> Config:
    """The run of a family; it uses Adam, in which every gradient counts from the first step."""
    model, task, data = families()[family]
    adam = AdamW(learning_rate=3e-3, schedule=Constant(), weight_decay=0.1, eps=1e-4)
    values = dict(
        model=model,
        task=task,
        data=data,
        optimizer=Players(adam, adam) if family == 'gan' else adam,
        steps=STEPS,
        batch_size=16,
        mesh=Mesh(data=8),
        placement='host',
    )
    return Config(**{**values, **changes})


def built(run: Config) -> tuple[Program, Feed]:
    """The program of a run, and where its batches come from."""
    here = jax.local_devices() if devices_of(run) == 1 else jax.devices()
    mesh = mesh_lib.make_mesh(run.mesh, here[: devices_of(run)])
    feed = Feed(run.data.train_source(), run.batch_size, mesh, placement=run.placement)
    return Program(run, mesh, feed.example), feed


def initial(run: Config) -> Any:
    """A fresh state as host arrays, the checkpoint that every layout starts from."""
    made, feed = built(dataclasses.replace(run, mesh=Mesh(data=1)))
    return jax.tree.map(np.asarray, made.init(feed.source.fetch(np.arange(16))))


def losses(run: Config, start: Any) -> np.ndarray:
    """The loss of each step from the state `start`."""
    made, feed = built(run)
    order = Order(len(feed.source), run.batch_size, run.seed)
    step, packing = made.compile_train(feed.abstract(mask=False), feed.resident)
    state = mesh_lib.put(start, made.shardings)
    hyper, found = made.place_hyper(), []
    for index in range(run.steps):
        batch = feed.place(feed.load(order.batch(index)))
        state, packed = step(state, batch, feed.resident, hyper)
        found.append(packing.means(np.asarray(packed))['loss'])
    return np.asarray(found)
