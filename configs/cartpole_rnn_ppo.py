"""CartPole-v1 without its velocities by PPO with a GRU, which has to remember where things were.

(default)  the recurrent policy
:forward   the same without a memory, for comparison
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Linear
from jaxdl.data.seeds import Seeds
from jaxdl.environments.gymnax import Gymnax
from jaxdl.environments.wrappers import Visible
from jaxdl.models.policy import ActorCritic
from jaxdl.tasks.ppo import Ppo

VARIANTS = ('', 'forward')


def get_config(variant: str = '') -> Config:
    memory = {'': 64, 'forward': 0}[variant]
    return Config(
        model=ActorCritic(actions=2, widths=(64,), memory=memory),
        task=Ppo(
            Visible(Gymnax('CartPole-v1'), entries=(0, 2)), rollout=32, epochs=4, minibatches=4
        ),
        data=Seeds(episodes=100),
        optimizer=AdamW(learning_rate=2.5e-3, schedule=Linear(), eps=1e-5, clip_norm=0.5),
        batch_size=64,  # environments; a step of the run is 64 × 32 steps of them
        eval_batch_size=100,
        steps=480,
        steps_per_call=8,
        log_every=40,
        eval_every=160,
        checkpoint=Checkpoint(every=240),
    )
