"""What DQN, PQN and SAC learn, five seeds each: their figures in docs/rl.md.

    python -m jaxdl sweep experiments/sweeps/value_seeds.py --workdir=runs/value_seeds --vectorize=5
    python -m experiments.rl.aggregate runs/value_seeds

The seeds of a config share one program.
"""

from jaxdl.sweeps import Sweep

CONFIGS = ('cartpole_pqn.py', 'pendulum_sac.py', 'cartpole_dqn.py')


def get_sweep() -> Sweep:
    return Sweep(
        config='configs/cartpole_pqn.py',
        metric='eval/episodes/return',
        points=[{'config': f'configs/{name}'} for name in CONFIGS],
        seeds=5,
    )
