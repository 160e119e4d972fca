"""Every family learns one batch by heart: model, task, loss and gradient belong together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl.models.airbench import Airbench
from jaxdl.models.bert import Bert, BertClassifier
from jaxdl.models.cnn import Cnn
from jaxdl.models.resnet import ResNet
from jaxdl.models.rnn import RnnClassifier, RnnLM
from jaxdl.models.seq2seq import Seq2Seq
from jaxdl.models.transformer import TransformerLM, modern
from jaxdl.models.vit import ViT
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.language_model import LanguageModel
from jaxdl.tasks.masked_lm import MaskedLM
from jaxdl.tasks.sequence_classification import SequenceClassification
from jaxdl.tasks.translation import Translation

ROWS, TIME, VOCAB = 8, 12, 40
rng = np.random.default_rng(0)
TOKENS = jnp.asarray(rng.integers(4, VOCAB, (ROWS, TIME + 1)), jnp.int32)
ONES = jnp.ones((ROWS, TIME), jnp.int32)
PLACES = jnp.broadcast_to(jnp.arange(TIME), (ROWS, TIME))
LABEL = jnp.arange(ROWS, dtype=jnp.int32) % 2

IMAGES = {
    'image': jnp.asarray(rng.integers(0, 256, (ROWS, 12, 12, 3)), jnp.uint8),
    'label': jnp.arange(ROWS, dtype=jnp.int32),
}
TEXT = {
    'tokens': TOKENS[:, :-1],
    'targets': TOKENS[:, 1:],
    'segments': ONES,
    'positions': PLACES,
    'target_mask': ONES.astype(bool),
}
MASKED = {
    'tokens': TOKENS[:, :-1],
    'segments': ONES,
    'positions': PLACES,
    'maskable': ONES.astype(bool),
    'row': jnp.arange(ROWS, dtype=jnp.int32),
}
PAIRS = {
    'source': TOKENS[:, :-1],
    'target': TOKENS[:, :-1],
    'targets': TOKENS[:, ::-1][:, 1:],
    **{f'{side}_segments': ONES for side in ('source', 'target')},
    **{f'{side}_positions': PLACES for side in ('source', 'target')},
}
LABELLED = {
    'tokens': TOKENS[:, :-1],
    'lengths': jnp.full((ROWS,), TIME, jnp.int32),
    'label': LABEL,
}
SMALL = dict(width=32, layers=1, heads=2, vocab=VOCAB)

CASES = {
    'cnn': (Cnn(channels=(8, 16), pools=2, dense=32), Classification(), IMAGES),
    'resnet': (ResNet(depth=8, width=8), Classification(), IMAGES),
    'airbench': (Airbench(widths=(8, 16, 16), logit_scale=1.0), Classification(), IMAGES),
    'vit': (ViT(num_classes=10, patch=4, width=32, layers=2, heads=2), Classification(), IMAGES),
    'lstm': (RnnLM(vocab=VOCAB, width=32, layers=1), LanguageModel(), TEXT),
    'gru': (RnnLM(vocab=VOCAB, width=32, layers=1, cell='gru'), LanguageModel(), TEXT),
    'decoder': (TransformerLM(**SMALL), LanguageModel(), TEXT),
    'modern decoder': (modern(**SMALL), LanguageModel(), TEXT),
    'bert': (
        Bert(**SMALL, dropout=0.0, init_std=0.1),
        MaskedLM(vocab_size=VOCAB, mask_token=3),
        MASKED,
    ),
    'translation': (Seq2Seq(**SMALL, dropout=0.0), Translation(label_smoothing=0.0), PAIRS),
    'recurrent classifier': (
        RnnClassifier(vocab=VOCAB, embed_width=16, width=16),
        SequenceClassification(),
        LABELLED,
    ),
    'bert classifier': (BertClassifier(**SMALL, dropout=0.0), SequenceClassification(), LABELLED),
}


SLOW = ('resnet',)


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
def test_learns_one_batch_by_heart(name):
    model, task, batch = CASES[name]
    batch = task.augment(batch, jax.random.key(3))
    inputs = task.inputs(batch)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def start():
        variables = model.init(
            {'params': jax.random.key(0), 'dropout': jax.random.key(1)}, **inputs, train=False
        )
        state = {k: v for k, v in variables.items() if k != 'params'}
        return variables['params'], state, optimizer.init(variables['params'])

    @jax.jit
    def step(params, state, opt_state):
        def loss(params):
            outputs, new = model.apply(
                {'params': params, **state}, **inputs, train=True, mutable=list(state)
            )
            found = task.metrics(outputs, batch)['loss']
            return found.value(), new

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), state, opt_state, value

    params, state, opt_state = start()
    values = []
    for _ in range(120):
        params, state, opt_state, value = step(params, state, opt_state)
        values.append(float(value))
    assert values[0] > 0.5 and values[-1] < 0.1, values[::20]
