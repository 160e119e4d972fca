"""CartPole-v1 by PQN, without replay and target network."""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Linear
from jaxdl.data.seeds import Seeds
from jaxdl.environments.gymnasium import Gymnasium
from jaxdl.environments.gymnax import Gymnax
from jaxdl.models.q_network import QNetwork
from jaxdl.tasks.pqn import Pqn
from jaxdl.tasks.q_learning import Exploration


def get_config(variant: str = '') -> Config:
    del variant
    return Config(
        model=QNetwork(actions=2, widths=(128, 128), norm=True),
        task=Pqn(
            Gymnax('CartPole-v1'),
            Gymnasium('CartPole-v1'),
            exploration=Exploration(final=0.05, fraction=0.2),
            horizon=64,
            epochs=4,
            minibatches=16,
            decay=0.95,
            reward_scale=0.1,
        ),
        data=Seeds(episodes=100),
        optimizer=AdamW(learning_rate=2.5e-4, schedule=Linear(), clip_norm=10.0),
        batch_size=32,  # environments; a step of the run is 32 × 64 steps of them
        eval_batch_size=100,
        steps=244,
        log_every=10,
        eval_every=61,
        checkpoint=Checkpoint(every=61),
    )
