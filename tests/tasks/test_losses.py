import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxdl.tasks.losses import softmax_cross_entropy, token_losses


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
        return softmax_cross_entropy(x, jnp.asarray(labels), eps).mean()

    for eps in (smoothing, jnp.float32(smoothing)):
        value, gradient = jax.value_and_grad(mean)(jnp.asarray(logits), eps)
        np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
        np.testing.assert_allclose(gradient, reference.grad.numpy(), atol=1e-6)


def test_traced_smoothing_compiles_once():
    logits, labels = jnp.ones((2, 4)), jnp.zeros((2,), jnp.int32)
    step = jax.jit(softmax_cross_entropy)
    for smoothing in (0.05, 0.1, 0.2):
        step(logits, labels, jnp.float32(smoothing))
    assert step._cache_size() == 1


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.zeros((1, 4096), jnp.bfloat16)
    loss, prediction = token_losses(logits, jnp.zeros((1,), jnp.int32))
    assert loss.dtype == jnp.float32 and prediction.dtype == jnp.int32
    np.testing.assert_allclose(loss, np.log(4096), rtol=1e-6)


def test_an_object_with_cross_entropy_is_asked():
    class Head:
        def cross_entropy(self, labels, label_smoothing):
            return labels * 1.0 + label_smoothing, labels + 1

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
