"""Softmax cross entropy with integer labels, for logits and for heads that never form them."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.metrics import Mean


def token_losses(
    outputs: Any,
    labels: jax.Array,
    label_smoothing: Any = 0.0,
    weights: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns (loss, prediction), both of `labels`' shape: nats in float32, and int32 arg max.

    `outputs` is either logits `[..., classes]` or, for large vocabularies, an object with
    `cross_entropy(labels, label_smoothing) -> (loss, argmax)` that works in pieces. A
    `label_smoothing` of exactly 0.0 adds no code; otherwise it may be a traced scalar. `weights`
    of `labels`' shape multiply the losses; the object, then called with them too, can skip work.
    """
    if hasattr(outputs, 'cross_entropy'):
        given = {} if weights is None else {'weights': weights}
        loss, prediction = outputs.cross_entropy(labels, label_smoothing, **given)
        return loss.astype(jnp.float32), prediction.astype(jnp.int32)
    loss = softmax_cross_entropy(outputs, labels, label_smoothing)
    if weights is not None:
        # where, not only a product: 0 times the infinite loss of an unused place would be nan.
        loss = jnp.where(weights > 0, loss * weights, 0.0)
    return loss, _argmax(outputs)


def _argmax(x: jax.Array) -> jax.Array:
    """The first index of the maximum over the last axis, int32."""
    # Two plain reductions are vector code on a CPU; jnp.argmax reduces (value, index) pairs.
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    top = x.max(axis=-1, keepdims=True)
    return jnp.where(x == top, index, x.shape[-1] - 1).min(axis=-1)


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


def softmax_cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: Any = 0.0
) -> jax.Array:
    """Returns -sum(target * log softmax(logits)) `labels.shape`, in nats, computed in float32.

    The target gives 1 - label_smoothing to the label and spreads label_smoothing evenly over all
    classes, the label included (Szegedy et al. 2016, arXiv:1512.00567).
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    # A comparison instead of a gather: its gradient is no scatter, and it also partitions well
    # when the classes are sharded over devices.
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    chosen = jnp.where(classes == labels[..., None], logits, 0.0).sum(axis=-1)
    if isinstance(label_smoothing, (int, float)) and label_smoothing == 0:
        return normaliser - chosen
    kept = (1.0 - label_smoothing) * chosen + label_smoothing * logits.mean(axis=-1)
    return normaliser - kept
