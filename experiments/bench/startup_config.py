"""ResNet-20 on made-up images: for the time to the first step."""

from jaxdl.core.config import Config
from jaxdl.core.optim import Sgd
from jaxdl.data.synthetic import SyntheticImages
from jaxdl.models.resnet import ResNet
from jaxdl.tasks.augment import HorizontalFlip, RandomCrop
from jaxdl.tasks.classification import Classification


def get_config() -> Config:
    return Config(
        model=ResNet(depth=20, width=16),
        task=Classification(augmentations=(HorizontalFlip(), RandomCrop(padding=4))),
        data=SyntheticImages(),
        optimizer=Sgd(learning_rate=0.1),
        steps=100,
        batch_size=128,
    )
