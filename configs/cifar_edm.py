"""EDM with the U-Net of DDPM on CIFAR-10 (arXiv:2206.00364); for GPUs, not run by this project."""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Constant
from jaxdl.data.images.tfds import Tfds
from jaxdl.models.unet import UNet
from jaxdl.tasks.augment import HorizontalFlip
from jaxdl.tasks.diffusion import Diffusion, Sampling

EPOCH = 50_000 // 512


def get_config() -> Config:
    return Config(
        model=UNet(
            channels=(128, 256, 256, 256),
            blocks=2,
            attention=(1,),
            num_classes=10,
            dropout=0.13,
            dtype='bfloat16',
        ),
        task=Diffusion(
            sampling=Sampling(sampler='heun', steps=18), augmentations=(HorizontalFlip(),)
        ),
        data=Tfds('cifar10'),
        optimizer=AdamW(learning_rate=1e-3, schedule=Constant(warmup=0.05), b2=0.99, clip_norm=1.0),
        batch_size=512,
        eval_batch_size=1000,
        steps=1000 * EPOCH,
        ema=0.05,
        log_every=EPOCH,
        eval_every=50 * EPOCH,
        checkpoint=Checkpoint(every=50 * EPOCH),
    )
