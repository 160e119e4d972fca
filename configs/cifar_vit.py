"""A small Vision Transformer on CIFAR-10 from scratch, 4-pixel patches; not run by this project."""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Cosine
from jaxdl.data.images.tfds import Tfds
from jaxdl.data.valid import Valid
from jaxdl.models.vit import ViT
from jaxdl.tasks.augment import Cutout, HorizontalFlip, RandomCrop
from jaxdl.tasks.classification import Classification

EPOCH = 50_000 // 512


def get_config() -> Config:
    return Config(
        model=ViT(
            num_classes=10,
            patch=4,
            width=384,
            layers=8,
            heads=6,
            pooling='mean',
            dropout=0.1,
            dtype='bfloat16',
        ),
        task=Classification(
            num_classes=10,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            label_smoothing=0.1,
            augmentations=(
                HorizontalFlip(),
                RandomCrop(padding=4, mode='zeros'),
                Cutout(size=12, fill=(125, 123, 114)),
            ),
        ),
        data=Tfds('cifar10', valid=Valid(share=0.04)),
        optimizer=AdamW(
            learning_rate=1e-3,
            schedule=Cosine(warmup=0.05),
            weight_decay=0.1,
            b2=0.95,
            clip_norm=1.0,
        ),
        batch_size=512,
        eval_batch_size=1000,
        steps=200 * EPOCH,
        ema=0.02,
        log_every=EPOCH,
        eval_every=10 * EPOCH,
        checkpoint=Checkpoint(every=10 * EPOCH, best='eval/valid/accuracy'),
    )
