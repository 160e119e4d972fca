"""A small CNN on Fashion-MNIST under attack: no pixel may change by more than 0.1 of [0, 1].

(default), :pgd  adversarial training with PGD of 7 steps (arXiv:1706.06083);
:fgsm            with one step from a random start (arXiv:1412.6572, arXiv:2001.03994);
:trades          the loss of clean images and a divergence (arXiv:1901.08573);
:plain           ordinary training, measured in the same way.

All are evaluated by PGD of 20 steps with two restarts; the budget stands beside the accuracy.
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Cosine
from jaxdl.data.images.tfds import Tfds
from jaxdl.models.cnn import Cnn
from jaxdl.tasks.attack import Attack
from jaxdl.tasks.robust import Adversarial, Robust, Trades

VARIANTS = ('', 'pgd', 'fgsm', 'trades', 'plain')
RADIUS = 0.1


def get_config(variant: str = '') -> Config:
    common = dict(
        num_classes=10,
        mean=(0.286,),
        std=(0.353,),
        attack=Attack(radius=RADIUS, steps=20, step_size=0.01, restarts=2),
    )
    steps = Attack(radius=RADIUS, steps=7, step_size=0.025)
    one = Attack(radius=RADIUS, steps=1, step_size=1.25 * RADIUS)
    task = {
        '': Adversarial(**common, training=steps),
        'pgd': Adversarial(**common, training=steps),
        'fgsm': Adversarial(**common, training=one),
        'trades': Trades(**common, training=steps),
        'plain': Robust(**common),
    }[variant]
    return Config(
        model=Cnn(channels=(16, 32), pools=2, dense=64),
        task=task,
        data=Tfds('fashion_mnist'),
        optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup=0.1), weight_decay=0.01),
        batch_size=128,
        eval_batch_size=500,
        steps=1500,
        ema=0.02,
        log_every=100,
        eval_every=0,
        checkpoint=Checkpoint(every=500),
    )
