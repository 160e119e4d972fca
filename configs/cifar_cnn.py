"""CIFAR-10. The default is a short recipe in the spirit of airbench (arXiv:2404.00498).

What is meant to come out, on one recent GPU (targets: none of these has been run by this project):
    (default)  94 % in about 10 epochs, seconds;  :96  96 % in about 32 epochs, a wider net;
    :resnet18  95 % in 60 epochs, the usual ResNet-18 with SGD.
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import Linear, Sgd
from jaxdl.data.images.tfds import Tfds
from jaxdl.data.valid import Valid
from jaxdl.models.airbench import Airbench
from jaxdl.models.resnet import ResNet
from jaxdl.tasks.augment import Cutout, HorizontalFlip, RandomCrop
from jaxdl.tasks.classification import Classification

VARIANTS = ('', '96', 'resnet18')


def get_config(variant: str = '') -> Config:
    epochs, batch_size, model, rate, decay = {
        '': (10, 1024, Airbench(views=6), 0.9, 5e-4),
        '96': (
            32,
            1024,
            Airbench(widths=(128, 512, 512), convs=3, momentum=0.9, views=6),
            0.8,
            5e-4,
        ),
        'resnet18': (60, 256, ResNet(depth=18, stem='cifar'), 0.2, 5e-4),
    }[variant]
    epoch = 50_000 // batch_size
    augmentations = (HorizontalFlip(), RandomCrop(padding=4 if variant else 2, mode='reflect'))
    return Config(
        model=model,
        task=Classification(
            num_classes=10,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            label_smoothing=0.2 if variant != 'resnet18' else 0.1,
            augmentations=(*augmentations, Cutout(size=12, fill=(125, 123, 114)))
            if variant == '96'
            else augmentations,
        ),
        data=Tfds('cifar10', valid=Valid(share=0.04)),
        optimizer=Sgd(
            learning_rate=rate, schedule=Linear(warmup=0.2), weight_decay=decay, momentum=0.9
        ),
        batch_size=batch_size,
        eval_batch_size=1000,
        steps=epochs * epoch,
        ema=0.02,
        log_every=epoch // 4,
        eval_every=epoch * max(1, epochs // 10),
        checkpoint=Checkpoint(every=epoch * max(1, epochs // 10), best='eval/valid/accuracy'),
    )
