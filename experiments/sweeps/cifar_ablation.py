"""What each part of the short CIFAR-10 recipe is worth: the recipe, and without one part at a time.

    python -m jaxdl prepare cifar10
    python -m jaxdl sweep experiments/sweeps/cifar_ablation.py --workdir=runs/cifar_ablation

45 trials, meant for GPUs. This project has not run it.
"""

from jaxdl.sweeps import Sweep, chain

VARIANTS = ('no_flip', 'no_crop')


def get_config(variant: str = ''):
    """The recipe without an augmentation; what a field can switch off needs no variant."""
    # Here and not above: the process that runs a sweep imports neither jax nor a config.
    from configs.cifar_cnn import get_config as recipe

    config = recipe()
    flip, crop = config.task.augmentations
    config.task.augmentations = {'': (flip, crop), 'no_flip': (crop,), 'no_crop': (flip,)}[variant]
    return config


def get_sweep() -> Sweep:
    return Sweep(
        config='configs/cifar_cnn.py',
        metric='eval/valid/accuracy',
        points=chain(
            [{}],  # the whole recipe
            [{'config': f'experiments/sweeps/cifar_ablation.py:{name}'} for name in VARIANTS],
            [
                {'task.label_smoothing': 0.0},
                {'ema': 0.0},
                {'model.views': 1},  # no mirrored and shifted copies at evaluation
                {'optimizer.weight_decay': 0.0},
                {'optimizer.nesterov': False},
                {'optimizer.schedule.warmup': 0.0},
            ],
        ),
        seeds=5,
    )
