"""The features of a classifier that jaxdl trained and saved, for distances between sets of images."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.api import Features
from jaxdl.core.evaluation import readable_variables
from jaxdl.errors import UserError, at_least
from jaxdl.models import layers
from jaxdl.run.open_run import open_run

BATCH = 250


@dataclasses.dataclass
class RunFeatures(Features):
    """What the last dense layer of a run's classifier is given for each image.

    Attributes:
        path: the classifier's folder; empty: none.
        step: the checkpoint; 0: the newest good one.
    """

    path: str = ''
    step: int = 0

    def check(self):
        at_least(self, step=0)
        if self.path and not (Path(self.path) / 'config.json').is_file():
            raise ValueError(
                f'path={self.path!r}: holds no run; train a classifier on these images first, such '
                'as jaxdl train --config=fashion_cnn, and give its folder'
            )

    def ready(self) -> bool:
        return bool(self.path)

    def name(self) -> str:
        return re.sub(r'\W+', '_', Path(self.path).resolve().name)

    def about(self) -> str:
        return _opened(self.path, self.step)[1]

    def features(self, images: np.ndarray) -> np.ndarray:
        """See jaxdl.api.Features.

        Raises:
            UserError: the run is no classifier of images, or of images of another shape.
        """
        apply, _, shape = _opened(self.path, self.step)
        if images.shape[1:] != shape:
            raise UserError(
                f'--config.task.distance.features.path={self.path!r}: was trained on images '
                f'{"×".join(map(str, shape))}, these are {"×".join(map(str, images.shape[1:]))}'
            )
        found = []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            filled = np.concatenate([part, np.repeat(part[:1], BATCH - len(part), 0)])
            found.append(np.asarray(apply(filled), np.float32)[: len(part)])
        return np.concatenate(found)


@functools.lru_cache(maxsize=2)
def _opened(path: str, step: int) -> tuple[Callable[[np.ndarray], jax.Array], str, tuple]:
    """The function from images to features, what it is in words, the shape of an image."""
    run = open_run(path, step=step or None, data=False)
    example, task = run.program.example, run.config.task
    if 'image' not in example or 'images' not in task.inputs(_one(example)):
        raise UserError(
            f'--config.task.distance.features.path={path!r}: {type(task).__name__} is trained on '
            'no images; give the folder of a classifier of images'
        )
    variables = readable_variables(run.state)
    model = run.config.model

    @jax.jit
    def apply(variables, images):
        seen: list[jax.Array] = []

        def watch(call: Callable, args: Any, kwargs: Any, context: Any):
            if isinstance(context.module, nn.Dense | layers.Dense):
                seen.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(watch):
            model.apply(variables, **task.inputs({'image': images}), train=False)
        if not seen or seen[-1].ndim != 2:
            raise UserError(
                f'--config.task.distance.features.path={path!r}: {type(model).__name__} does not '
                'end in a dense layer of vectors, whose input would be the features'
            )
        # A model that looks at several views of an image gives the features of all of them.
        return seen[-1].reshape(len(images), -1).astype(jnp.float32)

    size = jax.eval_shape(apply, variables, _one(example)['image']).shape[1]
    about = (
        f'{size} inputs of the last layer of {type(model).__name__}, run {Path(path).name}, '
        f'step {run.step}'
    )
    return functools.partial(apply, variables), about, tuple(example['image'].shape)


def _one(example: dict) -> dict[str, jax.Array]:
    """A batch of one example of zeros."""
    return {name: jnp.zeros((1, *value.shape), value.dtype) for name, value in example.items()}
