"""Small runs for tests/chaos.py and the tests of processes: one of each family.

:cnn           convolutions, BatchNorm, dropout, augmentation, averaged weights, on the digits
:diffusion     a U-Net, noise drawn in each step, averaged weights, pictures, on the digits
:rnn           an LSTM with its state carried over rows, on a file of the standard library
:gan           two players with optimizers of their own, spectral norms, the task's own state
:transformer   accumulation over two parts, dropout, on the same text
"""

import argparse

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Constant
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.packing import Concatenated, Packed
from jaxdl.data.text.sources import TextFiles
from jaxdl.models.rnn import RnnLM
from jaxdl.models.transformer import modern
from jaxdl.tasks.language_model import LanguageModel
from tests import small

VARIANTS = ('cnn', 'diffusion', 'gan', 'rnn', 'transformer')


def get_config(variant: str = 'cnn') -> Config:
    common = dict(
        steps=60,
        batch_size=8,
        log_every=7,
        eval_every=15,
        checkpoint=Checkpoint(every=10),
    )
    if variant in ('cnn', 'diffusion', 'gan'):
        make = {'cnn': small.config, 'diffusion': small.diffusion, 'gan': small.gan}[variant]
        return make(**{**common, 'batch_size': 48})
    file = str(argparse.__file__)
    rnn = variant == 'rnn'
    data = Documents(
        source=TextFiles(train=file, evals=(f'valid={file}',)),
        length=32,
        packing=Concatenated(context=8) if rnn else Packed(context=8),
    )
    lm = RnnLM(vocab=260, width=32, layers=1, dropout=0.1)
    transformer = modern(vocab=260, width=32, layers=2, heads=2, dropout=0.1)
    model = {'rnn': lm, 'transformer': transformer}[variant]
    return Config(
        model=model,
        task=LanguageModel(sample_tokens=5),
        data=data,
        optimizer=AdamW(learning_rate=2e-3, schedule=Constant(), clip_norm=1.0),
        accumulate=1 if rnn else 2,
        **common,
    )
