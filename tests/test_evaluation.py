"""Evaluation counts each example once, whatever the devices and the batch size."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdl import parallel
from jaxdl.data.synthetic import SyntheticImages
from jaxdl.evaluation import Evaluator
from jaxdl.program import Program
from jaxdl.tasks.classification import Classification
from tests import small

EXAMPLES = 10_003  # not a multiple of anything
DATA = SyntheticImages(num_examples=64, num_eval_examples=EXAMPLES, shape=(8, 8, 1), noise=0.5)


@pytest.fixture(scope='module')
def run():
    return small.config(data=DATA, task=Classification(), ema=0.0, batch_size=24)


@pytest.fixture(scope='module')
def expected(run):
    """The metrics by the model's own logits, all examples at once, and numpy."""
    made, feed, order = small.program(run)
    state = jax.device_get(made.init(feed.source.fetch(order.batch(0))))
    rows = run.data.eval_sources()['test'].fetch(np.arange(EXAMPLES))
    logits = np.asarray(
        run.model.apply(
            {'params': state.params, **state.model_state},
            **run.task.inputs(jax.device_put(rows)),
            train=False,
        ),
        np.float64,
    )
    shifted = logits - logits.max(-1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(EXAMPLES), rows['label']]
    confusion = np.zeros((10, 10))
    np.add.at(confusion, (rows['label'], logits.argmax(-1)), 1)
    return state, {
        'eval/test/examples': EXAMPLES,
        'eval/test/accuracy': (logits.argmax(-1) == rows['label']).mean(),
        'eval/test/loss': losses.mean(),
        'eval/test/confusion': confusion / EXAMPLES,
    }


@pytest.mark.parametrize('devices', [1, 3, 8])
@pytest.mark.parametrize('batch_size', [240, 1008])
def test_every_example_counts_once(run, expected, devices, batch_size):
    state, wanted = expected
    mesh = parallel.make_mesh(run.mesh, jax.devices()[:devices])
    config = dataclasses.replace(run, eval_batch_size=batch_size)
    rows = {k: v[0] for k, v in DATA.train_source().fetch(np.zeros(1, np.int64)).items()}
    program = Program(config, mesh, rows)
    placed = jax.device_put(state, program.shardings)
    evaluator = Evaluator(program, DATA.eval_sources())
    found = evaluator.run(placed, program.place_hyper(), lambda: None)
    assert set(found) == set(wanted)
    assert found['eval/test/examples'] == EXAMPLES
    assert found['eval/test/accuracy'] == wanted['eval/test/accuracy']
    np.testing.assert_allclose(found['eval/test/loss'], wanted['eval/test/loss'], rtol=1e-5)
    np.testing.assert_allclose(found['eval/test/confusion'], wanted['eval/test/confusion'])
    assert evaluator.names() == sorted(n for n in wanted if n != 'eval/test/confusion')
