"""How the best learning rate moves with the width of a small CNN on the digits; two seeds each.

    python -m jaxdl sweep experiments/sweeps/digits_lr_width.py --workdir=runs/digits_lr_width

32 trials, minutes on two CPU cores. Only the width changes the compiled program, so --vectorize=8
trains the eight trials of a width in one.
"""

from jaxdl.sweeps import Sweep, grid


def get_sweep() -> Sweep:
    return Sweep(
        config='configs/digits_cnn.py',
        metric='eval/test/accuracy',
        points=grid(
            {
                'model.channels': ((4, 8), (8, 16), (16, 32), (32, 64)),
                'optimizer.learning_rate': (3e-4, 1e-3, 3e-3, 1e-2),
            }
        ),
        seeds=2,
        overrides={'steps': 300, 'eval_every': 100, 'checkpoint.every': 100, 'log_every': 50},
    )
