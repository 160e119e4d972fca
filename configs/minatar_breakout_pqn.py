"""MinAtar's Breakout by PQN with a small convolutional network: 10 million steps.

Fewer with --config.steps: 128 environments × 32 steps are one of 2,441 steps.
"""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Linear
from jaxdl.data.seeds import Seeds
from jaxdl.environments.gymnax import Gymnax
from jaxdl.models.q_network import QNetwork
from jaxdl.tasks.pqn import Pqn
from jaxdl.tasks.q_learning import Exploration


def get_config(variant: str = '') -> Config:
    del variant
    return Config(
        model=QNetwork(actions=3, channels=(16,), widths=(128,), norm=True),
        task=Pqn(
            Gymnax('Breakout-MinAtar'),
            exploration=Exploration(final=0.05, fraction=0.1),
            horizon=32,
            epochs=2,
            minibatches=32,
            decay=0.65,
        ),
        data=Seeds(episodes=128),
        optimizer=AdamW(learning_rate=5e-4, schedule=Linear(), clip_norm=10.0),
        batch_size=128,  # environments; a step of the run is 128 × 32 steps of them
        eval_batch_size=128,
        steps=2_441,
        log_every=20,
        eval_every=400,
        checkpoint=Checkpoint(every=400),
    )
