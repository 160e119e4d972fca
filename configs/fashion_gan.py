"""Images like those of Fashion-MNIST, from a small generator and critic; minutes on two CPU cores.

(default)  R3GAN's loss: relativistic pairs with R1 and R2 (arXiv:2501.05441), on a smaller network;
:hinge     the hinge loss with spectral normalisation, two updates of the critic for one of the generator.

The distances of the evaluations are measured by a classifier that you trained before:
    python -m jaxdl train --config=fashion_cnn --workdir=runs/fashion_cnn
    python -m jaxdl train --config=fashion_gan --config.task.distance.features.path=runs/fashion_cnn
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Constant, Players
from jaxdl.data.images.tfds import Tfds
from jaxdl.models.gan import Critic, Gan, Generator
from jaxdl.run.features import RunFeatures
from jaxdl.tasks.distance import Distance
from jaxdl.tasks.gan import HingeGan, R3Gan

VARIANTS = ('', 'hinge')


def get_config(variant: str = '') -> Config:
    distance = Distance(RunFeatures())
    task, spectral = {
        '': (R3Gan(distance, gamma=1.0), False),
        'hinge': (HingeGan(distance, critic_steps=2), True),
    }[variant]
    return Config(
        model=Gan(
            generator=Generator(size=28, channels=1, widths=(64, 32)),
            critic=Critic(widths=(32, 64), spectral=spectral),
        ),
        task=task,
        data=Tfds('fashion_mnist'),
        optimizer=Players(
            generator=AdamW(learning_rate=2e-4, schedule=Constant(), b1=0.0, b2=0.99),
            critic=AdamW(learning_rate=2e-4, schedule=Constant(), b1=0.0, b2=0.99),
        ),
        batch_size=64 * task.critic_steps,
        eval_batch_size=1000,
        steps=4000,
        ema=0.1,
        log_every=100,
        eval_every=1000,
        checkpoint=Checkpoint(every=1000),
    )
