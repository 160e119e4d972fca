"""A task of memory from bsuite: a bit is seen at the start, and has to be named at the end.

(default)  PPO with a GRU: the best return is 1
:forward   the same without a memory, which cannot do better than chance, 0
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Linear
from jaxdl.data.seeds import Seeds
from jaxdl.environments.gymnax import Gymnax
from jaxdl.models.policy import ActorCritic
from jaxdl.tasks.ppo import Ppo

VARIANTS = ('', 'forward')


def get_config(variant: str = '') -> Config:
    memory = {'': 32, 'forward': 0}[variant]
    return Config(
        model=ActorCritic(actions=2, widths=(32,), memory=memory),
        task=Ppo(
            Gymnax('MemoryChain-bsuite', settings=(('memory_length', 10),)),
            rollout=22,  # two episodes
            epochs=4,
            minibatches=2,
            discount=0.99,
        ),
        data=Seeds(episodes=400),
        optimizer=AdamW(learning_rate=3e-3, schedule=Linear(), eps=1e-5, clip_norm=0.5),
        batch_size=64,  # environments; a step of the run is 64 × 22 steps of them
        eval_batch_size=400,
        steps=320,
        steps_per_call=8,
        log_every=40,
        eval_every=160,
        checkpoint=Checkpoint(every=160),
    )
