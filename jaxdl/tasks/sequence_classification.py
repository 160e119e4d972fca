"""Classification of token sequences, such as the sentiment of a review."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdl.api import Limits, Task
from jaxdl.errors import below_one
from jaxdl.metrics import Mean
from jaxdl.tasks.losses import class_predictions, token_losses


@dataclasses.dataclass
class SequenceClassification(Task):
    """Predicts one label for a sequence of tokens; what lies past its length is hidden.

    The batch holds 'tokens' int32 [batch, time], 'lengths' and 'label' int32 [batch]. The model
    returns logits [batch, classes].

    Attributes:
        label_smoothing: share of the target spread evenly over all classes (arXiv:1512.00567), in training.
    """

    scalars: ClassVar[tuple[str, ...]] = ('label_smoothing',)

    label_smoothing: float = 0.0

    def check(self):
        below_one(self, 'label_smoothing')

    def ranges(self, limits: Limits) -> dict[str, int]:
        bounds = {'tokens': limits.vocab, 'label': limits.classes}
        return {name: bound for name, bound in bounds.items() if bound is not None}

    def inputs(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The tokens, and segments that are 1 on a row's own tokens and 0 on its padding."""
        tokens = batch['tokens']
        used = jnp.arange(tokens.shape[1])[None, :] < batch['lengths'][:, None]
        return {'tokens': tokens, 'segments': used.astype(jnp.int32)}

    def metrics(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, Mean]:
        """loss of the smoothed labels and accuracy over the rows that are not padding."""
        return self._metrics(outputs, batch, self.label_smoothing)

    def eval_metrics(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, Mean]:
        """The same with the loss of the true labels."""
        return self._metrics(outputs, batch, 0.0)

    def predictions(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> dict[str, Any]:
        """'label', its 'probability' and the 'probabilities' of all classes."""
        del batch
        return class_predictions(outputs)

    def _metrics(self, outputs: jax.Array, batch: dict[str, jax.Array], smoothing: Any):
        mask = batch.get('mask')
        loss, predicted = token_losses(outputs, batch['label'], smoothing)
        return {
            'loss': Mean.of(loss, mask),
            'accuracy': Mean.of(predicted == batch['label'], mask),
        }
