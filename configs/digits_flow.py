"""A rectified flow that draws the digits of scikit-learn class by class, in minutes on two cores."""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Cosine
from jaxdl.data.images.tfds import Tfds
from jaxdl.models.unet import UNet
from jaxdl.run.features import RunFeatures
from jaxdl.tasks.diffusion import Diffusion, LogNormal, Sampling
from jaxdl.tasks.distance import Distance


def get_config() -> Config:
    return Config(
        model=UNet(channels=(32, 64), blocks=1, num_classes=10),
        task=Diffusion(
            parametrisation='flow',
            noise=LogNormal(mean=0.0, std=1.0),
            sampling=Sampling(sampler='heun', steps=12, schedule='time', guidance=1.5),
            shown=8,
            distance=Distance(RunFeatures()),
        ),
        data=Tfds('digits'),
        optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup=0.05), weight_decay=0.01),
        batch_size=64,
        eval_batch_size=359,
        steps=2500,
        ema=0.1,
        log_every=100,
        eval_every=1250,
        checkpoint=Checkpoint(every=1250),
    )
