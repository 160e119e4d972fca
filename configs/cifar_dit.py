"""A rectified flow with a small DiT on CIFAR-10, 2-pixel patches; for GPUs, not run by this project."""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Constant
from jaxdl.data.images.tfds import Tfds
from jaxdl.models.dit import DiT
from jaxdl.tasks.augment import HorizontalFlip
from jaxdl.tasks.diffusion import Diffusion, LogNormal, Sampling

EPOCH = 50_000 // 512


def get_config() -> Config:
    return Config(
        model=DiT(
            width=384,
            layers=12,
            heads=6,
            patch=2,
            num_classes=10,
            dropout=0.1,
            scan_layers=True,
            dtype='bfloat16',
        ),
        task=Diffusion(
            parametrisation='flow',
            noise=LogNormal(mean=0.0, std=1.0),
            sampling=Sampling(sampler='euler', steps=50, schedule='time', guidance=1.5),
            augmentations=(HorizontalFlip(),),
        ),
        data=Tfds('cifar10'),
        optimizer=AdamW(learning_rate=5e-4, schedule=Constant(warmup=0.02), b2=0.95, clip_norm=1.0),
        batch_size=512,
        eval_batch_size=1000,
        steps=800 * EPOCH,
        ema=0.05,
        log_every=EPOCH,
        eval_every=50 * EPOCH,
        checkpoint=Checkpoint(every=50 * EPOCH),
    )
