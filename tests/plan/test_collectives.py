"""The compiled programs are inspected: which collectives, how many bytes, against the least possible.

XLA's CPU compiler writes a reduce-scatter that it finds itself as an all-reduce; so the sums over
gradients count as one kind here. Bytes are of the whole buffer on one device (see
`kernels.Collective`). What is below `CRUMBS` a step in all are norms, means and counts.
"""

import collections
import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from jaxdl.compiled import kernels
from tests import layouts
from tests.layouts import LAYOUTS

CRUMBS = 6 * 1024
SMALL = 256
SLACK = 1300  # of norms and counts that are summed together with what is asserted
ROWS, TIME, WIDTH, LAYERS, KV = 16, 16, 16, 2, 8  # of the decoder in tests/layouts.py
ACTIVATION = ROWS * TIME * WIDTH * 4
PADDED = 40  # the vocabulary, where it is padded to divide


@functools.cache
def compile_(layout: str, family: str = 'decoder', vocab_multiple: int = 1):
    run = dataclasses.replace(layouts.config(family), **LAYOUTS[layout])
    if vocab_multiple > 1:
        run.model = run.model.clone(vocab_multiple=vocab_multiple)
    made, feed = layouts.built(run)
    executable, _ = made.compile_train(feed.abstract(mask=False), feed.resident)
    return made, executable.as_text()


def program(layout: str, *args, **kwargs):
    """(the program, what its devices do)."""
    made, text = compile_(layout, *args, **kwargs)
    read = kernels.read(text, devices=made.mesh.size)
    assert read.notes == ()
    return made, read


def traffic(read) -> dict[str, int]:
    """{kind: bytes of a step}, without what a group of one device 'exchanges' and without crumbs."""
    found, crumbs = collections.Counter(), 0
    for collective, times in read.collectives():
        if collective.size == 1:
            continue
        if collective.bytes <= SMALL:
            crumbs += collective.bytes * times
        else:
            found[collective.kind] += collective.bytes * times
    assert crumbs <= CRUMBS, f'{crumbs} bytes of small exchanges'
    return dict(found)


def size(tree, where=lambda leaf: True) -> int:
    """Bytes on one device of the leaves for which `where` holds."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * 4
        for leaf in jax.tree.leaves(tree)
        if where(leaf)
    )


def splits(axis: str):
    return lambda leaf: any(axis in (entry or ()) for entry in leaf.sharding.spec)


def table(made) -> int:
    """Bytes of the token table: its two uses, look-up and head, are summed one by one here."""
    return size(made.abstract.params['embed'])


def between(value: int, least: int, most: int) -> None:
    assert least - SLACK <= value <= most + SLACK, (least, value, most)


def test_data_parallel_sums_the_gradient_once():
    made, read = program('data')
    found = traffic(read)
    assert set(found) == {'all-reduce'}
    gradient = size(made.abstract.params)
    between(found['all-reduce'], gradient, gradient + table(made))


@pytest.mark.parametrize('layout', ['fsdp', 'data_fsdp'])
def test_fsdp_gathers_twice_and_sums_once(layout):
    made, read = program(layout)
    found = traffic(read)
    ways = made.mesh.shape['fsdp']
    split = size(made.abstract.params, splits('fsdp')) * ways
    whole = split + size(made.abstract.params, lambda leaf: not splits('fsdp')(leaf))
    assert set(found) == {'all-gather', 'all-reduce'}
    # The table is gathered once for both its uses; everything else forward and backward.
    between(found['all-gather'], 2 * split - 2 * table(made) * ways, 2 * split)
    sums = {'fsdp': whole + table(made) * ways}
    # With replicas besides, each sum is one over the shards and one of the shard over replicas.
    sums['data_fsdp'] = sums['fsdp'] * (1 + 1 / ways)
    between(found['all-reduce'], whole, int(sums[layout]))


@pytest.mark.slow
def test_zero_adds_one_gathering_of_the_parameters():
    made, read = program('zero')
    found = traffic(read)
    assert set(found) == {'all-reduce', 'all-gather'}
    gradient = size(made.abstract.params)
    between(found['all-reduce'], gradient, gradient + table(made))
    assert found['all-gather'] <= gradient
    whole = program('data')[0].abstract.opt_state
    assert size(made.abstract.opt_state) < size(whole) / 2, 'small arrays stay whole'


def test_tensor_parallel_sums_twice_a_block_each_way():
    made, read = program('data_tensor', vocab_multiple=8)
    found = traffic(read)
    here = ACTIVATION // 4
    # Look-up in a split table, and the head's gradient of its input: one each.
    assert set(found) == {'all-reduce'}
    activations = (4 * LAYERS + 2) * here
    gradient = size(made.abstract.params)
    between(found['all-reduce'], activations + gradient, activations + gradient + table(made))
    sums = [c for c, times in read.collectives() for _ in range(times) if c.bytes == here]
    assert len(sums) == 4 * LAYERS + 1, 'the head is computed in two parts of half the size'


def test_a_vocabulary_that_does_not_divide_is_padded_not_gathered():
    _, read = program('data_tensor')
    found = traffic(read)
    between(found.get('all-gather', 0), 0, PADDED * WIDTH * 4)
    assert set(found) <= {'all-reduce', 'all-gather'}
    # The head's products have half of the 37 columns on each device, padded to 19.
    assert re.search(r'f32\[[\d,]*\b19\][^=]*\bdot\(', compile_('data_tensor')[1])


def test_sequence_parallel_gathers_and_scatters_instead_of_summing():
    made, read = program('sequence')
    found = traffic(read)
    here = ACTIVATION // 2
    assert set(found) == {'all-reduce', 'all-gather', 'reduce-scatter'}
    assert found['reduce-scatter'] == 4 * LAYERS * here
    # One gathering more before the head, and of the table's padded gradient.
    between(
        found['all-gather'], (4 * LAYERS + 1) * here, (4 * LAYERS + 1) * here + PADDED * WIDTH * 4
    )
    gradient = size(made.abstract.params) + 2 * table(made)
    between(found['all-reduce'], gradient - 2 * table(made), gradient + here + table(made))


def test_a_pipeline_hands_on_micro_batches_and_sums_gradients_once():
    made, read = program('data_fsdp_pipe')
    found = traffic(read)
    stages, parts, replicas = 2, 2, 4
    one = ACTIVATION // replicas // parts
    turns = parts + stages - 1
    share = ACTIVATION // replicas // stages
    assert set(found) == {'all-reduce', 'all-gather', 'collective-permute'}
    handed_on = 2 * turns * one
    shared_out = 2 * 2 * (stages - 1) * share  # in at the first stage, out at the last, both ways
    assert found['collective-permute'] == handed_on + shared_out
    split = size(made.abstract.params, splits('fsdp')) * 2
    between(found['all-gather'], split - table(made), split)
    whole = split + size(made.abstract.params, lambda leaf: not splits('fsdp')(leaf))
    between(found['all-reduce'], whole - table(made), whole + 3 * table(made))


@pytest.mark.slow
def test_a_ring_passes_keys_and_values_on():
    _, read = program('ring')
    found = traffic(read)
    keys = ROWS // 2 * TIME // 4 * KV * 4
    # Forward 3 turns of keys and values; backward 3 of them and 4 of their gradients.
    assert found['collective-permute'] == LAYERS * 2 * keys * (3 + 3 + 4)
    assert set(found) == {'collective-permute', 'all-reduce'}


def test_heads_are_exchanged_all_to_all():
    _, read = program('heads')
    found = traffic(read)
    queries, keys = (ROWS // 4 * TIME // 2 * width * 4 for width in (WIDTH, KV))
    # Queries, keys, values and the result, forward and backward.
    assert found['all-to-all'] == LAYERS * 2 * (2 * queries + 2 * keys)
    assert set(found) == {'all-to-all', 'all-reduce'}


@pytest.mark.slow
@pytest.mark.parametrize('family', ['cnn', 'lstm', 'encoder_decoder'])
def test_no_layout_exchanges_what_nobody_asked_for(family):
    for layout in ('data', 'fsdp_tensor'):
        _, read = program(layout, family)
        assert set(traffic(read)) <= {'all-reduce', 'all-gather', 'reduce-scatter'}
