"""Language modelling: predict the next token."""

import dataclasses

import jax

from jaxdl.metrics import Mean
from jaxdl.tasks.losses import perplexity, row_weights, token_metrics


@dataclasses.dataclass
class LanguageModel:
    """Cross entropy of the next token, over the tokens that the batch marks.

    The batch holds 'tokens', 'targets', 'segments', 'positions' int32 and 'target_mask' bool, all
    [batch, time], and, where the tokenizer knows them, 'bytes' [batch] of the marked targets.
    """

    def augment(self, batch: dict[str, jax.Array], rng: jax.Array) -> dict[str, jax.Array]:
        del rng
        return batch

    def inputs(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {name: batch[name] for name in ('tokens', 'segments', 'positions')}

    def metrics(self, outputs, batch: dict[str, jax.Array]) -> dict[str, Mean]:
        """loss (nats a token), accuracy, and bits_per_byte where sizes are known."""
        weights = row_weights(batch, batch['target_mask'])
        size = row_weights(batch, batch['bytes']) if 'bytes' in batch else None
        return token_metrics(outputs, batch['targets'], weights, size=size)

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """perplexity: exp of the mean loss of a token; it depends on the tokenizer."""
        return {'perplexity': perplexity(means['loss'])} if 'loss' in means else {}
