"""jaxdl: deep learning on JAX with one training loop. `jaxdl.load` opens a trained run.

Importing this package imports nothing else; everything is in its modules.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from jaxdl.predict.predictor import Predictor


def load(workdir: 'str | os.PathLike', *, step: int | None = None, config: str = '') -> 'Predictor':
    """The trained model of a run's folder: `jaxdl.load('runs/digits').predict('pictures/')`.

    Args:
        workdir: the run's folder; no training data is needed.
        step: the checkpoint; the newest good one unless given.
        config: 'FILE[:variant]', the config file whose classes the run may use; it is run.
    """
    from jaxdl.predict import predictor

    return predictor.load(workdir, step=step, config=config)
