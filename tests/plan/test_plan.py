"""The plan: figures against independent ones, on simulated CPUs and, where installed, for CUDA."""

import collections
import dataclasses
import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from jaxdl.account import flops
from jaxdl.api import DataSet, Source, Task
from jaxdl.commands import plan
from jaxdl.compiled import cards, gpu_compile
from jaxdl.core import flags
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.config import Config, Mesh
from jaxdl.core.optim import AdamW
from jaxdl.core.program import Program
from jaxdl.errors import UserError
from jaxdl.metrics import Mean
from jaxdl.models import ops
from jaxdl.plan import planning
from jaxdl.plan import text as plan_text

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
class Square(Task):
    def inputs(self, batch):
        return {'x': batch['x']}

    def metrics(self, outputs, batch):
        return {'loss': Mean.of((outputs**2).sum(-1))}


@dataclasses.dataclass
class Rows(DataSet):
    width: int = WIDTH

    def example(self):
        return {'x': np.zeros(self.width, np.float32)}

    def train_source(self):
        raise UserError('the data set is not here')


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
    # Exact: ids, which no step reads, are no argument of the program; counters and rates are.
    rest = memory.arguments - memory.parameters - memory.optimizer - 64 // 8 * 4 * WIDTH
    # The step, four counters of health and the learning rate; nothing here draws from the seed.
    assert rest == 4 * (1 + 4 + 1)
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
    moved = collections.Counter()
    for exchange in found.time.exchanges:
        moved[exchange.kind] += exchange.bytes
    # Gathered forward, and again backward for the gradient of what came before: of the first layer
    # nobody asks for that.
    assert kernels <= moved['all-gather'] <= 2 * kernels
    # Each gradient is summed once (XLA's CPU compiler has no reduce-scatter of its own); beside
    # them the biases and the metrics' few sums.
    summed = moved['reduce-scatter'] + moved['all-reduce']
    assert 0 <= summed - kernels <= 2 * 4 * LAYERS * WIDTH + 64


def test_two_hosts_use_the_network():
    found = planning.make(config(), cards.parse('h100x4x2'), cuda=False)
    assert {e.link for e in found.time.exchanges} == {'network'}


def test_accumulation_and_rematerialisation_are_counted(data_parallel):
    plain = data_parallel
    parts = planning.make(config(accumulate=4), CLUSTER, cuda=False)
    assert parts.flops.model == plain.flops.model
    again = planning.make(config(model=Mlp(remat='full')), CLUSTER, cuda=False)
    assert again.flops.model == plain.flops.model
    assert again.flops.remat >= 0


def test_rows_stand_in_for_a_data_set_that_is_not_here():
    shapes = plan.parse_rows(f'x:float32[{WIDTH}]')
    found = planning.make(config(), CLUSTER, cuda=False, rows=shapes)
    assert found.parameters == PARAMETERS
    with pytest.raises(
        UserError, match="Square or the model needs 'x' in an example; there are id, "
    ):
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
        'NVLink 450 GB/s of a GPU and direction',
        'upper estimate',
    ):
        assert word in text
    assert json.loads(json.dumps(data_parallel.to_json()))['parameters'] == PARAMETERS


@dataclasses.dataclass
class Here(Rows):
    def train_source(self):
        return Zeros()


class Zeros(Source):
    def __len__(self):
        return 64

    def in_memory(self):
        return {'x': np.zeros((64, WIDTH), np.float32)}

    def fetch(self, ids):
        return {'x': np.zeros((len(ids), WIDTH), np.float32)}


def test_require_fit_judges_the_devices_that_are_here():
    assert 'the step needs' in planning.require_fit(config(data=Here()))
    assert planning.machine_memory() <= psutil.virtual_memory().total
    # Three matrices of 2¹⁸ by 2¹⁸ with their gradients and moments: terabytes, and none is made.
    large = config(data=Here(), model=Mlp(width=2**18))
    with pytest.raises(UserError, match=r'the step needs .* GiB too much') as error:
        planning.require_fit(large)
    assert '--config.mesh.fsdp' in str(error.value)


# ---- the command --------------------------------------------------------------------------------


def command(*words, timeout=280, **environ):
    return subprocess.run(
        [sys.executable, '-m', 'jaxdl', 'plan', *words],
        capture_output=True, text=True, timeout=timeout, env={**os.environ, **environ},
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
from tests.plan import test_plan

def get_config():
    return test_plan.config(data=test_plan.Here())
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


def test_train_refuses_what_does_not_fit(config_file, tmp_path):
    words = [sys.executable, 'train.py', f'--config={config_file}', f'--workdir={tmp_path}/run']
    words += ['--plan', '--config.model.width=262144']
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 2, done.stderr
    assert 'GiB too much' in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path / 'run').exists()


def same_work(few, many):
    """Each device does the same for its rows and holds the same, whatever their number."""
    assert few['time']['flops'] == many['time']['flops']
    assert few['flops']['model'] / few['batch_size'] == many['flops']['model'] / many['batch_size']
    for part in ('parameters', 'optimizer', 'batch', 'arguments'):
        assert few['memory'][part] == many['memory'][part], part


def test_from_1_to_8_devices_only_the_exchange_is_new(data_parallel):
    alone = planning.make(config(batch_size=8), cards.parse('h100'), cuda=False)
    assert not alone.time.exchanges and alone.time.exposed == 0
    same_work(alone.to_json(), data_parallel.to_json())


@pytest.mark.slow
def test_from_8_to_64_devices_only_the_share_that_is_sent_grows(config_file, data_parallel):
    words = (f'--config={config_file}', '--devices=h100x8x8', '--estimate', '--json')
    done = command(*words, '--config.batch_size=512')
    assert done.returncode == 0, done.stderr
    large = json.loads(done.stdout)
    (exchange,) = large['time']['exchanges']
    (small,) = data_parallel.time.exchanges
    assert exchange['bytes'] == small.bytes
    # A ring of n sends 2 (n - 1) / n of the bytes.
    assert exchange['wire_bytes'] / small.wire_bytes == pytest.approx((63 / 64) / (7 / 8))
    assert (small.link, exchange['link']) == ('NVLink', 'network')
    same_work(data_parallel.to_json(), large)


# ---- the shipped configs against published figures -----------------------------------------------


def shipped(name, rows, platform='cpu', **model):
    """(numbers in the model, FLOPs of a step of `rows` examples) of a shipped config."""
    found = flags.load_config(f'configs/{name}.py')
    found = dataclasses.replace(
        found, model=found.model.clone(**model), batch_size=rows, accumulate=1, mesh=Mesh()
    )
    mesh = mesh_lib.make_mesh(Mesh(), jax.devices()[:1])
    example = {'id': np.int32(0), **found.data.example()}
    ops.set_platform(platform)
    try:
        built = Program(found, mesh, example)
        batch = {
            key: jax.ShapeDtypeStruct(
                (rows, *np.shape(value)),
                np.asarray(value).dtype,
                sharding=mesh_lib.batch_sharding(mesh),
            )
            for key, value in example.items()
        }
        counted = flops.count_jaxpr(built.train_jaxpr(batch, {}))
    finally:
        ops.set_platform(None)
    return sum(leaf.size for leaf in jax.tree.leaves(built.abstract.params)), counted


def megatron(rows, time, layers, width, predictions):
    """FLOPs of a step by arXiv:2104.04473, equation 3, without its recomputation of the forward pass.

    `predictions` is the vocabulary, times the share of the positions at which it is predicted.
    """
    return (72 * rows * time * layers * width**2) * (
        1 + time / (6 * width) + predictions / (12 * layers * width)
    )


@pytest.mark.parametrize('platform', ['cpu', 'cuda'])
def test_gpt2_as_published(platform):
    size, counted = shipped('gpt2_124m', 2, platform, scan_layers=True, vocab_multiple=1)
    assert size == 124_439_808
    assert counted.model == pytest.approx(megatron(2, 1024, 12, 768, 50257), rel=1e-3)


def test_bert_large_as_published():
    size, counted = shipped('bert_large', 2, vocab_multiple=1)
    assert size == 336_226_108  # BertForPreTraining of bert-large-uncased
    body = megatron(2, 512, 24, 1024, 30522 * 77 / 512)  # 15 % of 512, rounded up, are predicted
    # The predictions' own layer, width by width, which the formula does not know.
    transform = 6 * 2 * 512 * 1024**2
    assert counted.model == pytest.approx(body + transform, rel=1e-3)


@pytest.mark.slow
def test_resnet50_as_published():
    size, counted = shipped('resnet50', 2)
    assert size == 25_557_032  # torchvision's resnet50
    stem = 2 * 112 * 112 * 64 * 7 * 7 * 3  # nobody asks for the gradient of the images
    assert counted.model == pytest.approx(2 * (3 * 2 * 4.089e9 - stem), rel=2e-3)


def test_a_decoder_of_seven_billion():
    size, counted = shipped('lm_7b', 1)
    assert size == 6_738_415_616  # Llama 2 7B
    # Three kernels of 11008 in the MLP instead of two of 16384.
    plain = megatron(1, 4096, 32, 4096, 32000)
    mlp = 6 * 4096 * 32 * 4096 * (3 * 11008 - 2 * 16384)
    assert counted.model == pytest.approx(plain + mlp, rel=1e-3)
    # Every layer's forward pass is repeated, but for products whose results nobody needs.
    forward = (counted.model - 6 * 4096 * 4096 * 32000) / 3
    assert 0.8 * forward < counted.remat <= forward


# ---- the CUDA compiler --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not CUDA, reason='requirements-plan.txt is not installed')
def test_bert_large_on_eight_gpus():
    done = command(
        '--config=configs/bert_large.py', '--devices=h100x8', '--json', '--config.accumulate=1',
        '--config.data.source.train=FILES', '--config.model.scan_layers=False',
        '--config.mesh.data=1', '--config.mesh.fsdp=8', timeout=1700,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    attention = [kernel for kernel in found['kernels'] if kernel[0] == 'attention']
    assert [kernel[1:4] for kernel in attention] == [['cuDNN', 'bfloat16', 2 * 24]]
    assert {kernel[2] for kernel in found['kernels']} == {'bfloat16'}
    assert not [w for w in found['warnings'] if w.startswith(('attention', 'float32'))]
    large = [e for e in found['time']['exchanges'] if e['bytes'] > 2**20]
    assert large and all(exchange['overlapped'] for exchange in large)
    assert found['time']['exposed'] < 0.05 * found['time']['seconds']
    assert found['mfu_bound'] >= 0.60  # 0.635; docs/scaling.md says what it took


@pytest.mark.slow
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
    mesh = mesh_lib.make_mesh(Mesh(data=1, fsdp=8))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'fsdp'))
    leaf = jax.ShapeDtypeStruct((4, 16), jnp.bfloat16, sharding=place)
    assert planning.local_bytes({'a': leaf}) == 4 * 2 * 2
