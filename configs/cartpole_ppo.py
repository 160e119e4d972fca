"""CartPole-v1 by PPO, half a million steps; at its end the policy is also tried on Gymnasium's own CartPole.

(default)   gymnax's CartPole
:gymnasium  Gymnasium's, stepped by the host
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Linear
from jaxdl.data.seeds import Seeds
from jaxdl.environments.gymnasium import Gymnasium
from jaxdl.environments.gymnax import Gymnax
from jaxdl.models.policy import ActorCritic
from jaxdl.tasks.ppo import Ppo

VARIANTS = ('', 'gymnasium')


def get_config(variant: str = '') -> Config:
    real = Gymnasium('CartPole-v1')
    environments = {'': (Gymnax('CartPole-v1'), real), 'gymnasium': (real, None)}[variant]
    return Config(
        model=ActorCritic(actions=2),
        task=Ppo(*environments, rollout=32, epochs=4, minibatches=4),
        data=Seeds(episodes=100),
        optimizer=AdamW(learning_rate=2.5e-3, schedule=Linear(), eps=1e-5, clip_norm=0.5),
        batch_size=32,  # environments; a step of the run is 32 × 32 steps of them
        eval_batch_size=100,
        steps=488,
        steps_per_call=8,
        log_every=40,
        eval_every=120,
        checkpoint=Checkpoint(every=240),
    )
