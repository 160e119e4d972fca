"""What PPO learns in five environments, five seeds each: the figures of docs/rl.md.

    python -m jaxdl sweep experiments/sweeps/rl_seeds.py --workdir=runs/rl_seeds --vectorize=5
    python -m experiments.rl.aggregate runs/rl_seeds

The seeds of a config share one program. The policy without a memory is there to show what the task of
memory is without one.
"""

from jaxdl.sweeps import Sweep

CONFIGS = (
    'cartpole_ppo.py',
    'pendulum_ppo.py',
    'acrobot_ppo.py',
    'memory_rnn_ppo.py',
    'memory_rnn_ppo.py:forward',
)


def get_sweep() -> Sweep:
    return Sweep(
        config='configs/cartpole_ppo.py',
        metric='eval/episodes/return',
        points=[{'config': f'configs/{name}'} for name in CONFIGS],
        seeds=5,
    )
