"""Softmax cross entropy with integer labels, for logits and for heads that never form them."""

from typing import Any

import jax
import jax.numpy as jnp


def token_losses(
    outputs: Any, labels: jax.Array, label_smoothing: Any = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Returns (loss, prediction), both of `labels`' shape: nats in float32, and int32 arg max.

    `outputs` is either logits `[..., classes]` or, for large vocabularies, an object with
    `cross_entropy(labels, label_smoothing) -> (loss, argmax)` that works in pieces. A
    `label_smoothing` of exactly 0.0 adds no code; otherwise it may be a traced scalar.
    """
    if hasattr(outputs, 'cross_entropy'):
        loss, prediction = outputs.cross_entropy(labels, label_smoothing)
        return loss.astype(jnp.float32), prediction.astype(jnp.int32)
    loss = softmax_cross_entropy(outputs, labels, label_smoothing)
    return loss, jnp.argmax(outputs, axis=-1).astype(jnp.int32)


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
