"""Four games of MinAtar by PQN, three seeds each, 10 million steps.

    python -m jaxdl sweep experiments/sweeps/minatar_all.py --workdir=runs/minatar --vectorize=3

With --config.steps=122 it is half a million.
"""

from jaxdl.sweeps import Sweep

# {game: number of actions}
GAMES = {'Asterix': 5, 'Breakout': 3, 'Freeway': 3, 'SpaceInvaders': 4}


def get_sweep() -> Sweep:
    return Sweep(
        config='configs/minatar_breakout_pqn.py',
        metric='eval/episodes/return',
        points=[
            {
                'task.environment.name': f'{game}-MinAtar',
                'model.actions': actions,
            }
            for game, actions in GAMES.items()
        ],
        seeds=3,
    )
