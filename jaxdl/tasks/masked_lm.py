"""Masked language modelling: find the hidden tokens (Devlin et al. 2018, arXiv:1810.04805)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.api import Limits, Predictions, Task
from jaxdl.metrics import Mean
from jaxdl.tasks.losses import (
    class_predictions,
    perplexity,
    row_metrics,
    row_weights,
    token_losses,
    token_metrics,
)


@dataclasses.dataclass
class MaskedLM(Task):
    """Hides tokens on the device and asks the model for them; with pairs, also whether B follows A.

    The batch holds 'tokens', 'segments', 'positions' int32, 'maskable' bool, all [batch, time], and
    'row' int32 [batch]; for the next-sentence objective also 'token_types' [batch, time] and
    'next_sentence' [batch] (1 where B is random). Of the maskable tokens of a row the share `rate`
    is chosen: of these most become the mask token, some a random token, and the rest stay. Training hides others at every step; evaluation hides the same ones always, by
    the row's number, whatever the batch size.

    Attributes:
        vocab_size: random tokens are drawn from all ids below it.
        mask_token: the id that hides a token, `tokenizer.mask`.
        rate: share of the tokens that the model is asked for.
        masked: share of those that become the mask token.
        random: share of those that become a random token.
        eval_seed: decides which tokens evaluation hides.
    """

    vocab_size: int = 260
    mask_token: int = 259
    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    eval_seed: int = 0

    def check(self):
        if not 0 < self.rate <= 1:
            raise ValueError(f'rate={self.rate}: must be in (0, 1]; 0.15 is usual')
        if self.masked < 0 or self.random < 0 or self.masked + self.random > 1 + 1e-9:
            raise ValueError(
                f'masked={self.masked}, random={self.random}: must be at least 0, at most 1 together'
            )
        if not 0 <= self.mask_token < self.vocab_size:
            raise ValueError(
                f'mask_token={self.mask_token}: must be below vocab_size={self.vocab_size}'
            )

    def ranges(self, limits: Limits) -> dict[str, int]:
        return {} if limits.vocab is None else {'tokens': limits.vocab}

    def vocabulary(self) -> dict[str, int]:
        return {'vocab_size': self.vocab_size, 'mask_token': self.mask_token}

    def augment(self, batch: dict[str, jax.Array], rng: jax.Array) -> dict[str, jax.Array]:
        """Hides tokens: 'tokens' change, 'places', 'labels', 'place_mask' [batch, places] are new."""
        time = batch['tokens'].shape[1]
        places = min(time, math.floor(self.rate * time) + 1)
        # A key for each row, so what is hidden does not depend on how a batch is split.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch['row'])
        keys = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
        scores = jax.vmap(lambda key: jax.random.uniform(key, (time,)))(keys[:, 0])
        _, chosen = jax.lax.top_k(jnp.where(batch['maskable'], scores, -1.0), places)
        # Rounded up as often as the fraction says, so that the share is right on average.
        up = jax.vmap(jax.random.uniform)(keys[:, 3])
        wanted = jnp.floor(self.rate * batch['maskable'].sum(axis=1) + up)
        active = jnp.arange(places)[None, :] < wanted[:, None]

        labels = jnp.take_along_axis(batch['tokens'], chosen, axis=1)
        action = jax.vmap(lambda key: jax.random.uniform(key, (places,)))(keys[:, 1])
        other = jax.vmap(lambda key: jax.random.randint(key, (places,), 0, self.vocab_size))(
            keys[:, 2]
        )
        shown = jnp.where(action < self.masked, self.mask_token, labels)
        random = (action >= self.masked) & (action < self.masked + self.random)
        shown = jnp.where(random, other, shown)
        shown = jnp.where(active, shown, labels)
        rows = jnp.arange(labels.shape[0])[:, None]  # may be symbolic, which len() refuses
        return {
            **batch,
            'tokens': batch['tokens'].at[rows, chosen].set(shown, unique_indices=True),
            'places': chosen,
            'labels': labels,
            'place_mask': active,
        }

    def _hidden(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The batch itself in training; in evaluation, where nothing was hidden yet, a fixed choice."""
        if 'places' in batch:
            return batch
        return self.augment(batch, jax.random.key(self.eval_seed))

    def inputs(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        batch = self._hidden(batch)
        names = ('tokens', 'segments', 'positions', 'token_types')
        return {name: batch[name] for name in names if name in batch}

    def metrics(self, outputs: Any, batch: dict[str, jax.Array]) -> dict[str, Mean]:
        """loss (nats a hidden token) and masked_accuracy; with pairs also those of the second task.

        With pairs, loss is the sum of both means, as in the paper; the rows' second losses are
        weighted by their numbers of hidden tokens, so it stays one ratio of sums.
        """
        batch = self._hidden(batch)
        logits, second = split_outputs(outputs)
        weights = row_weights(batch, batch['place_mask'])
        found = token_metrics(at_places(logits, batch['places']), batch['labels'], weights)
        metrics = {'loss': found['loss'], 'masked_accuracy': found['accuracy']}
        if 'next_sentence' in batch:
            if second is None:
                raise ValueError(
                    "the batch has 'next_sentence', but the model returns no prediction of it; "
                    'give a model with that head, or data.packing.next_sentence=False'
                )
            loss, predicted = token_losses(second, batch['next_sentence'])
            mask = batch.get('mask')
            metrics['masked_loss'] = metrics['loss']
            metrics['next_sentence_loss'] = Mean.of(loss, mask)
            metrics['next_sentence_accuracy'] = Mean.of(predicted == batch['next_sentence'], mask)
            total = found['loss'].total + (loss[:, None] * weights).sum()
            metrics['loss'] = Mean(total, found['loss'].weight)
        return metrics

    def predictions(self, outputs: Any, batch: dict[str, jax.Array]) -> dict[str, Any]:
        """How well the hidden tokens of each row are found, and whether B follows A (0: yes).

        The hidden tokens are those of an evaluation, which the number of the row decides.
        """
        batch = self._hidden(batch)
        logits, second = split_outputs(outputs)
        found = row_metrics(
            at_places(logits, batch['places']), batch['labels'], batch['place_mask']
        )
        pair = {}
        if second is not None and 'token_types' in batch:
            pair = class_predictions(second)
        return {
            'masked_loss': found['loss'],
            'masked_accuracy': found['accuracy'],
            'token_count': found['token_count'],
            **{f'next_sentence_{name}': value for name, value in pair.items()},
        }

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """masked_perplexity: exp of the mean loss of a hidden token."""
        nats = means.get('masked_loss', means.get('loss'))
        return {} if nats is None else {'masked_perplexity': perplexity(nats)}


def split_outputs(outputs: Any) -> tuple[Any, jax.Array | None]:
    """(predictions of tokens, predictions of the next sentence or None) of a model's outputs."""
    if isinstance(outputs, tuple):
        return outputs[0], outputs[1]
    return outputs, outputs.next_sentence if isinstance(outputs, Predictions) else None


def at_places(outputs: Any, places: jax.Array) -> Any:
    """Keeps only the predictions at `places` [batch, places], of logits or of deferred ones.

    A deferred head then never works on the tokens that were not hidden, 85 of 100.
    """
    if isinstance(outputs, Predictions):
        return outputs.at(places)
    return jnp.take_along_axis(outputs, places[..., None], axis=1)
