"""PPO and PQN in four games of MinAtar, five seeds each, 10 million steps a trial.

    python -m jaxdl sweep experiments/sweeps/minatar_all.py --workdir=runs/minatar --vectorize=5
    python -m experiments.rl.aggregate runs/minatar

40 trials, meant for a GPU. This project has not run it.
"""

from jaxdl.sweeps import Sweep

ACTIONS = {'Asterix': 5, 'Breakout': 3, 'Freeway': 3, 'SpaceInvaders': 4}


def get_sweep() -> Sweep:
    return Sweep(
        config='configs/minatar_breakout_ppo.py',
        metric='eval/episodes/return',
        points=[
            {
                'config': f'configs/minatar_breakout_{algorithm}.py',
                'task.environment.name': f'{name}-MinAtar',
                'model.actions': count,
            }
            for algorithm in ('ppo', 'pqn')
            for name, count in ACTIONS.items()
        ],
        seeds=5,
    )
