"""The loss of an evaluation is that of the true labels, for every task."""

import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl.tasks
from jaxdl.api import Task
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.language_model import LanguageModel
from jaxdl.tasks.masked_lm import MaskedLM
from jaxdl.tasks.sequence_classification import SequenceClassification
from jaxdl.tasks.translation import Translation

CLASSES = 7


def draw(rng, *shape, low=0, high=CLASSES):
    return rng.integers(low, high, shape).astype(np.int32)


def cases():
    """(task, batch, logits, labels, weights): the loss is the mean of the labels' under weights."""
    rng = np.random.default_rng(0)
    mask = np.asarray([1, 1, 0, 1], np.float32)
    rows = {'label': draw(rng, 4), 'mask': mask}
    logits = rng.normal(size=(4, CLASSES)) * 3
    yield Classification(CLASSES, label_smoothing=0.3), rows, logits, rows['label'], mask
    yield SequenceClassification(label_smoothing=0.3), rows, logits, rows['label'], mask

    logits, labels = rng.normal(size=(4, 5, CLASSES)) * 3, draw(rng, 4, 5)
    counted = draw(rng, 4, 5, high=2)
    weights = counted * mask[:, None]
    text = {'targets': labels, 'target_mask': counted > 0, 'mask': mask}
    yield LanguageModel(), text, logits, labels, weights
    pairs = {'targets': labels, 'target_segments': counted, 'mask': mask}
    yield Translation(label_smoothing=0.3), pairs, logits, labels, weights
    masked = {
        'tokens': draw(rng, 4, 5), 'maskable': np.ones((4, 5), bool), 'row': np.arange(4),
        'places': np.tile(np.arange(5), (4, 1)), 'labels': labels, 'place_mask': counted > 0,
        'mask': mask,
    }  # fmt: skip
    yield MaskedLM(vocab_size=CLASSES, mask_token=0), masked, logits, labels, weights


CASES = list(cases())


@pytest.mark.parametrize('case', CASES, ids=lambda case: type(case[0]).__name__)
def test_evaluation_losses_are_of_the_true_labels(case):
    task, batch, logits, labels, weights = case
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    nats = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    expected = (nats * weights).sum() / weights.sum()
    logits, batch = jnp.asarray(logits, jnp.float32), jax.tree.map(jnp.asarray, batch)
    found = task.eval_metrics(logits, batch)['loss'].value()
    assert found == pytest.approx(expected, rel=1e-5)
    trained = task.metrics(logits, batch)['loss'].value()
    smooth = 0.7 * nats - 0.3 * log_p.mean(-1)
    smooth = (smooth * weights).sum() / weights.sum()
    wanted = smooth if getattr(task, 'label_smoothing', 0) else expected
    assert trained == pytest.approx(wanted, rel=1e-5)


def test_every_task_that_smooths_labels_is_among_them():
    """Or is a kind of one that is."""
    for module in pkgutil.iter_modules(jaxdl.tasks.__path__):
        importlib.import_module(f'jaxdl.tasks.{module.name}')
    found, rest = set(), [Task]
    while rest:
        below = rest.pop().__subclasses__()
        rest += below
        found |= {c for c in below if c.__module__.startswith('jaxdl.tasks.')}
    known = tuple({type(task) for task, *_ in CASES})
    smooth = {c for c in found if hasattr(c, 'label_smoothing')}
    missing = {c.__name__ for c in smooth if not issubclass(c, known)}
    assert len(smooth) >= 3 and missing <= {'_Labelled', 'FeatureClassification'}, missing


def test_top_five_and_confusion_count_real_rows_only():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(60, 25)), draw(rng, 60, high=25)
    mask = draw(rng, 60, high=2)
    batch = {'label': jnp.asarray(labels), 'mask': jnp.asarray(mask, jnp.float32)}
    found = Classification(25).eval_metrics(jnp.asarray(logits, jnp.float32), batch)
    inside = (np.argsort(-logits, 1)[:, :5] == labels[:, None]).any(1)
    assert found['top5_accuracy'].value() == pytest.approx(inside[mask > 0].mean())
    counts = np.zeros((25, 25))
    np.add.at(counts, (labels[mask > 0], logits.argmax(1)[mask > 0]), 1)
    np.testing.assert_array_equal(found['confusion'].total, counts)
