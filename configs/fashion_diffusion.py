"""A diffusion model with EDM's preconditioning on Fashion-MNIST, about half an hour on two CPU cores.

:latent draws in the latent space of a run of fashion_vae:grid, which init_from.path names; its scale
is 1 / latent_std of that run.

Original files at hand? python -m jaxdl prepare fashion_mnist --from=DIR
"""

import dataclasses

from jaxdl.core.config import Checkpoint, Config, InitFrom
from jaxdl.core.optim import NORMS_AND_BIASES, AdamW, Cosine
from jaxdl.data.images.tfds import Tfds
from jaxdl.models.denoiser import Latent
from jaxdl.models.unet import UNet
from jaxdl.models.vae import Vae
from jaxdl.run.features import RunFeatures
from jaxdl.tasks.diffusion import Diffusion, Sampling
from jaxdl.tasks.distance import Distance

VARIANTS = ('', 'latent')
EPOCH = 60_000 // 128


def get_config(variant: str = '') -> Config:
    latent = {'': False, 'latent': True}[variant]
    task = Diffusion(
        sampling=Sampling(sampler='heun', steps=18),
        distance=Distance(RunFeatures(), samples=1000),
    )
    config = Config(
        model=UNet(channels=(32, 64, 64), blocks=1, num_classes=10),
        task=task,
        data=Tfds('fashion_mnist'),
        optimizer=AdamW(
            learning_rate=2e-3,
            schedule=Cosine(warmup=0.02),
            weight_decay=0.01,
            no_decay=(*NORMS_AND_BIASES, '^autoencoder/'),
        ),
        batch_size=128,
        eval_batch_size=500,
        steps=12 * EPOCH,
        ema=0.05,
        log_every=EPOCH // 6,
        eval_every=2 * EPOCH,
        checkpoint=Checkpoint(every=EPOCH),
    )
    if latent:
        config.model = Latent(
            autoencoder=Vae(shape=(28, 28, 1), channels=(32, 64), mixtures=3, latent=4, grid=True),
            denoiser=UNet(channels=(64,), blocks=3, attention=(0,), num_classes=10),
        )
        config.task = dataclasses.replace(task, sigma_data=1.0)
        config.init_from = InitFrom(
            path='runs/fashion_vae', rename=(('^', 'autoencoder/'),), skip=('^denoiser/',)
        )
    return config
