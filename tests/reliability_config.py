"""Small runs for tests/chaos.py and the tests of processes: one of each family.

:cnn           convolutions, BatchNorm, dropout, augmentation, averaged weights, on the digits
:diffusion     a U-Net, noise drawn in each step, averaged weights, pictures, on the digits
:rnn           an LSTM with its state carried over rows, on a file of the standard library
:gan           two players with optimizers of their own, spectral norms, the task's own state
:transformer   accumulation over two parts, dropout, on the same text
:ppo           PPO on Pendulum, whose episodes are cut off, with running moments and scaled rewards
:rnn_ppo       PPO with a memory on CartPole without its velocities
:dqn           DQN on CartPole, with a prioritised replay of three-step transitions that is full soon
:pqn           PQN on MinAtar's Breakout
:sac           SAC on Pendulum, three optimizers
:gymnasium     PPO on Gymnasium's CartPole, objects of the host
"""

import argparse

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Constant, SacGroups
from jaxdl.data.seeds import Seeds
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.packing import Concatenated, Packed
from jaxdl.data.text.sources import TextFiles
from jaxdl.environments.gymnasium import Gymnasium
from jaxdl.environments.gymnax import Gymnax
from jaxdl.environments.wrappers import StickyActions, Visible
from jaxdl.models.policy import ActorCritic
from jaxdl.models.q_network import QNetwork, SoftActorCritic
from jaxdl.models.rnn import RnnLM
from jaxdl.models.transformer import modern
from jaxdl.tasks.dqn import Dqn
from jaxdl.tasks.language_model import LanguageModel
from jaxdl.tasks.ppo import Ppo
from jaxdl.tasks.pqn import Pqn
from jaxdl.tasks.replay import Replay
from jaxdl.tasks.sac import Sac
from tests import small

VARIANTS = (
    'cnn', 'diffusion', 'gan', 'rnn', 'transformer', 'ppo', 'rnn_ppo', 'gymnasium', 'dqn', 'pqn', 'sac',
)  # fmt: skip


def get_config(variant: str = 'cnn') -> Config:
    common = dict(
        steps=60,
        batch_size=8,
        log_every=7,
        eval_every=15,
        checkpoint=Checkpoint(every=10),
    )
    if variant in ('ppo', 'rnn_ppo', 'gymnasium'):
        return reinforcement(variant, {**common, 'batch_size': 16})
    if variant in ('dqn', 'pqn', 'sac'):
        return value_based(variant, {**common, 'batch_size': 8})
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


def reinforcement(variant: str, common: dict) -> Config:
    pole = StickyActions(Gymnax('CartPole-v1'))
    environment, model = {
        'ppo': (
            Gymnax('Pendulum-v1'),
            ActorCritic(actions=1, continuous=True, widths=(16,), normalised=True),
        ),
        'rnn_ppo': (Visible(pole, entries=(0, 2)), ActorCritic(widths=(16,), memory=8)),
        'gymnasium': (Gymnasium('CartPole-v1'), ActorCritic(widths=(16,))),
    }[variant]
    return Config(
        model=model,
        task=Ppo(environment, rollout=32, minibatches=4, scale_rewards=variant == 'ppo'),
        data=Seeds(episodes=8),
        optimizer=AdamW(learning_rate=2e-3, schedule=Constant(), clip_norm=0.5),
        **common,
    )


def value_based(variant: str, common: dict) -> Config:
    adam = AdamW(learning_rate=2e-3, schedule=Constant())
    pole, pendulum = Gymnax('CartPole-v1'), Gymnax('Pendulum-v1')
    full = Replay(800, minimum=80, steps=3, priority=0.6)
    tasks = {
        'dqn': Dqn(pole, replay=full, rounds=8, samples=32),
        'pqn': Pqn(Gymnax('Breakout-MinAtar'), horizon=8, minibatches=4),
        'sac': Sac(pendulum, replay=Replay(4000, minimum=400), rounds=8, samples=32),
    }
    models = {
        'dqn': QNetwork(actions=2, widths=(16,), duelling=True),
        'pqn': QNetwork(actions=3, channels=(4,), widths=(16,), norm=True),
        'sac': SoftActorCritic(actions=1, widths=(16,)),
    }
    return Config(
        model=models[variant],
        task=tasks[variant],
        data=Seeds(episodes=8),
        optimizer=SacGroups(adam, adam, adam) if variant == 'sac' else adam,
        **common,
    )
