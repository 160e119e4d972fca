import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxdl.models.lm_head import DeferredLogits
from jaxdl.tasks.language_model import LanguageModel
from jaxdl.tasks.masked_lm import MaskedLM
from jaxdl.tasks.sequence_classification import SequenceClassification
from jaxdl.tasks.translation import Translation


def means(metrics):
    return {name: float(m.value()) for name, m in metrics.items()}


def lm_batch(rng, batch=4, time=9, vocab=13):
    return {
        'tokens': rng.integers(0, vocab, (batch, time)),
        'targets': rng.integers(0, vocab, (batch, time)),
        'target_mask': rng.random((batch, time)) < 0.6,
        'segments': np.ones((batch, time), np.int32),
        'positions': np.tile(np.arange(time), (batch, 1)),
        'bytes': rng.integers(1, 40, batch),
    }


def test_language_model_equals_torch_over_marked_tokens_of_real_rows():
    rng = np.random.default_rng(0)
    batch = lm_batch(rng) | {'mask': np.array([1.0, 1.0, 0.0, 1.0])}
    logits = rng.normal(size=(4, 9, 13)).astype(np.float32)
    logits[2] = np.nan  # a padding row may hold anything
    found = means(LanguageModel().metrics(jnp.asarray(logits), jax.tree.map(jnp.asarray, batch)))
    keep = batch['target_mask'] & (batch['mask'][:, None] > 0)
    losses = torch.nn.functional.cross_entropy(
        torch.tensor(logits[keep]), torch.tensor(batch['targets'][keep]), reduction='none'
    ).double()
    assert found['loss'] == pytest.approx(losses.mean().item(), rel=1e-5)
    hits = logits[keep].argmax(-1) == batch['targets'][keep]
    assert found['accuracy'] == pytest.approx(hits.mean())
    size = batch['bytes'][[0, 1, 3]].sum()
    assert found['bits_per_byte'] == pytest.approx(
        losses.sum().item() / size / math.log(2), rel=1e-5
    )
    assert LanguageModel().derived({'loss': found['loss']})['perplexity'] == pytest.approx(
        math.exp(found['loss'])
    )


def test_gradients_do_not_flow_through_bits_per_byte():
    batch = jax.tree.map(jnp.asarray, lm_batch(np.random.default_rng(1)))

    def bits(logits):
        return LanguageModel().metrics(logits, batch)['bits_per_byte'].total

    assert not np.any(jax.grad(bits)(jnp.ones((4, 9, 13))))


def masked_batch(batch=64, time=128, vocab=1000):
    rng = np.random.default_rng(0)
    maskable = np.ones((batch, time), bool)
    maskable[:, [0, time // 2, time // 2 + 1, -1]] = False
    maskable[5] = False
    maskable[6, 4:] = False
    return {
        'tokens': jnp.asarray(rng.integers(5, vocab, (batch, time)), jnp.int32),
        'segments': jnp.ones((batch, time), jnp.int32),
        'positions': jnp.ones((batch, time), jnp.int32),
        'maskable': jnp.asarray(maskable),
        'row': jnp.arange(batch, dtype=jnp.int32) + 7,
    }


TASK = MaskedLM(vocab_size=1000, mask_token=3)


def test_corruption_has_the_papers_statistics():
    batch = masked_batch()
    kinds, hidden, maskable = np.zeros(3), 0, 0
    corrupt = jax.jit(TASK.augment)
    for step in range(40):
        out = jax.tree.map(np.asarray, corrupt(batch, jax.random.key(step)))
        old = np.take_along_axis(np.asarray(batch['tokens']), out['places'], 1)
        new = np.take_along_axis(out['tokens'], out['places'], 1)
        active = out['place_mask']
        assert np.take_along_axis(np.asarray(batch['maskable']), out['places'], 1)[active].all()
        np.testing.assert_array_equal(out['labels'][active], old[active])
        changed = out['tokens'] != np.asarray(batch['tokens'])
        assert changed.sum() == (old != new)[active].sum()  # nothing else changed
        kinds += [
            (new == 3)[active].sum(),
            ((new != 3) & (new != old))[active].sum(),
            (new == old)[active].sum(),
        ]
        hidden += active.sum()
        maskable += np.asarray(batch['maskable']).sum()
    assert hidden / maskable == pytest.approx(0.15, abs=0.003)
    share = kinds / hidden
    spread = 4 * np.sqrt(0.25 / hidden)
    np.testing.assert_allclose(share, [0.8, 0.1, 0.1], atol=spread)


def test_every_place_is_hidden_about_equally_often():
    batch = masked_batch(batch=256)
    corrupt = jax.jit(TASK.augment)
    counts = np.zeros((256, 128))
    for step in range(30):
        out = jax.tree.map(np.asarray, corrupt(batch, jax.random.key(step)))
        rows = np.broadcast_to(np.arange(256)[:, None], out['places'].shape)
        np.add.at(counts, (rows[out['place_mask']], out['places'][out['place_mask']]), 1)
    by_place = counts[7:].mean(0)[np.asarray(batch['maskable'])[7]] / 30
    np.testing.assert_allclose(by_place, 0.15, atol=0.03)


def test_rows_with_few_or_no_maskable_tokens():
    out = TASK.augment(masked_batch(), jax.random.key(0))
    counts = out['place_mask'].sum(1)
    assert counts[5] == 0 and counts[6] in (0, 1) and counts[0] in (18, 19)
    full = MaskedLM(rate=1.0).augment(masked_batch(), jax.random.key(0))
    np.testing.assert_array_equal(full['place_mask'].sum(1), masked_batch()['maskable'].sum(1))


def test_what_is_hidden_depends_on_the_row_and_the_step_alone():
    batch = masked_batch()
    whole = TASK.augment(batch, jax.random.key(3))
    part = TASK.augment(jax.tree.map(lambda x: x[10:20], batch), jax.random.key(3))
    np.testing.assert_array_equal(whole['tokens'][10:20], part['tokens'])
    other = TASK.augment(batch, jax.random.key(4))
    assert (whole['tokens'] != other['tokens']).any()


def test_evaluation_hides_the_same_tokens_in_inputs_and_metrics():
    batch = masked_batch(batch=8, time=32)
    inputs = TASK.inputs(batch)
    np.testing.assert_array_equal(inputs['tokens'], TASK.inputs(batch)['tokens'])
    logits = jax.nn.one_hot(batch['tokens'], 1000) * 50
    found = means(TASK.metrics(logits, batch))
    assert found['masked_accuracy'] == 1 and found['loss'] < 1e-3
    assert 'masked_perplexity' in TASK.derived(found)


def test_deferred_logits_give_the_same_metrics_and_gradients():
    batch = masked_batch(batch=8, time=32)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(8, 32, 16)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(16, 1000)), jnp.float32)

    def plain(kernel):
        return TASK.metrics(hidden @ kernel, batch)['loss'].total

    def deferred(kernel):
        return TASK.metrics(DeferredLogits(hidden, kernel, vocab=1000, chunks=2), batch)[
            'loss'
        ].total

    np.testing.assert_allclose(plain(kernel), deferred(kernel), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(plain)(kernel), jax.grad(deferred)(kernel), atol=1e-3)


@pytest.mark.slow
def test_next_sentence_loss_is_the_sum_of_both_means_and_merges():
    task = MaskedLM(vocab_size=1000, mask_token=3, rate=0.25)
    batch = masked_batch(batch=8, time=32) | {
        'token_types': jnp.zeros((8, 32), jnp.int32),
        'next_sentence': jnp.asarray([0, 1] * 4),
    }
    rng = np.random.default_rng(0)
    second = jnp.asarray(rng.normal(size=(8, 2)), jnp.float32)
    logits = jnp.asarray(rng.normal(size=(8, 32, 1000)), jnp.float32)
    batch['maskable'] = jnp.ones((8, 32), bool)  # 8 hidden in each row
    whole = task.metrics((logits, second), batch)
    found = means(whole)
    assert found['loss'] == pytest.approx(
        found['masked_loss'] + found['next_sentence_loss'], rel=1e-5
    )
    reference = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(second)), torch.tensor(np.asarray(batch['next_sentence'])).long()
    )
    assert found['next_sentence_loss'] == pytest.approx(reference.item(), rel=1e-5)
    halves = [
        task.metrics((logits[s], second[s]), jax.tree.map(lambda x, s=s: x[s], batch))
        for s in (slice(0, 3), slice(3, 8))
    ]
    for name, mean in whole.items():
        np.testing.assert_allclose(
            halves[0][name].merge(halves[1][name]).value(), mean.value(), rtol=1e-5
        )
    with pytest.raises(ValueError, match='next_sentence'):
        task.metrics(logits, batch)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_translation_smooths_in_training_only(smoothing):
    rng = np.random.default_rng(0)
    batch = {
        'source': rng.integers(0, 11, (3, 6)),
        'target': rng.integers(0, 11, (3, 7)),
        'targets': rng.integers(0, 11, (3, 7)),
        'target_segments': rng.integers(0, 2, (3, 7)),
        'bytes': rng.integers(1, 30, 3),
    }
    batch = jax.tree.map(jnp.asarray, batch)
    logits = jnp.asarray(rng.normal(size=(3, 7, 11)), jnp.float32)
    task = Translation(label_smoothing=smoothing)
    keep = np.asarray(batch['target_segments']) > 0

    def reference(eps):
        return torch.nn.functional.cross_entropy(
            torch.tensor(np.asarray(logits)[keep]),
            torch.tensor(np.asarray(batch['targets'])[keep]).long(),
            label_smoothing=eps,
        ).item()

    train = means(task.metrics(logits, batch))
    assert train['loss'] == pytest.approx(reference(smoothing), rel=1e-5)
    assert ('perplexity' in task.derived(train)) == (smoothing == 0)
    evaluated = means(task.eval_metrics(logits, batch))
    assert evaluated['loss'] == pytest.approx(reference(0.0), rel=1e-5)
    assert task.derived(evaluated)['perplexity'] == pytest.approx(
        math.exp(reference(0.0)), rel=1e-5
    )


def test_sequence_classification_hides_what_lies_past_the_length():
    task = SequenceClassification()
    batch = {
        'tokens': jnp.ones((3, 5), jnp.int32),
        'lengths': jnp.asarray([5, 2, 3]),
        'label': jnp.asarray([0, 1, 1]),
        'mask': jnp.asarray([1.0, 1.0, 0.0]),
    }
    assert task.inputs(batch)['segments'].tolist() == [[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    logits = jnp.asarray([[2.0, 0.0], [3.0, 0.0], [jnp.nan, 0.0]])
    found = means(task.metrics(logits, batch))
    assert found['accuracy'] == 0.5
    assert found['loss'] == pytest.approx(
        (math.log1p(math.exp(-2)) + 3 + math.log1p(math.exp(-3))) / 2, rel=1e-5
    )


@pytest.mark.parametrize(
    'task',
    [
        MaskedLM(rate=0.0),
        MaskedLM(masked=0.8, random=0.3),
        MaskedLM(vocab_size=10, mask_token=10),
        Translation(label_smoothing=1.0),
        SequenceClassification(label_smoothing=-0.1),
    ],
)
def test_wrong_settings_are_refused(task):
    with pytest.raises(ValueError, match='must be'):
        task.check()


def test_perplexity_of_a_huge_loss_is_infinite():
    assert LanguageModel().derived({'loss': 1e9})['perplexity'] == math.inf
