"""Pendulum-v1 by SAC, 50,000 steps."""

from jaxdl.core.config import Checkpoint, Config
from jaxdl.core.optim import AdamW, Constant, SacGroups
from jaxdl.data.seeds import Seeds
from jaxdl.environments.gymnasium import Gymnasium
from jaxdl.environments.gymnax import Gymnax
from jaxdl.models.q_network import SoftActorCritic
from jaxdl.tasks.replay import Replay
from jaxdl.tasks.sac import Sac


def get_config(variant: str = '') -> Config:
    del variant
    rate = lambda value: AdamW(learning_rate=value, schedule=Constant())  # noqa: E731
    return Config(
        model=SoftActorCritic(actions=1, widths=(64, 64)),
        task=Sac(
            Gymnax('Pendulum-v1'),
            Gymnasium('Pendulum-v1'),
            replay=Replay(capacity=50_000, minimum=1_000),
            rounds=50,
            gradients=2,
            samples=128,
        ),
        data=Seeds(episodes=100),
        optimizer=SacGroups(actor=rate(1e-3), critic=rate(1e-3), temperature=rate(1e-3)),
        batch_size=4,  # environments; a step of the run is 4 × 50 steps of them and 100 updates
        eval_batch_size=100,
        steps=250,
        log_every=10,
        eval_every=125,
        checkpoint=Checkpoint(every=125),
    )
