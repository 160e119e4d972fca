"""Translation by an encoder and a decoder that is shown the right answer so far."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxdl.metrics import Mean
from jaxdl.tasks.losses import perplexity, row_weights, token_metrics

INPUTS = (
    'source',
    'target',
    'source_segments',
    'target_segments',
    'source_positions',
    'target_positions',
)


@dataclasses.dataclass
class Translation:
    """Cross entropy of the next target token, given the source and the target so far.

    The batch holds 'source' [batch, source time], 'target' and 'targets' [batch, time], their
    segments (0 is padding) and positions, all int32; several pairs may share a row. Labels are
    smoothed in training only, so the evaluation's loss and perplexity are the model's own.

    Attributes:
        label_smoothing: share of the target spread evenly over the vocabulary (arXiv:1512.00567).
    """

    scalars: ClassVar[tuple[str, ...]] = ('label_smoothing',)

    label_smoothing: float = 0.1

    def check(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f'label_smoothing={self.label_smoothing}: must be in [0, 1)')

    def augment(self, batch: dict[str, jax.Array], rng: jax.Array) -> dict[str, jax.Array]:
        """Marks the batch as one for training: only such a batch has smoothed labels."""
        del rng
        return {**batch, 'smoothed': jnp.ones(batch['target'].shape[:1], bool)}

    def inputs(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: batch[name] for name in INPUTS}

    def metrics(self, outputs, batch: dict[str, jax.Array]) -> dict[str, Mean]:
        """loss (nats a token, smoothed in training), accuracy; in evaluation also bits_per_byte."""
        weights = row_weights(batch, batch['target_segments'] > 0)
        if 'smoothed' in batch:
            return token_metrics(outputs, batch['targets'], weights, self.label_smoothing)
        size = row_weights(batch, batch['bytes']) if 'bytes' in batch else None
        return token_metrics(outputs, batch['targets'], weights, size=size)

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """perplexity of a target token, where the loss is not smoothed."""
        smooth = self.label_smoothing != 0 and 'bits_per_byte' not in means
        if smooth or 'loss' not in means:
            return {}
        return {'perplexity': perplexity(means['loss'])}
