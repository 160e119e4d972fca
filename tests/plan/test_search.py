"""The search over plans, with a made-up machine."""

import json

import pytest

from jaxdl.compiled import cards
from jaxdl.errors import UserError
from jaxdl.plan import planning, search
from tests.plan.test_plan import CLUSTER, Mlp, config


class FakeAsker:
    """Plans by a formula: state and activations in GiB, seconds by what was repeated."""

    workers = 1
    card = 80 * 2**30

    def __init__(self, state=100, activations=64, exposed=0.1):
        self.state, self.activations, self.exposed, self.asked = state, activations, exposed, []

    def ask(self, overrides):
        self.asked.append(overrides)
        if overrides.get('config.mesh.tensor', 1) > 4:
            return {'error': 'heads do not divide'}
        return self.plan(overrides)

    def plan(self, overrides):
        fsdp = overrides.get('config.mesh.fsdp', 1)
        tensor = overrides.get('config.mesh.tensor', 1)
        kept = {'none': 1.0, 'dots': 0.5, 'full': 0.1}[overrides.get(search.REMAT, 'none')]
        arguments = self.state * 2**30 * overrides.get('config.model.layers', 3) / 3 / fsdp / tensor
        active = self.activations * 2**30 * kept / overrides.get('config.accumulate', 1)
        missing = arguments + active + planning.RESERVE - self.card
        seconds = 1.0 + (1 - kept) / 3 + overrides.get('config.accumulate', 1) / 100 + tensor / 10
        seconds -= 0.3 * (overrides.get(search.SCAN) is False)
        return {
            'memory': {
                'peak': arguments + active, 'activations': active, 'arguments': arguments,
                'card': self.card, 'missing': missing, 'fits': missing <= 0,
            },
            'time': {'seconds': seconds, 'exposed': self.exposed * seconds},
            'mfu_bound': 0.5 / seconds,
            'parameters': 10**9, 'devices': 'made up',
        }  # fmt: skip


def test_layouts_fill_the_devices():
    for text in ('h100', 'h100x8', 'h100x8x2', 'a100-40x4'):
        cluster = cards.parse(text)
        for sizes in search.layouts(cluster):
            assert sizes['data'] * sizes['fsdp'] * sizes['tensor'] == cluster.devices
            assert sizes['tensor'] <= cluster.gpus_per_host
    assert {'data': 2, 'fsdp': 8, 'tensor': 1} in search.layouts(cards.parse('h100x8x2'))


def test_search_finds_the_fastest_that_fits():
    asker = FakeAsker()
    found = search.search(config(), CLUSTER, asker)
    assert found.best is not None and found.best.fits
    assert found.best.seconds == min(c.seconds for c in found.tried if c.fits)
    assert found.best.overrides['config.mesh.fsdp'] == 8
    # Data parallel alone: the state is too large, so nothing else was compiled for it.
    plain = [o for o in asker.asked if o['config.mesh.data'] == 8 and o['config.mesh.fsdp'] == 1]
    assert len(plain) == 1
    assert found.best.flags() in found.text()
    json.dumps(found.to_json())


def test_search_uses_parts_and_rematerialisation_where_needed():
    asker = FakeAsker(state=1, activations=1000)
    found = search.search(config(batch_size=1024), CLUSTER, asker)
    assert found.best is not None
    assert found.best.overrides['config.accumulate'] > 1
    # Parts that could not have been enough were not compiled.
    assert {o['config.accumulate'] for o in asker.asked} == {1, 2, 8, 16}


def test_search_stops_where_a_tensor_axis_cannot_be_faster():
    # Waits for nothing: the layouts without a tensor axis, and nothing else.
    asker = FakeAsker(state=10, activations=10, exposed=0.01)
    found = search.search(config(), CLUSTER, asker)
    assert {o['config.mesh.tensor'] for o in asker.asked} == {1}
    assert {o['config.mesh.fsdp'] for o in asker.asked} == {1, 8}
    assert found.spared == len(search.layouts(CLUSTER)) - 2
    assert f'Not tried: {found.spared} with a wider tensor axis' in found.text()
    # Two were slower than one: four are not tried.
    asker = FakeAsker(state=10, activations=10, exposed=0.3)
    found = search.search(config(), CLUSTER, asker)
    assert {o['config.mesh.tensor'] for o in asker.asked} == {1, 2}
    assert 'slower with mesh.tensor=2' in found.text()
    found = search.search(config(), CLUSTER, FakeAsker(state=10, exposed=0.3), widest=1)
    assert {c.overrides['config.mesh.tensor'] for c in found.tried} == {1} and found.spared == 5
    # Nothing fits: all are tried, also those that cannot be compiled.
    asker = FakeAsker(state=10_000)
    found = search.search(config(), CLUSTER, asker)
    assert {o['config.mesh.tensor'] for o in asker.asked} == {1, 2, 4, 8}
    assert found.spared == 0 and 'heads do not divide' in found.text()


def test_search_also_writes_scanned_layers_out():
    class Scanned(Mlp):
        scan_layers: bool = True

    asker = FakeAsker(state=10, activations=10)
    found = search.search(config(model=Scanned()), CLUSTER, asker)
    assert found.best is not None
    assert found.best.overrides[search.SCAN] is False
    assert f'--{search.SCAN}=False' in found.best.flags()
    # Only the best of the layouts is planned again with its layers written out.
    assert sum(search.SCAN in o for o in asker.asked) <= 3


@pytest.mark.parametrize(
    ('code', 'said'),
    [
        ('import os; os.abort()', 'the compiler aborted (SIGABRT)'),
        ("import sys; print('error: no such card', file=sys.stderr); sys.exit(2)", 'no such card'),
        ('raise SystemExit(3)', 'exit code 3'),
    ],
)
def test_a_plan_that_fails_says_how(code, said, monkeypatch):
    real = search.subprocess.run
    monkeypatch.setattr(
        search.subprocess, 'run', lambda words, **how: real([words[0], '-c', code], **how)
    )
    assert search.Asker([]).ask({}) == {'error': said}


def test_search_may_find_nothing():
    found = search.search(config(), CLUSTER, FakeAsker(state=10_000))
    assert found.best is None
    assert 'Nothing fits' in found.text()


def test_largest_finds_the_edge():
    asker = FakeAsker(state=10, activations=1)
    found = search.largest(config(), 'auto', asker)
    fits = [
        layers
        for layers in range(1, 100)
        if asker.plan({'config.model.layers': layers})['memory']['missing'] <= 0
    ]
    assert found.field == 'config.model.layers'
    assert found.value == max(fits)
    assert f'--config.model.layers={max(fits)}' in found.text()
    json.dumps(found.to_json())


def test_largest_names_its_errors():
    with pytest.raises(UserError, match='no such field'):
        search.largest(config(), 'config.model.breadth', FakeAsker())
    with pytest.raises(UserError, match='whole number'):
        search.largest(config(), 'model.remat', FakeAsker())
    assert search.largest(config(), 'auto', FakeAsker(state=10_000)).value is None
