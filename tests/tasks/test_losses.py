import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxdl.api import Predictions
from jaxdl.models.lm_head import DeferredLogits
from jaxdl.tasks.losses import token_losses


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 1.0])
def test_equals_torch_with_gradients(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5, 11)).astype(np.float32) * 4
    labels = rng.integers(0, 11, size=(3, 5))
    reference = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        reference.reshape(-1, 11), torch.tensor(labels).reshape(-1), label_smoothing=smoothing
    )
    loss.backward()

    def mean(x, eps):
        return token_losses(x, jnp.asarray(labels), eps)[0].mean()

    for eps in (smoothing, jnp.float32(smoothing)):
        value, gradient = jax.value_and_grad(mean)(jnp.asarray(logits), eps)
        np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
        np.testing.assert_allclose(gradient, reference.grad.numpy(), atol=1e-6)


def test_traced_smoothing_compiles_once():
    logits, labels = jnp.ones((2, 4)), jnp.zeros((2,), jnp.int32)
    step = jax.jit(token_losses)
    for smoothing in (0.05, 0.1, 0.2):
        step(logits, labels, jnp.float32(smoothing))
    assert step._cache_size() == 1


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.zeros((1, 4096), jnp.bfloat16)
    loss, prediction = token_losses(logits, jnp.zeros((1,), jnp.int32))
    assert loss.dtype == jnp.float32 and prediction.dtype == jnp.int32
    np.testing.assert_allclose(loss, np.log(4096), rtol=1e-6)


def test_predictions_form_their_own_loss():
    class Head(Predictions):
        vocab = 3

        def cross_entropy(self, labels, label_smoothing=0.0, weights=None):
            return labels * 1.0 + label_smoothing, labels + 1

        def at(self, places):
            raise AssertionError

    loss, prediction = token_losses(Head(), jnp.arange(3), 0.5)
    assert loss.tolist() == [0.5, 1.5, 2.5] and prediction.tolist() == [1, 2, 3]


def test_prediction_is_the_first_maximum():
    logits = np.random.default_rng(0).integers(0, 4, (50, 7)).astype(np.float32)
    _, prediction = token_losses(jnp.asarray(logits), jnp.zeros(50, jnp.int32))
    np.testing.assert_array_equal(prediction, logits.argmax(-1))


def test_weights_hide_what_is_not_finite():
    logits = jnp.asarray([[1.0, 2.0], [jnp.nan, 0.0]])
    loss, _ = token_losses(logits, jnp.asarray([0, 0]), weights=jnp.asarray([0.5, 0.0]))
    np.testing.assert_allclose(loss, [0.5 * np.log1p(np.e), 0.0], rtol=1e-6)


@pytest.mark.parametrize('dtype', [np.int8, np.uint8, np.int32, np.uint32])
@pytest.mark.parametrize('deferred', [False, True])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_a_label_outside_the_classes_costs_nan(dtype, deferred, smoothing):
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(2, 3, 4)), rng.normal(size=(4, 7))
    labels = rng.integers(0, 5, (2, 3)).astype(dtype)
    labels[0, 1] = 5  # the kernel has columns for it, which only fill up the vocabulary
    labels[1, 2] = np.iinfo(dtype).max if np.iinfo(dtype).min == 0 else -1

    def total(hidden, labels, weights):
        outputs = DeferredLogits(hidden, jnp.asarray(kernel, jnp.float32), vocab=5)
        outputs = outputs if deferred else outputs.logits()
        return token_losses(outputs, labels, smoothing, weights)[0].sum()

    hidden, right = jnp.asarray(hidden, jnp.float32), jnp.asarray(np.minimum(labels, 4) % 5)
    weights = np.ones((2, 3), np.float32)
    weights[0, 1] = weights[1, 2] = 0
    for hides in ((0, 1), (1, 2)):
        hidden_one = weights.copy()
        hidden_one[hides] = 1
        assert jnp.isnan(total(hidden, jnp.asarray(labels), jnp.asarray(hidden_one)))
    wanted = jax.value_and_grad(total)(hidden, right, jnp.asarray(weights))
    found = jax.value_and_grad(total)(hidden, jnp.asarray(labels), jnp.asarray(weights))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_labels_that_fit_no_prediction_are_refused():
    logits = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match=r'labels are \[4, 1\].* must be \[4\]'):
        token_losses(logits, jnp.zeros((4, 1), jnp.int32))
    for labels in (jnp.zeros(4), jnp.zeros(4, bool)):
        with pytest.raises(ValueError, match='must be integers'):
            token_losses(logits, labels)
