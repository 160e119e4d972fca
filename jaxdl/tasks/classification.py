"""Classification of images and of vectors of features: cross entropy and accuracy."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdl.api import Limits, Task
from jaxdl.errors import at_least, below_one
from jaxdl.metrics import Mean
from jaxdl.tasks.losses import class_predictions, token_losses


@dataclasses.dataclass
class _Labelled(Task):
    """Predicts one of `num_classes` labels; the batch holds 'label' int32 [batch].

    An augmentation such as Mixup adds 'label_b' [batch] and 'mix' [batch].

    Attributes:
        num_classes: number of labels; 0: as many as the data has.
        label_smoothing: share of the target spread evenly over all classes (arXiv:1512.00567), in training.
    """

    scalars: ClassVar[tuple[str, ...]] = ('label_smoothing',)

    num_classes: int = 10
    label_smoothing: float = 0.0

    def check(self):
        at_least(self, num_classes=2)
        below_one(self, 'label_smoothing')

    def ranges(self, limits: Limits) -> dict[str, int]:
        del limits
        return {'label': self.num_classes}

    def metrics(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, Mean]:
        """loss of the smoothed labels, accuracy, and top5_accuracy from 20 classes on.

        Raises:
            ValueError: `outputs` are not [batch, num_classes].
        """
        return self._metrics(outputs, batch, self.label_smoothing)

    def _metrics(self, outputs: jax.Array, batch: dict[str, jax.Array], smoothing: Any):
        if outputs.shape[-1] != self.num_classes:
            raise ValueError(
                f'the model gives {outputs.shape[-1]} logits an image, but the task has '
                f'num_classes={self.num_classes}; give both the same number'
            )
        labels, mask = batch['label'], batch.get('mask')
        loss, predicted = token_losses(outputs, labels, smoothing)
        if 'mix' in batch:
            other, _ = token_losses(outputs, batch['label_b'], smoothing)
            loss = batch['mix'] * loss + (1 - batch['mix']) * other
        metrics = {
            'loss': Mean.of(loss, mask),
            'accuracy': Mean.of(predicted == labels, mask),
        }
        if self.num_classes >= 20:
            top = jax.lax.top_k(outputs, 5)[1]
            metrics['top5_accuracy'] = Mean.of((top == labels[:, None]).any(-1), mask)
        return metrics

    def eval_metrics(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, Mean]:
        """The metrics of the true labels, and up to 100 classes the confusion matrix.

        The matrix holds shares of [label, predicted].
        """
        metrics = self._metrics(outputs, batch, 0.0)
        if self.num_classes <= 100:
            labels, mask = batch['label'], batch['mask']
            truth = jax.nn.one_hot(labels, self.num_classes) * mask[:, None]
            matrix = truth.T @ jax.nn.one_hot(outputs.argmax(-1), self.num_classes)
            metrics['confusion'] = Mean(matrix, mask.sum())
        return metrics

    def predictions(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, Any]:
        """'label', its 'probability' and the 'probabilities' of all classes."""
        del batch
        return class_predictions(outputs)


@dataclasses.dataclass
class FeatureClassification(_Labelled):
    """Predicts a label for a vector: the batch holds 'features' float32 [batch, features]."""

    def inputs(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {'features': batch['features']}


@dataclasses.dataclass
class Classification(_Labelled):
    """Predicts one of `num_classes` labels for an image.

    The batch holds 'image' (uint8 [batch, height, width, channels], or floats) and 'label' int32
    [batch].

    Attributes:
        mean: subtracted from the pixels, which are scaled to [0, 1]; one value, or one a channel.
        std: the pixels are divided by it after that.
        augmentations: applied in order to every training batch, on the device.
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    augmentations: tuple = ()

    def check(self):
        super().check()
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f'mean={self.mean}, std={self.std}: must have the same length, 1 or channels'
            )
        if min(self.std) <= 0:
            raise ValueError(f'std={self.std}: must be above 0')

    def augment(self, batch: dict[str, jax.Array], rng: jax.Array) -> dict[str, jax.Array]:
        """The batch after all augmentations, each with a random stream of its own."""
        for index, augmentation in enumerate(self.augmentations):
            batch = augmentation(batch, jax.random.fold_in(rng, index))
        return batch

    def inputs(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images = batch['image']
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
        return {'images': (images - mean) / std}

    def preview(self, batch: dict[str, jax.Array]) -> dict[str, Any]:
        """Pictures of a batch as the model sees it: {'images': uint8 [batch, …]}."""
        images = batch['image'].astype(jnp.float32)
        if batch['image'].dtype != jnp.uint8:
            images = images * 255
        return {'images': jnp.clip(images, 0, 255).astype(jnp.uint8)}
