"""Evaluation counts each example once, whatever the devices and the batch size."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Mesh
from jaxdl.core.evaluation import Evaluator, readable_variables
from jaxdl.core.program import Program
from jaxdl.data.synthetic import SyntheticImages
from jaxdl.data.text.documents import Documents
from jaxdl.data.text.tokenizers import Bytes
from jaxdl.models.decode import Sampling
from jaxdl.tasks.classification import Classification
from tests import layouts, small

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
    mesh = mesh_lib.make_mesh(run.mesh, jax.devices()[:devices])
    config = dataclasses.replace(run, eval_batch_size=batch_size)
    rows = {k: v[0] for k, v in DATA.train_source().fetch(np.zeros(1, np.int64)).items()}
    program = Program(config, mesh, rows)
    placed = jax.device_put(state, program.shardings)
    evaluator = Evaluator(program, DATA.eval_sources())
    (found,) = evaluator.run(placed, program.place_hyper(), lambda: None)
    assert set(found) == set(wanted)
    assert found['eval/test/examples'] == EXAMPLES
    assert found['eval/test/accuracy'] == wanted['eval/test/accuracy']
    np.testing.assert_allclose(found['eval/test/loss'], wanted['eval/test/loss'], rtol=1e-5)
    np.testing.assert_allclose(found['eval/test/confusion'], wanted['eval/test/confusion'])
    assert evaluator.names() == sorted(n for n in wanted if n != 'eval/test/confusion')


@functools.cache
def measured(layout: str):
    """The metrics of a decoder in a layout, and what it writes; all begin with the same weights."""
    run = layouts.config('decoder', eval_batch_size=32, **layouts.LAYOUTS.get(layout, {}))
    run.model = run.model.clone(vocab=260)
    run.mesh = Mesh(data=1) if layout == 'whole' else run.mesh
    made, _ = layouts.built(run)
    state = mesh_lib.put(layouts.initial(run), made.shardings)
    evaluator = Evaluator(made, {'test': run.data.train_source()})
    (found,) = evaluator.run(state, made.place_hyper(), lambda: None)
    greedy = Sampling(temperature=0.0)
    data = Documents(tokenizer=Bytes())
    variables = readable_variables(state)
    texts = run.task.continue_text(run.model, variables, data, 'ab', length=8, sampling=greedy)
    return found, texts


@pytest.mark.slow
@pytest.mark.parametrize(
    'layout', ['all', 'fsdp_tensor', 'data_fsdp_pipe', 'ring', 'heads', 'sequence']
)
def test_a_split_model_is_evaluated_and_writes_as_a_whole_one(layout):
    (found, texts), (expected, whole) = measured(layout), measured('whole')
    assert texts == whole
    assert found.keys() == expected.keys() and found['eval/test/examples'] == 64
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
