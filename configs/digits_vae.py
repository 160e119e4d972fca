"""A convolutional VAE of the digits of scikit-learn, whose likelihood counts their 17 grey levels."""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Cosine
from jaxdl.data.images.tfds import Tfds
from jaxdl.models.vae import Vae
from jaxdl.run.features import RunFeatures
from jaxdl.tasks.distance import Distance
from jaxdl.tasks.vae import VariationalAutoencoder


def get_config() -> Config:
    return Config(
        model=Vae(shape=(8, 8, 1), channels=(32, 64), latent=12, mixtures=3),
        task=VariationalAutoencoder(levels=17, importance=128, distance=Distance(RunFeatures())),
        data=Tfds('digits'),
        optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup=0.05), weight_decay=0.01),
        batch_size=128,
        eval_batch_size=359,
        steps=2000,
        ema=0.1,
        log_every=100,
        eval_every=1000,
        checkpoint=Checkpoint(every=1000),
    )
