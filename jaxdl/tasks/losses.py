"""Softmax cross entropy with integer labels, for logits and for heads that never form them."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.api import Predictions
from jaxdl.metrics import Mean
from jaxdl.models import ops


def token_losses(
    outputs: Any,
    labels: jax.Array,
    label_smoothing: Any = 0.0,
    weights: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns (loss, prediction), both of `labels`' shape: nats in float32, and int32 arg max.

    `outputs` is either logits `[..., classes]` or, for large vocabularies, `Predictions`, which work
    in pieces. A `label_smoothing` of exactly 0.0 adds no code; otherwise it may be a traced scalar.
    `weights` of `labels`' shape multiply the losses.
    The loss of a label outside 0 … classes - 1 is nan, unless its weight is 0.

    Raises:
        ValueError: labels are no integers, or not one for each prediction.
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f'the labels are {labels.dtype}; they must be integers, such as int32')
    if isinstance(outputs, Predictions):
        given = {} if weights is None else {'weights': weights}
        loss, prediction = outputs.cross_entropy(labels, label_smoothing, **given)
        loss, prediction = loss.astype(jnp.float32), prediction.astype(jnp.int32)
        unknown = _outside(labels, outputs.vocab)
        if weights is not None:
            unknown &= weights > 0
        return loss + jnp.where(unknown, jnp.nan, 0.0), prediction
    if labels.shape != outputs.shape[:-1]:
        # They would broadcast, each label against every prediction.
        raise ValueError(
            f'the labels are {list(labels.shape)}, but the model gives {list(outputs.shape)}: '
            f'they must be {list(outputs.shape[:-1])}, one number for each prediction'
        )
    loss = ops.cross_entropy(outputs, labels, label_smoothing)
    # A sum, not a choice: the gradient of the loss stays as it is.
    loss += jnp.where(_outside(labels, outputs.shape[-1]), jnp.nan, 0.0)
    if weights is not None:
        # where, not only a product: 0 times the infinite loss of an unused place would be nan.
        loss = jnp.where(weights > 0, loss * weights, 0.0)
    return loss, ops.argmax(outputs)


def _outside(labels: jax.Array, classes: int) -> jax.Array:
    labels = labels.astype(jnp.int32)  # a small dtype cannot hold `classes`
    return (labels < 0) | (labels >= classes)


def token_metrics(
    outputs: Any,
    labels: jax.Array,
    weights: jax.Array,
    label_smoothing: Any = 0.0,
    size: jax.Array | None = None,
) -> dict[str, Mean]:
    """The means over tokens that all language tasks share: loss, accuracy and bits_per_byte.

    `weights` (0 or 1) are of `labels`' shape. `size`, the UTF-8 bytes that the weighted labels
    stand for, makes bits_per_byte = total nats / total bytes / ln 2, whatever the tokenizer.
    """
    weights = weights.astype(jnp.float32)
    loss, predicted = token_losses(outputs, labels, label_smoothing, weights)
    total = loss.sum()
    metrics = {
        'loss': Mean(total, weights.sum()),
        'accuracy': Mean.of(predicted == labels, weights),
    }
    if size is not None:
        metrics['bits_per_byte'] = Mean(
            jax.lax.stop_gradient(total) / math.log(2), size.astype(jnp.float32).sum()
        )
    return metrics


def row_metrics(
    outputs: Any, labels: jax.Array, weights: jax.Array, size: jax.Array | None = None
) -> 'dict[str, jax.Array | Mean]':
    """The metrics of `token_metrics` of each row by itself, and the 'token_count' of its weights."""
    weights = weights.astype(jnp.float32)
    loss, predicted = token_losses(outputs, labels, 0.0, weights)
    total, counted = loss.sum(-1), weights.sum(-1)
    metrics: dict[str, jax.Array | Mean] = {
        'loss': Mean(total, counted),
        'accuracy': Mean(((predicted == labels) * weights).sum(-1), counted),
        'token_count': counted.astype(jnp.int32),
    }
    if size is not None:
        metrics['bits_per_byte'] = Mean(total / math.log(2), size.astype(jnp.float32))
    return metrics


def class_predictions(logits: jax.Array) -> 'dict[str, jax.Array | Mean]':
    """The most likely 'label' of each row, its 'probability', and the 'probabilities' of all."""
    shares = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return {
        'label': ops.argmax(logits),
        'probability': shares.max(-1),
        'probabilities': shares,
    }


def row_weights(batch: dict[str, jax.Array], counted: jax.Array) -> jax.Array:
    """`counted` [batch, …] as float32, with zeros in the padding rows that batch['mask'] marks."""
    counted = counted.astype(jnp.float32)
    if 'mask' not in batch:
        return counted
    mask = batch['mask'].astype(jnp.float32)
    return counted * mask.reshape(mask.shape + (1,) * (counted.ndim - 1))


def perplexity(nats: float) -> float:
    """exp of a mean loss in nats; infinite where that is too large for a float."""
    return math.exp(nats) if nats < 700 else math.inf
