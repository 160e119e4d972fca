"""A classifier of your own pictures: a folder with a sub-folder for each class.

(default)  python -m jaxdl train --config=images --config.data.folder=DIR
:table     pictures of Parquet, Arrow, CSV, JSON lines or tar files,
           --config.data.train=PATTERN [--config.data.evals="('test=PATTERN',)"]

A tenth of the training pictures is held out as the set 'valid', which chooses the best checkpoint;
a folder with a set 'valid' of its own needs --config.data.valid.share=0. The number of classes is
that of the data. Larger pictures: --config.data.image_size=128.
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Cosine
from jaxdl.data.images.own import ImageFolder, ImageTable
from jaxdl.data.valid import Valid
from jaxdl.models.cnn import Cnn
from jaxdl.tasks.augment import HorizontalFlip, RandomCrop
from jaxdl.tasks.classification import Classification

VARIANTS = ('', 'table')


def get_config(variant: str = '') -> Config:
    data = {'': ImageFolder, 'table': ImageTable}[variant]
    return Config(
        model=Cnn(
            channels=(32, 64, 128, 256), convs=1, pools=3, dense=0, num_classes=0, dropout=0.2
        ),
        task=Classification(
            num_classes=0,
            label_smoothing=0.05,
            augmentations=(HorizontalFlip(), RandomCrop(padding=4, mode='reflect')),
        ),
        data=data(image_size=64, valid=Valid(share=0.1)),
        optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup=0.1), weight_decay=0.05),
        batch_size=64,
        steps=1000,
        ema=0.1,
        log_every=50,
        eval_every=250,
        checkpoint=Checkpoint(every=250, best='eval/valid/accuracy'),
    )
