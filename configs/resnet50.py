"""ResNet-50 on ImageNet, batch and rate after arXiv:1706.02677; not run by this project.

ImageNet comes through TensorFlow Datasets, whose manual_dir has to hold the two original archives:
python -m jaxdl prepare imagenet2012. The augmentation is a shifted, mirrored middle crop, less
than the random resized crop with which the published 76 % were reached.
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import Cosine, Sgd
from jaxdl.data.images.tfds import Tfds
from jaxdl.data.valid import Valid
from jaxdl.models.resnet import ResNet
from jaxdl.tasks.augment import HorizontalFlip, RandomCrop
from jaxdl.tasks.classification import Classification

EPOCH = 1_281_167 // 1024


def get_config() -> Config:
    return Config(
        model=ResNet(depth=50, stem='imagenet', num_classes=1000, dtype='bfloat16'),
        task=Classification(
            num_classes=1000,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            label_smoothing=0.1,
            augmentations=(HorizontalFlip(), RandomCrop(padding=28)),
        ),
        data=Tfds(
            'imagenet2012',
            evals=('validation',),
            image_size=224,
            in_memory_bytes=0,
            valid=Valid(share=0.01),  # the best checkpoint is chosen by it
        ),
        optimizer=Sgd(learning_rate=0.4, schedule=Cosine(warmup=0.055), weight_decay=5e-5),
        batch_size=1024,
        steps=90 * EPOCH,
        log_every=100,
        eval_every=5 * EPOCH,
        checkpoint=Checkpoint(every=EPOCH, best='eval/valid/accuracy'),
    )
