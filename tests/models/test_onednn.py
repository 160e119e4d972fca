"""Convolutions by oneDNN against the plain formulation, wherever a convolution may stand."""

import collections
import json
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from jaxdl.account import flops
from jaxdl.core import mesh as mesh_lib
from jaxdl.errors import Preempted
from jaxdl.models import ops
from jaxdl.models.ops import onednn
from jaxdl.run import loop as trainer
from jaxdl.tasks.intervals import bounds
from tests import chaos, faulty
from tests.models.test_ops import close, normal, plain, plain_of, value_and_gradients

pytestmark = pytest.mark.skipif(onednn.library() is None, reason='oneDNN is not here')


@pytest.fixture(autouse=True)
def however_small(monkeypatch):
    monkeypatch.setattr(onednn, '_LEAST_FLOPS', 0)


def calls(function, *arrays) -> int:
    """How many operations of a function oneDNN computes."""
    return str(jax.make_jaxpr(function)(*arrays)).count('target_name=jaxdl_onednn')


@st.composite
def convolutions(draw):
    def pair(least, most):
        return draw(st.integers(least, most)), draw(st.integers(least, most))

    groups = draw(st.sampled_from([1, 1, 2, 5]))
    channels, features = (draw(st.sampled_from([1, 3, 16])) for _ in range(2))
    if draw(st.integers(0, 3)) == 0:  # depthwise
        groups, channels = draw(st.sampled_from([3, 16])), 1
    size, kernel, dilation = pair(5, 11), pair(1, 3), pair(1, 2)
    padding = draw(st.sampled_from(['SAME', 'VALID', (pair(0, 2), pair(0, 2))]))
    x = (draw(st.integers(1, 3)), *size, channels * groups)
    how = dict(strides=pair(1, 3), padding=padding, dilation=dilation, groups=groups)
    return x, (*kernel, channels, features * groups), how


@settings(max_examples=16, deadline=None)
@given(convolutions(), st.sampled_from(['float32', 'bfloat16']), st.integers(0, 99))
def test_values_and_gradients(case, dtype, seed):
    shape, kernel, how = case
    arrays = normal(seed, *shape, dtype=dtype), normal(seed + 1, *kernel, dtype=dtype)

    def conv(x, kernel):
        return ops.conv(x, kernel, **how)

    ours = value_and_gradients(conv, *arrays)
    if calls(conv, *arrays):
        assert ours[0].dtype == ours[1][0].dtype == ours[1][1].dtype == dtype
    # The definition in float32 of the same numbers: bfloat16 keeps 8 bits of each result.
    wide = plain_of(conv, *(x.astype(jnp.float32) for x in arrays))
    close(ours, wide, 2e-5 if dtype == 'float32' else 2e-2)


COUNTED = [
    ((2, 9, 8, 4), (3, 3, 4, 6), dict()),
    ((2, 9, 8, 4), (3, 3, 4, 6), dict(strides=(2, 2))),
    ((2, 9, 8, 4), (3, 3, 4, 6), dict(strides=(2, 3), padding='VALID')),
    ((2, 9, 8, 4), (3, 2, 2, 6), dict(groups=2, padding=((1, 2), (0, 1)))),
    ((2, 9, 9, 4), (3, 3, 4, 16), dict(dilation=(2, 2), padding='VALID')),
]


@pytest.mark.parametrize(('shape', 'kernel', 'how'), COUNTED)
def test_all_three_are_by_onednn_and_have_the_count_of_the_plain_ones(shape, kernel, how):
    def train(x, kernel):
        return value_and_gradients(lambda x, kernel: ops.conv(x, kernel, **how), x, kernel)

    arrays = normal(0, *shape), normal(1, *kernel)
    assert calls(train, *arrays) == 3
    lanes = jax.vmap(train, (0, None)), jnp.stack([arrays[0]] * 3), arrays[1]
    ours, ours_of_lanes = flops.count(train, *arrays), flops.count(*lanes)
    with plain():
        theirs, theirs_of_lanes = flops.count(train, *arrays), flops.count(*lanes)
    assert ours.conv == theirs.conv > 0 and ours_of_lanes.conv == theirs_of_lanes.conv
    assert not ours.notes and ours.by_dtype == theirs.by_dtype


def test_a_gradient_of_a_gradient():
    """As a penalty on a critic's gradient takes it (arXiv:1704.00028)."""
    x, first, second = normal(0, 2, 6, 5, 4), normal(1, 3, 3, 4, 6), normal(2, 3, 2, 6, 2)

    def penalty(x, first, second):
        def critic(x):
            return ops.conv(jnp.tanh(ops.conv(x, first, (2, 1))), second).sum()

        return jnp.square(jax.grad(critic)(x)).sum()

    assert calls(jax.grad(penalty, (0, 1, 2)), x, first, second) > 8
    ours = value_and_gradients(penalty, x, first, second)
    close(ours, plain_of(penalty, x, first, second), 1e-4)


def test_interval_bounds_go_through_it():
    x, kernel = normal(0, 2, 6, 5, 4), normal(1, 3, 3, 4, 6)

    def net(x):
        return jax.nn.relu(ops.conv(x, kernel, (2, 1)))

    assert calls(net, x) == 1
    ours = bounds(net, x - 0.1, x + 0.2)
    with plain():
        close(ours, bounds(net, x - 0.1, x + 0.2))


@pytest.mark.parametrize('axes', [(0, 0), (0, None), (None, 0), (3, 1)])
def test_vmap(axes):
    x, kernel = normal(0, 3, 6, 5, 3), normal(1, 3, 3, 3, 3)
    lane = jnp.arange(1.0, 4.0)

    def spread(array, axis):
        return array if axis is None else jnp.stack([array * i for i in lane], axis)

    arrays = spread(x, axes[0]), spread(kernel, axes[1])
    mapped = jax.vmap(lambda x, k: ops.conv(x, k), axes)
    close(value_and_gradients(mapped, *arrays), plain_of(mapped, *arrays), 2e-5)


def test_vmap_in_vmap():
    def conv(x, kernel):
        return ops.conv(x, kernel, (2, 1), 'VALID')

    x, kernel = normal(0, 2, 2, 7, 5, 3), normal(1, 3, 3, 3, 3, 4)
    both = jax.vmap(jax.vmap(conv, (None, 0)), (0, None))
    close(value_and_gradients(both, x, kernel), plain_of(both, x, kernel), 2e-5)


def test_inside_a_scan_and_a_checkpoint():
    kernels = normal(0, 4, 3, 3, 5, 5) * 0.3

    def deep(x, kernels):
        @jax.checkpoint
        def layer(x, kernel):
            return jnp.tanh(ops.conv(x, kernel)), None

        return jax.lax.scan(layer, x, kernels)[0]

    x = normal(1, 2, 6, 6, 5)
    close(value_and_gradients(deep, x, kernels), plain_of(deep, x, kernels), 1e-4)


def test_the_same_bits_in_every_run_thread_and_process():
    program = '\n'.join(
        (
            'import hashlib, jax, jax.numpy as jnp',
            'from jaxdl.models import ops',
            'x = jax.random.normal(jax.random.key(0), (8, 16, 16, 32))',
            'k = jax.random.normal(jax.random.key(1), (3, 3, 32, 32))',
            'def loss(x, k): return jnp.square(ops.conv(x, k)).sum()',
            'step = jax.jit(jax.value_and_grad(loss, (0, 1)))',
            'def bits():',
            '    leaves = jax.tree.leaves(step(x, k))',
            '    return hashlib.md5(b"".join(x.tobytes() for x in jax.device_get(leaves))).hexdigest()',
        )
    )
    here: dict = {}
    exec(program, here)
    found = [here['bits']()]
    threads = [threading.Thread(target=lambda: found.append(here['bits']())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = subprocess.run(
        [
            sys.executable,
            '-c',
            f'{program}\nprint(bits())\nassert ops.used() == {{"conv": "onednn"}}',
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(found) == 7 and {*found, other.stdout.strip()} == {found[0]}


def test_devices_compute_their_parts_at_the_same_time():
    kernel = normal(0, 3, 3, 16, 16)
    x = normal(1, 8, 4, 9, 9, 16)

    def step(x, kernel):
        return value_and_gradients(ops.conv, x, kernel)

    ours = jax.pmap(step, in_axes=(0, None))(x, kernel)
    one = [step(part, kernel) for part in x]
    close(ours, jax.tree.map(lambda *parts: np.stack(parts), *one), 2e-5)


def test_a_mesh_takes_the_compilers_convolution():
    x, kernel = normal(0, 8, 6, 5, 4), normal(1, 3, 3, 4, 6)
    mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert calls(ops.conv, x, kernel) == 0
    assert calls(ops.conv, x, kernel) == 1


def test_what_it_cannot_do_or_is_not_worth_it_stays_with_the_compiler(monkeypatch):
    x, kernel = normal(0, 2, 6, 6, 4), normal(1, 3, 3, 4, 6)
    assert calls(ops.conv, x.astype(jnp.float16), kernel.astype(jnp.float16)) == 0
    cropped: dict = dict(padding=((-1, 0), (0, 0)))
    assert calls(lambda x, k: ops.conv(x, k, **cropped), x, kernel) == 0
    assert calls(lambda x, k: ops.conv(x, k, padding='VALID'), x[:, :2], kernel) == 0  # empty
    batch = jax.export.symbolic_shape('batch')
    assert calls(ops.conv, jax.ShapeDtypeStruct((*batch, 6, 6, 4), jnp.float32), kernel) == 0
    monkeypatch.setattr(onednn, '_LEAST_FLOPS', 2**20)
    assert calls(ops.conv, x, kernel) == 0
    monkeypatch.setattr(onednn, '_LEAST_FLOPS', 0)
    monkeypatch.setattr(onednn, 'library', lambda: None)
    assert calls(ops.conv, x, kernel) == 0


def test_a_resumed_run_is_the_unbroken_one_and_says_what_it_took(tmp_path, monkeypatch):
    make_mesh = mesh_lib.make_mesh
    monkeypatch.setattr(mesh_lib, 'make_mesh', lambda sizes: make_mesh(sizes, jax.devices()[:1]))
    monkeypatch.setattr(ops, '_used', collections.defaultdict(set))
    unbroken, broken = tmp_path / 'unbroken', tmp_path / 'broken'
    trainer.train(faulty.config(), str(unbroken))
    faulty.FAULTS['train', faulty.first_id(2)] = faulty.send(signal.SIGTERM)
    with pytest.raises(Preempted):
        trainer.train(faulty.config(), str(broken))
    faulty.FAULTS.clear()
    trainer.train(faulty.config(), str(broken))
    assert chaos.compare(unbroken, broken) == []
    info = json.loads((broken / 'run.json').read_text())
    assert info['formulations']['conv'] == 'onednn' and info['packages']['onednn-cpu-gomp']


def test_a_failure_fails_the_program():
    """A call that went on without a result would give whatever was in memory."""
    x, kernel = normal(0, 2, 6, 6, 4), normal(1, 3, 3, 4, 6)
    out = jax.ShapeDtypeStruct((2, 6, 6, 6), jnp.float32)
    call = jax.ffi.ffi_call('jaxdl_onednn', out)
    with pytest.raises(jax.errors.JaxRuntimeError, match='oneDNN convolution: '):
        jax.block_until_ready(call(x, kernel, spec='["y", "float32"]', conv_flops=np.int64(0)))


def test_a_thousand_calls_take_no_memory():
    x, kernel = normal(0, 4, 16, 16, 16), normal(1, 3, 3, 16, 16)

    @jax.jit
    def many(x, kernel):
        def body(_, k):
            return k + 1e-9 * jax.grad(lambda k: jnp.square(ops.conv(x, k)).sum())(k)

        return jax.lax.fori_loop(0, 1000, body, kernel)

    def resident() -> int:
        with open('/proc/self/statm') as file:
            return int(file.read().split()[1]) * 4096

    many(x, kernel).block_until_ready()
    before = resident()
    many(x, kernel).block_until_ready()
    assert resident() - before < 2**20
