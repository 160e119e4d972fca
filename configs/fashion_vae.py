"""A convolutional VAE of Fashion-MNIST, about ten minutes on one CPU core; :grid has a grid of latents.

Original files at hand? python -m jaxdl prepare fashion_mnist --from=DIR
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Cosine
from jaxdl.data.images.tfds import Tfds
from jaxdl.models.vae import Vae
from jaxdl.run.features import RunFeatures
from jaxdl.tasks.distance import Distance
from jaxdl.tasks.vae import VariationalAutoencoder

VARIANTS = ('', 'grid')
EPOCH = 60_000 // 256


def get_config(variant: str = '') -> Config:
    grid = {'': False, 'grid': True}[variant]
    return Config(
        model=Vae(
            shape=(28, 28, 1), channels=(32, 64), mixtures=3, latent=4 if grid else 24, grid=grid
        ),
        task=VariationalAutoencoder(importance=16, distance=Distance(RunFeatures())),
        data=Tfds('fashion_mnist'),
        optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup=0.05), weight_decay=0.01),
        batch_size=256,
        eval_batch_size=500,
        steps=5 * EPOCH,
        ema=0.05,
        log_every=EPOCH // 6,
        eval_every=5 * EPOCH,
        checkpoint=Checkpoint(every=EPOCH),
    )
