"""BERT: published sizes, isolation of documents, the heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.models.bert import Bert, BertClassifier, bert_base, bert_large, bert_tiny
from jaxdl.models.lm_head import DeferredLogits
from jaxdl.models.stack import stack_layers

SMALL = dict(width=32, layers=2, heads=4, vocab=50, max_length=16, dropout=0.0)


def count(model) -> int:
    ids = jnp.zeros((1, 8), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), ids, train=False))
    return sum(x.size for x in jax.tree.leaves(shapes))


def make(model, time=10):
    ids = jax.random.randint(jax.random.key(0), (2, time), 0, 50)
    return ids, jax.jit(lambda: model.init(jax.random.key(1), ids, train=False))()


def formula(width, layers, vocab=30522, places=512):
    """Devlin et al. 2018 with pooler, masked-word head (tied) and next-sentence head."""
    embeddings = (vocab + places + 2) * width + 2 * width
    block = 12 * width * width + 13 * width
    pooler = width * width + width
    heads = width * width + width + 2 * width + vocab + 2 * width + 2
    return embeddings + layers * block + pooler + heads


def test_published_sizes():
    # Hugging Face's BertForPreTraining of bert-base-uncased and bert-large-uncased have these.
    assert count(bert_base()) == formula(768, 12) == 110_106_428
    assert count(bert_large()) == formula(1024, 24) == 336_226_108
    assert count(bert_large(scan_layers=True)) == 336_226_108
    assert count(bert_tiny()) == formula(128, 2)


def test_published_body():
    """The body alone, with its pooler, is the 109.5 million that is quoted for BERT-base."""
    ids = jnp.zeros((1, 8), jnp.int32)
    shapes = jax.eval_shape(lambda: bert_base().init(jax.random.key(0), ids, train=False))
    body = sum(x.size for x in jax.tree.leaves(shapes['params']['bert']))
    assert body == 109_482_240


def test_sees_both_ways_but_only_its_document():
    model = Bert(**SMALL)
    ids, variables = make(model)
    segments = jnp.array([[1] * 4 + [2] * 4 + [0] * 2, [1] * 10])
    run = jax.jit(lambda ids, segments: model.apply(variables, ids, segments, train=False).logits())
    before = run(ids, segments)
    after = run(ids.at[0, 5].add(1) % 50, segments)
    np.testing.assert_array_equal(before[0, :4], after[0, :4])
    assert np.abs(before[0, 4] - after[0, 4]).max() > 1e-4
    alone = model.apply(variables, ids[:1, 4:8], train=False).logits()
    np.testing.assert_allclose(before[:1, 4:8], alone, atol=1e-5)


def test_heads():
    model = Bert(**SMALL)
    ids, variables = make(model)
    out = model.apply(variables, ids, token_types=jnp.ones_like(ids), train=False)
    assert isinstance(out, DeferredLogits) and out.next_sentence.shape == (2, 2)
    logits = out.logits()
    labels = (ids * 7) % 50
    loss, best = out.cross_entropy(labels)
    logp = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(
        loss, -jnp.take_along_axis(logp, labels[..., None], -1)[..., 0], atol=1e-5
    )
    np.testing.assert_array_equal(best, logits.argmax(-1))
    # The places asked for are chosen by cutting `hidden`, before the costly product.
    some = out.replace(hidden=out.hidden[:, :3])
    np.testing.assert_allclose(some.logits(), logits[:, :3], atol=1e-6)
    types = model.apply(variables, ids, train=False).logits()
    assert np.abs(types - logits).max() > 1e-4


def test_padded_vocabulary():
    model = Bert(**SMALL, vocab_multiple=64)
    ids, variables = make(model)
    out = model.apply(variables, ids, train=False)
    assert out.logits().shape == (2, 10, 50)
    loss, best = out.cross_entropy(ids)
    logp = jax.nn.log_softmax(out.logits())
    want = -jnp.take_along_axis(logp, ids[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, want, atol=1e-5)
    assert best.max() < 50


@pytest.mark.parametrize('remat', ['none', 'dots'])
def test_scanned_equals_plain(remat):
    model = Bert(**SMALL)
    ids, variables = make(model)
    other = model.clone(scan_layers=True, remat=remat)
    params = stack_layers(variables['params'])
    got = other.apply({'params': params}, ids, train=False).logits()
    np.testing.assert_allclose(got, model.apply(variables, ids, train=False).logits(), atol=1e-5)


def test_classifier_shares_the_body():
    model = BertClassifier(**SMALL, num_classes=3)
    model.check()
    ids, variables = make(model)
    assert set(variables['params']) == {'bert', 'head'}
    _, pretrained = make(Bert(**SMALL))
    assert jax.tree.structure(pretrained['params']['bert']) == jax.tree.structure(
        variables['params']['bert']
    )
    segments = jnp.array([[1] * 6 + [0] * 4, [1] * 10])
    logits = model.apply(variables, ids, segments, train=False)
    assert logits.shape == (2, 3)
    alone = model.apply(variables, ids[:1, :6], train=False)
    np.testing.assert_allclose(logits[:1], alone, atol=1e-5)


def test_dropout_needs_training():
    model = Bert(**{**SMALL, 'dropout': 0.5})
    ids, variables = make(model)
    calm = model.apply(variables, ids, train=False).logits()
    one = model.apply(variables, ids, train=True, rngs={'dropout': jax.random.key(0)}).logits()
    assert np.abs(one - calm).max() > 1e-2


def test_wrong_fields():
    for change in (dict(positions='rotary'), dict(norm='rms'), dict(token_types=0)):
        with pytest.raises(ValueError, match=next(iter(change))):
            Bert(**{**SMALL, **change}).check()
    with pytest.raises(ValueError, match='max_length=16'):
        Bert(**SMALL).init(jax.random.key(0), jnp.zeros((1, 17), jnp.int32), train=False)
