"""Acrobot-v1 by PPO, half a million steps."""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Linear
from jaxdl.data.seeds import Seeds
from jaxdl.environments.gymnasium import Gymnasium
from jaxdl.environments.gymnax import Gymnax
from jaxdl.models.policy import ActorCritic
from jaxdl.tasks.ppo import Ppo


def get_config(variant: str = '') -> Config:
    del variant
    return Config(
        model=ActorCritic(actions=3, normalised=True),
        task=Ppo(
            Gymnax('Acrobot-v1'),
            Gymnasium('Acrobot-v1'),
            rollout=64,
            epochs=4,
            minibatches=4,
            scale_rewards=True,
        ),
        data=Seeds(episodes=100),
        optimizer=AdamW(learning_rate=1e-3, schedule=Linear(), eps=1e-5, clip_norm=0.5),
        batch_size=32,  # environments; a step of the run is 32 × 64 steps of them
        eval_batch_size=100,
        steps=240,
        steps_per_call=4,
        log_every=20,
        eval_every=80,
        checkpoint=Checkpoint(every=120),
    )
