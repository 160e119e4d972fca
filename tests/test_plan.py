"""The plan: figures against independent ones, on simulated CPUs and, where installed, for CUDA."""

import dataclasses
import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import parallel, plan, plan_search, plan_text, planning
from jaxdl.config import Config, Mesh
from jaxdl.efficiency import cards, gpu_compile
from jaxdl.errors import UserError
from jaxdl.metrics import Mean
from jaxdl.optim import AdamW

WIDTH, LAYERS = 64, 3
CLUSTER = cards.parse('h100x8')
CUDA = (gpu_compile.package_folder() / 'jax_cuda12_plugin').is_dir()


class Mlp(nn.Module):
    width: int = WIDTH
    layers: int = LAYERS
    remat: str = 'none'

    @nn.compact
    def __call__(self, x, *, train: bool):
        layer = nn.remat(nn.Dense) if self.remat == 'full' else nn.Dense
        for _ in range(self.layers):
            x = jnp.tanh(layer(self.width)(x))
        return x


@dataclasses.dataclass
class Square:
    def inputs(self, batch):
        return {'x': batch['x']}

    def metrics(self, outputs, batch):
        return {'loss': Mean.of((outputs**2).sum(-1))}

    def augment(self, batch, rng):
        return batch


@dataclasses.dataclass
class Rows:
    width: int = WIDTH

    def example(self):
        return {'x': np.zeros(self.width, np.float32)}

    def train_source(self):
        raise UserError('the data set is not here')

    def eval_sources(self):
        return {}


def config(**changes):
    fields = dict(
        model=Mlp(), task=Square(), data=Rows(), optimizer=AdamW(learning_rate=1e-3),
        batch_size=64, steps=10,
    )  # fmt: skip
    return Config(**{**fields, **changes})


PARAMETERS = LAYERS * (WIDTH**2 + WIDTH)


@pytest.fixture(scope='module')
def data_parallel():
    return planning.make(config(), CLUSTER, cuda=False)


def test_memory_is_that_of_the_state(data_parallel):
    memory = data_parallel.memory
    assert data_parallel.parameters == PARAMETERS
    assert memory.parameters == memory.gradients == 4 * PARAMETERS
    # Two moments, and a few counters.
    assert 0 <= memory.optimizer - 8 * PARAMETERS < 64
    assert memory.batch == 64 // 8 * (4 * WIDTH + 4)
    # Ids that no step reads are no argument of the program; counters and rates are.
    rest = memory.arguments - memory.parameters - memory.optimizer - 64 // 8 * 4 * WIDTH
    assert 0 <= rest < 64
    assert memory.fits and memory.missing < 0
    assert memory.peak >= memory.arguments + memory.temporary


def test_flops_are_those_of_the_formula(data_parallel):
    forward = 2 * 64 * LAYERS * WIDTH**2
    first_input_gradient = 2 * 64 * WIDTH**2  # nobody asks for the gradient of the data
    assert data_parallel.flops.model == 3 * forward - first_input_gradient
    assert data_parallel.time.flops * 8 == data_parallel.flops.hardware


def test_data_parallel_sends_the_gradient_once(data_parallel):
    reduced = [e for e in data_parallel.time.exchanges if e.kind == 'all-reduce']
    assert [e.kind for e in data_parallel.time.exchanges] == ['all-reduce']
    # Besides the gradient only the metrics' few sums.
    assert 0 <= reduced[0].bytes - 4 * PARAMETERS < 64
    assert reduced[0].link == 'NVLink'


def test_fsdp_splits_the_state_and_gathers_it():
    found = planning.make(config(mesh=Mesh(data=1, fsdp=8)), CLUSTER, cuda=False)
    kernels = 4 * LAYERS * WIDTH**2
    # Biases are too small to be worth splitting.
    assert found.memory.parameters == kernels // 8 + 4 * LAYERS * WIDTH
    assert found.mesh['fsdp'] == 8
    gathered = sum(e.bytes for e in found.time.exchanges if e.kind == 'all-gather')
    assert gathered >= kernels


def test_two_hosts_use_the_network():
    found = planning.make(config(), cards.parse('h100x4x2'), cuda=False)
    assert {e.link for e in found.time.exchanges} == {'network'}


def test_accumulation_and_rematerialisation_are_counted():
    plain = planning.make(config(), CLUSTER, cuda=False)
    parts = planning.make(config(accumulate=4), CLUSTER, cuda=False)
    assert parts.flops.model == plain.flops.model
    again = planning.make(config(model=Mlp(remat='full')), CLUSTER, cuda=False)
    assert again.flops.model == plain.flops.model
    assert again.flops.remat >= 0


def test_rows_stand_in_for_a_data_set_that_is_not_here():
    shapes = plan.parse_rows(f'x:float32[{WIDTH}]')
    found = planning.make(config(), CLUSTER, cuda=False, rows=shapes)
    assert found.parameters == PARAMETERS
    with pytest.raises(UserError, match="--rows: Square needs 'x'"):
        planning.make(config(), CLUSTER, cuda=False, rows=plan.parse_rows('y:int32[]'))


@pytest.mark.parametrize('text', ['x', 'x:float32', 'x:floaty[3]', 'x:int32[3];y:int32[]'])
def test_wrong_rows_teach(text):
    with pytest.raises(UserError, match='NAME:TYPE'):
        plan.parse_rows(text)


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match='mesh'):
        planning.make(config(mesh=Mesh(data=3)), CLUSTER, cuda=False)
    with pytest.raises(UserError, match='batch_size'):
        planning.make(config(batch_size=4), CLUSTER, cuda=False)
    with pytest.raises(UserError, match='force_host_platform_device_count=64'):
        planning.make(config(), cards.parse('h100x8x8'), cuda=False)


def test_what_does_not_fit_says_by_how_much_and_what_helps(data_parallel):
    card = dataclasses.replace(CLUSTER.card, memory_bytes=int(planning.RESERVE) + 100_000)
    small = dataclasses.replace(CLUSTER, card=card)
    found = planning.make(config(), small, cuda=False)
    assert not found.memory.fits
    excess = found.memory.peak + planning.RESERVE - card.memory_bytes
    assert found.memory.missing == excess
    assert planning.gib(excess) in found.warnings[0]
    assert '--config.' in found.warnings[0]
    assert 'DOES NOT FIT' in plan_text.render(found)


def test_the_text_says_what_it_is(data_parallel):
    text = plan_text.render(data_parallel)
    assert 'ESTIMATE from a program compiled for CPUs' in text
    for word in (
        '8 × NVIDIA H100',
        'optimizer state',
        'all-reduce',
        'MFU at most',
        'upper estimate',
    ):
        assert word in text
    assert json.loads(json.dumps(data_parallel.to_json()))['parameters'] == PARAMETERS


def test_require_fit_judges_the_devices_that_are_here(monkeypatch):
    @dataclasses.dataclass
    class Here(Rows):
        def train_source(self):
            return Source()

    class Source:
        def __len__(self):
            return 64

        def in_memory(self):
            return {'x': np.zeros((64, WIDTH), np.float32)}

        def fetch(self, ids):
            return {'x': np.zeros((len(ids), WIDTH), np.float32)}

    assert 'the step needs' in planning.require_fit(config(data=Here()))
    monkeypatch.setattr(planning, 'peak_bytes', lambda executable: (0, 0, 2**60))
    with pytest.raises(UserError, match='too much'):
        planning.require_fit(config(data=Here()))


# ---- searching, with a made-up machine ----------------------------------------------------------


class FakeAsker:
    """Plans by a formula: state and activations in GiB, seconds by what was repeated."""

    workers = 1
    card = 80 * 2**30

    def __init__(self, state=100, activations=64, exposed=0.1):
        self.state, self.activations, self.exposed, self.asked = state, activations, exposed, []

    def ask(self, overrides):
        self.asked.append(overrides)
        fsdp = overrides.get('config.mesh.fsdp', 1)
        tensor = overrides.get('config.mesh.tensor', 1)
        if tensor > 4:
            return {'error': 'heads do not divide'}
        kept = {'none': 1.0, 'dots': 0.5, 'full': 0.1}[overrides.get(plan_search.REMAT, 'none')]
        arguments = self.state * 2**30 * overrides.get('config.model.layers', 3) / 3 / fsdp / tensor
        active = self.activations * 2**30 * kept / overrides.get('config.accumulate', 1)
        missing = arguments + active + planning.RESERVE - self.card
        seconds = 1.0 + (1 - kept) / 3 + overrides.get('config.accumulate', 1) / 100 + tensor / 10
        seconds -= 0.3 * (overrides.get(plan_search.SCAN) is False)
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
        for sizes in plan_search.layouts(cluster):
            assert sizes['data'] * sizes['fsdp'] * sizes['tensor'] == cluster.devices
            assert sizes['tensor'] <= cluster.gpus_per_host
    assert {'data': 2, 'fsdp': 8, 'tensor': 1} in plan_search.layouts(cards.parse('h100x8x2'))


def test_search_finds_the_fastest_that_fits():
    asker = FakeAsker()
    found = plan_search.search(config(), CLUSTER, asker)
    assert found.best is not None and found.best.fits
    assert found.best.seconds == min(c.seconds for c in found.tried if c.fits)
    assert found.best.overrides['config.mesh.fsdp'] == 8
    # Data parallel alone: the state is too large, so nothing else was compiled for it.
    plain = [o for o in asker.asked if o['config.mesh.data'] == 8 and o['config.mesh.fsdp'] == 1]
    assert len(plain) == 1
    assert found.best.flags() in found.text()
    assert 'heads do not divide' in found.text()
    json.dumps(found.to_json())


def test_search_uses_parts_and_rematerialisation_where_needed():
    asker = FakeAsker(state=1, activations=1000)
    found = plan_search.search(config(batch_size=1024), CLUSTER, asker)
    assert found.best is not None
    assert found.best.overrides['config.accumulate'] > 1
    # Parts that could not have been enough were not compiled.
    assert {o['config.accumulate'] for o in asker.asked} == {1, 2, 8, 16}


def test_search_stops_where_no_layout_can_be_faster():
    asker = FakeAsker(state=10, activations=10, exposed=0.01)
    found = plan_search.search(config(), CLUSTER, asker)
    assert {o['config.mesh.data'] for o in asker.asked} == {8}
    assert found.spared == len(plan_search.layouts(CLUSTER)) - 1
    assert f'{found.spared} other layouts were not tried' in found.text()
    # A layout that has to compute twice may be beaten by one that splits its state instead.
    asker = FakeAsker(state=10, activations=1000, exposed=0.01)
    assert plan_search.search(config(batch_size=8), CLUSTER, asker).spared == 0


def test_search_also_writes_scanned_layers_out():
    class Scanned(Mlp):
        scan_layers: bool = True

    asker = FakeAsker(state=10, activations=10)
    found = plan_search.search(config(model=Scanned()), CLUSTER, asker)
    assert found.best is not None
    assert found.best.overrides[plan_search.SCAN] is False
    assert f'--{plan_search.SCAN}=False' in found.best.flags()
    # Only the best of the layouts is planned again with its layers written out.
    assert sum(plan_search.SCAN in o for o in asker.asked) <= 3


def test_search_may_find_nothing():
    found = plan_search.search(config(), CLUSTER, FakeAsker(state=10_000))
    assert found.best is None
    assert 'Nothing fits' in found.text()


def test_largest_finds_the_edge():
    asker = FakeAsker(state=10, activations=1)
    found = plan_search.largest(config(), 'auto', asker)
    fits = [
        layers
        for layers in range(1, 100)
        if not asker.ask({'config.model.layers': layers})['memory']['missing'] > 0
    ]
    assert found.field == 'config.model.layers'
    assert found.value == max(fits)
    assert f'--config.model.layers={max(fits)}' in found.text()
    json.dumps(found.to_json())


def test_largest_names_its_errors():
    with pytest.raises(UserError, match='no such field'):
        plan_search.largest(config(), 'config.model.breadth', FakeAsker())
    with pytest.raises(UserError, match='whole number'):
        plan_search.largest(config(), 'model.remat', FakeAsker())
    assert plan_search.largest(config(), 'auto', FakeAsker(state=10_000)).value is None


# ---- the command --------------------------------------------------------------------------------


def command(*words, **environ):
    return subprocess.run(
        [sys.executable, '-m', 'jaxdl.plan', *words],
        capture_output=True, text=True, timeout=280, env={**os.environ, **environ},
    )  # fmt: skip


@pytest.mark.parametrize(
    ('words', 'text'),
    [
        (('--config=configs/digits_cnn.py',), '--devices is missing'),
        (('--config=configs/digits_cnn.py', '--devices=h10x8'), "did you mean 'h100'"),
        (('--config=configs/digits_cnn.py', '--devices=h100x8', '--network=fast'), 'GB/s'),
    ],
)
def test_wrong_flags_are_two_lines_and_exit_2(words, text):
    done = command(*words)
    assert done.returncode == 2
    assert text in done.stderr
    assert 'Traceback' not in done.stderr


CONFIG = """
import sys
sys.path.insert(0, {root!r})
from tests import test_plan

def get_config():
    return test_plan.config()
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / 'tiny.py'
    path.write_text(CONFIG.format(root=os.getcwd()))
    return str(path)


def test_without_the_compiler_the_command_estimates(config_file, tmp_path):
    done = command(
        f'--config={config_file}', '--devices=h100x2', '--json', '--config.mesh.fsdp=2',
        JAXDL_PLAN_PACKAGES=str(tmp_path / 'none'),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found['cuda'] is False
    assert found['mesh']['fsdp'] == 2
    assert found['parameters'] == PARAMETERS


@pytest.mark.skipif(not CUDA, reason='requirements-plan.txt is not installed')
def test_the_cuda_program_agrees_with_theory(config_file):
    done = command(f'--config={config_file}', '--devices=h100x8x2', '--json')
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = planning.make(config(), CLUSTER, cuda=False)
    assert found['cuda'] is True
    assert found['parameters'] == PARAMETERS
    assert found['memory']['parameters'] == expected.memory.parameters
    assert found['memory']['optimizer'] == expected.memory.optimizer
    assert found['flops']['model'] == expected.flops.model
    assert found['time']['flops'] * 16 == found['flops']['hardware']
    reduced = sum(e['bytes'] for e in found['time']['exchanges'] if e['kind'] == 'all-reduce')
    assert 0 <= reduced - 4 * PARAMETERS < 64
    assert any('float32 matrix products' in text for text in found['warnings'])


def test_help_lists_the_flags():
    done = command('--help')
    assert done.returncode == 0
    assert '--search' in done.stdout and '--largest' in done.stdout


def test_local_bytes_follow_the_sharding():
    mesh = parallel.make_mesh(Mesh(data=1, fsdp=8))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'fsdp'))
    leaf = jax.ShapeDtypeStruct((4, 16), jnp.bfloat16, sharding=place)
    assert planning.local_bytes({'a': leaf}) == 4 * 2 * 2
