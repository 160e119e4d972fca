"""MinAtar's Breakout by PPO with a small convolutional network: 10 million steps.

Fewer with --config.steps: 64 environments × 128 steps are one of 1,221 steps.
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Linear
from jaxdl.data.seeds import Seeds
from jaxdl.environments.gymnax import Gymnax
from jaxdl.models.policy import ActorCritic
from jaxdl.tasks.ppo import Ppo


def get_config(variant: str = '') -> Config:
    del variant
    return Config(
        model=ActorCritic(actions=3, channels=(16,), widths=(128,), activation='relu', shared=True),
        task=Ppo(Gymnax('Breakout-MinAtar'), rollout=128, epochs=4, minibatches=8),
        data=Seeds(episodes=64),
        optimizer=AdamW(learning_rate=5e-3, schedule=Linear(), eps=1e-5, clip_norm=0.5),
        batch_size=64,  # environments; a step of the run is 64 × 128 steps of them
        eval_batch_size=64,
        steps=1_221,
        log_every=10,
        eval_every=200,
        checkpoint=Checkpoint(every=200),
    )
