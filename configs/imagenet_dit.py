"""DiT-B/4 on ImageNet at 64×64 pixels, 256 patches an image; planned for GPUs, not run by this project.

ImageNet comes through TensorFlow Datasets: python -m jaxdl prepare imagenet2012. In the latent space
of an autoencoder of your own the model is a jaxdl.models.denoiser.Latent, as in fashion_diffusion.
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Constant
from jaxdl.data.images.tfds import Tfds
from jaxdl.models.dit import DiT
from jaxdl.tasks.augment import HorizontalFlip
from jaxdl.tasks.diffusion import Diffusion, LogNormal, Sampling

EPOCH = 1_281_167 // 256


def get_config() -> Config:
    return Config(
        model=DiT(patch=4, num_classes=1000, scan_layers=True, remat='dots', dtype='bfloat16'),
        task=Diffusion(
            parametrisation='flow',
            noise=LogNormal(mean=0.0, std=1.0),
            sampling=Sampling(sampler='dpmpp_2m', steps=30, guidance=2.0),
            augmentations=(HorizontalFlip(),),
        ),
        data=Tfds('imagenet2012', evals=('validation',), image_size=64, in_memory_bytes=0),
        optimizer=AdamW(learning_rate=1e-4, schedule=Constant(warmup=0.01)),
        batch_size=256,
        steps=80 * EPOCH,
        ema=0.02,
        log_every=100,
        eval_every=5 * EPOCH,
        checkpoint=Checkpoint(every=EPOCH),
    )
