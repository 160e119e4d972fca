"""AdamW, Muon, Lion and SGD on the standard-library language model, each over its own learning rates.

    python -m jaxdl sweep experiments/sweeps/lm_optimizers.py --workdir=runs/lm_optimizers

16 trials of 300 steps: minutes on a GPU, an hour or more on two CPU cores.
"""

from jaxdl.sweeps import Sweep, chain, grid

# About three-fold steps around what each method is known to want.
RATES = {
    'adamw': (3e-4, 1e-3, 3e-3, 1e-2),
    'muon': (3e-3, 1e-2, 3e-2, 1e-1),
    'lion': (3e-5, 1e-4, 3e-4, 1e-3),
    'sgd': (3e-2, 1e-1, 3e-1, 1.0),
}
VARIANTS = tuple(RATES)


def get_config(variant: str = 'adamw'):
    """The language model with another optimizer, under the same schedule and clipping."""
    # Here and not above: the process that runs a sweep imports neither jax nor a config.
    from configs.stdlib_lm import get_config as base
    from jaxdl.core.optim import AdamW, Lion, Muon, Sgd

    config = base()
    schedule = config.optimizer.schedule
    # Lion's rates are some ten times smaller, and decay is multiplied by the rate.
    config.optimizer = {
        'adamw': AdamW(schedule=schedule, weight_decay=0.1, b2=0.95, clip_norm=1.0),
        'muon': Muon(schedule=schedule, weight_decay=0.01, clip_norm=1.0),
        'lion': Lion(schedule=schedule, weight_decay=1.0, clip_norm=1.0),
        'sgd': Sgd(schedule=schedule, momentum=0.9, clip_norm=1.0),
    }[variant]
    return config


def get_sweep() -> Sweep:
    return Sweep(
        config='experiments/sweeps/lm_optimizers.py',
        metric='eval/valid/loss',
        mode='min',
        points=chain(
            *(
                grid(
                    {
                        'config': [f'experiments/sweeps/lm_optimizers.py:{name}'],
                        'optimizer.learning_rate': rates,
                    }
                )
                for name, rates in RATES.items()
            )
        ),
        overrides={'steps': 300, 'eval_every': 100, 'checkpoint.every': 100},
    )
