"""CartPole-v1 by DQN: double, duelling heads, 3-step returns."""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Linear
from jaxdl.data.seeds import Seeds
from jaxdl.environments.gymnasium import Gymnasium
from jaxdl.environments.gymnax import Gymnax
from jaxdl.models.q_network import QNetwork
from jaxdl.tasks.dqn import Dqn
from jaxdl.tasks.q_learning import Exploration
from jaxdl.tasks.replay import Replay

VARIANTS = ('', 'prioritised')


def get_config(variant: str = '') -> Config:
    priority = {'': 0.0, 'prioritised': 0.6}[variant]
    return Config(
        model=QNetwork(actions=2, widths=(128, 128), duelling=True),
        task=Dqn(
            Gymnax('CartPole-v1'),
            Gymnasium('CartPole-v1'),
            exploration=Exploration(final=0.05, fraction=0.3),
            replay=Replay(capacity=100_000, minimum=2_000, steps=3, priority=priority),
            rounds=100,
            samples=128,
            tau=0.01,
        ),
        data=Seeds(episodes=100),
        optimizer=AdamW(learning_rate=5e-4, schedule=Linear(), clip_norm=10.0),
        batch_size=8,  # environments; a step of the run is 8 × 100 steps of them and 100 updates
        eval_batch_size=100,
        steps=500,
        log_every=25,
        eval_every=125,
        checkpoint=Checkpoint(every=125),
    )
