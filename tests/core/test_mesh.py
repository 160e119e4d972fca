"""The mesh from a config, the rules that place a state on it, and what their errors say."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxdl.core import mesh as mesh_lib
from jaxdl.core import sharding
from jaxdl.core.config import Mesh
from jaxdl.core.optim import path_name
from jaxdl.errors import UserError
from jaxdl.models.bert import Bert
from jaxdl.models.stack import Transformer
from tests import layouts


def mesh(**sizes):
    return mesh_lib.make_mesh(Mesh(**{'data': 1, **sizes}), jax.devices()[:8])


@pytest.mark.parametrize(
    ('sizes', 'found'),
    [
        (dict(data=8), {'data': 8}),
        (dict(data=2, fsdp=4), {'data': 2, 'fsdp': 4}),
        (dict(data=-1, tensor=2), {'data': 4, 'tensor': 2}),
        (dict(data=2, fsdp=-1, tensor=2), {'data': 2, 'fsdp': 2, 'tensor': 2}),
        (dict(data=1, pipe=-1), {'pipe': 8}),
        (dict(data=-1, tensor=8), {'tensor': 8}),
    ],
)
def test_sizes_fill_the_devices(sizes, found):
    shape = mesh(**sizes).shape
    assert {axis: size for axis, size in shape.items() if size > 1} == found


@pytest.mark.parametrize(
    ('sizes', 'said'),
    [
        (dict(data=3), r'data=3 does not fit 8 device.*must multiply to 8 .*1, 2, 4, 8'),
        (dict(data=-1, tensor=3), r'tensor=3 does not fit 8 .*divisor of 8'),
        (dict(data=2, fsdp=2), r'data=2, fsdp=2 does not fit 8 .*or set one axis to -1'),
    ],
)
def test_a_mesh_that_does_not_fit_says_which_do(sizes, said):
    with pytest.raises(UserError, match=said):
        mesh(**sizes)


def test_two_open_axes_or_none_left_are_refused():
    with pytest.raises(ValueError, match='only one axis can be -1'):
        Mesh(data=-1, fsdp=-1).check()
    with pytest.raises(ValueError, match=r'tensor=0: must be at least 1, or -1'):
        Mesh(tensor=0).check()
    with pytest.raises(ValueError, match=r"context_by='rings'.*did you mean 'ring'"):
        Mesh(context_by='rings').check()


def _axes(entry):
    """An entry of a PartitionSpec as a tuple of axes; jax writes a single one without."""
    return (entry,) if isinstance(entry, str) else tuple(entry) if entry else None


def specs(tree, shardings):
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {
        path_name(path): tuple(_axes(entry) for entry in s.spec)
        for (path, _), s in zip(named, jax.tree.leaves(shardings), strict=True)
    }


def test_rules_are_tried_in_order_and_fit_stacks_of_layers():
    shapes = {
        'opt': {'mu': {'kernel': jnp.zeros((4, 6, 8))}, 'count': jnp.zeros(())},
        'kernel': jnp.zeros((6, 8)),
        'odd': jnp.zeros((6, 7)),
        'bias': jnp.zeros(8),
    }
    rules = (('bias', (None,)), ('.*', ('fsdp', 'tensor')))
    found = specs(shapes, sharding.state_shardings(shapes, rules, mesh(fsdp=2, tensor=4)))
    assert found['opt/mu/kernel'] == (None, ('fsdp',), ('tensor',))
    assert found['kernel'] == (('fsdp',), ('tensor',))
    assert found['odd'] == (('fsdp',), None), 'an axis that does not divide is left out'
    assert found['bias'] == (None,) and found['opt/count'] == ()
    with pytest.raises(UserError, match="'tensr' is no mesh axis; the axes are data, fsdp"):
        sharding.state_shardings(shapes, (('.*', ('tensr',)),), mesh(data=8))


def test_zero_splits_the_largest_dimension_that_is_left():
    shapes = [jnp.zeros((64, 32)), jnp.zeros((30, 64)), jnp.zeros((8,)), jnp.zeros((31, 63))]
    rules = (('0', ('fsdp', None)),)
    here = mesh(data=4, fsdp=2)
    placed = sharding.state_shardings(shapes, rules, here)
    placed = sharding.split_further(shapes, placed, 'data', here)
    found = [place.shard_shape(leaf.shape) for leaf, place in zip(shapes, placed, strict=True)]
    # The second has its 64 split by fsdp, and no other that 4 divides; the others nothing that fits.
    assert found == [(32, 8), (30, 32), (8,), (31, 63)]


FAMILIES = ('decoder', 'encoder_decoder', 'lstm', 'cnn')


@pytest.mark.parametrize('family', FAMILIES)
def test_the_tensor_axis_alone_splits_every_model(family):
    """Without a rule in the config: weights and their moments are on one device each only in part."""
    run = layouts.config(family, mesh=Mesh(data=4, tensor=2))
    if family == 'lstm':  # of which only table and head are split: the vocabulary has to divide
        run.model = run.model.clone(vocab_multiple=8)
    made, _ = layouts.built(run)
    whole = sum(leaf.size for leaf in jax.tree.leaves(made.abstract.params))
    moments = made.abstract.opt_state
    for tree, total in ((made.abstract.params, whole), (moments, 2 * whole)):
        here = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))
        assert here < 0.95 * total if family == 'lstm' else here < 0.8 * total


@pytest.mark.parametrize('axis', ['pipe', 'context', 'tensor'])
def test_an_axis_that_a_model_cannot_use_is_refused(axis):
    able = {'pipe': (), 'context': (), 'tensor': ('cnn', 'lstm')}[axis]
    for family in ('cnn', 'lstm'):
        run = layouts.config(family, mesh=Mesh(data=4, **{axis: 2}))
        if family in able:
            layouts.built(run)
            continue
        with pytest.raises(UserError, match=rf'mesh\.{axis}=2: \w+ cannot be split over .{axis}'):
            layouts.built(run)
        # Whoever writes a rule for the axis knows what he does.
        layouts.built(dataclasses.replace(run, rules=(('kernel$', (None, axis)),)))


@pytest.mark.parametrize(
    ('changes', 'sizes', 'said'),
    [
        (dict(layers=3), dict(pipe=2), 'layers=3: must be a multiple of mesh.pipe=2'),
        (
            dict(scan_layers=False),
            dict(pipe=2),
            'scan_layers=False: a pipeline .* scan_layers=True',
        ),
        (dict(heads=2), dict(tensor=4), 'heads=2: must be a multiple of mesh.tensor=4'),
    ],
)
def test_a_model_that_does_not_divide_says_what_would(changes, sizes, said):
    run = layouts.config('decoder', mesh=Mesh(data=1, **sizes))
    run.model = run.model.clone(**changes)
    with pytest.raises(UserError, match=said):
        layouts.built(run)


def test_a_length_that_does_not_divide_is_an_error_and_no_crash():
    run = layouts.config('decoder', mesh=Mesh(data=4, context=2), data=layouts.Tokens(length=15))
    made, feed = layouts.built(run)
    with pytest.raises(UserError, match='15 tokens do not split over mesh'):
        made.compile_train(feed.abstract(mask=False), feed.resident)


def test_batches_that_do_not_divide_name_those_that_do():
    with pytest.raises(UserError, match=r'batch_size=12 does not split over 8 .*multiple of 8'):
        mesh_lib.check_batch('batch_size', 12, 1, mesh(data=2, fsdp=2, pipe=2))
    with pytest.raises(UserError, match=r'times accumulate=4.*multiple of 16, for example 16'):
        mesh_lib.check_batch('batch_size', 8, 4, mesh(data=4, tensor=2))


def test_every_large_parameter_of_a_transformer_has_a_rule_of_its_own():
    """What only the default of fsdp would split is small: nothing large is whole under tensor."""
    model = Bert(width=64, layers=2, heads=4, vocab=512, scan_layers=True)
    tokens = jnp.zeros((1, 8), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, train=False))['params']
    patterns = [re.compile(pattern) for pattern, _ in Transformer.sharding]
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = path_name(path)
        if leaf.size > 64 * 64 and not name.endswith('places/embedding'):
            assert any(pattern.search('/' + name) for pattern in patterns), name


def test_an_axis_of_size_one_is_not_mentioned():
    placed = sharding.state_shardings(
        [jnp.zeros((8, 8))], (('0', ('fsdp', 'tensor')),), mesh(data=8)
    )
    assert placed[0].spec == PartitionSpec(None, None)
