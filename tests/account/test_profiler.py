"""The profiler: which steps, and what its table says of traces from here and of one made by hand."""

import os
import re
import signal

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from jaxdl.account import profiler
from jaxdl.account.profiler import ON_REQUEST, Profiler
from jaxdl.core.config import Checkpoint
from jaxdl.errors import UserError
from jaxdl.run.loop import train
from tests import small


@pytest.mark.parametrize('text', ['100', '110:100', '5:5', 'a:b', '-1:4', '1:2:3'])
def test_what_is_no_span(text):
    with pytest.raises(UserError, match=re.escape(f'--profile={text}: must be START:STOP')):
        profiler.parse(text)


def test_spans():
    assert profiler.parse('') is None and profiler.parse('100:110') == (100, 110)


@pytest.fixture(scope='module')
def program():
    def step(x):
        for _ in range(3):
            x = jnp.sin(x @ x) / 300
        return x

    return jax.jit(step).lower(jnp.ones((256, 256))).compile()


def test_a_span_is_traced_once(program, tmp_path):
    made = Profiler(tmp_path, (2, 5), program.as_text)
    try:
        x, said = jnp.ones((256, 256)), {}
        for step in range(9):
            if made.due(step):
                said[step] = made.turn(step)
            program(x).block_until_ready()
    finally:
        made.close()
    assert list(said) == [2, 5]
    assert said[2] == 'profiling steps 2 to 5'
    table = (tmp_path / '2-5' / 'operations.txt').read_text()
    assert said[5] == f'{table}trace: {tmp_path / "2-5"}'
    trace = profiler.read(tmp_path / '2-5', program.as_text())
    products = [one for one in trace.operations if one.flops]
    # Three products of 256³ in each of three steps, whatever the compiler called them.
    assert sum(one.flops * one.calls for one in products) == 3 * 3 * 2 * 256**3
    assert all(one.seconds > 0 for one in products) and trace.devices == 1
    shares = [float(x) for x in re.findall(r'^ *([\d.]+)%', table, re.M)]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))
    assert 'dot_general' in table


def test_on_request(program, tmp_path):
    made = Profiler(tmp_path, None, program.as_text)
    try:
        assert not made.due(3)
        os.kill(os.getpid(), signal.SIGUSR2)
        said = []
        for step in range(4, 40):
            if made.due(step):
                said.append((step, made.turn(step)))
            program(jnp.ones((256, 256))).block_until_ready()
    finally:
        made.close()
    assert [step for step, _ in said] == [4, 4 + ON_REQUEST]
    assert (tmp_path / f'4-{4 + ON_REQUEST}' / 'operations.txt').is_file()


def test_a_span_that_is_over(program, tmp_path):
    made = Profiler(tmp_path, (2, 5), program.as_text)
    try:
        assert made.due(9) and '--profile=2:5 lies before step 9' in made.turn(9)
        assert not made.due(10) and not made.tracing
    finally:
        made.close()


def test_the_signal_goes_back(tmp_path):
    before = signal.getsignal(signal.SIGUSR2)
    Profiler(tmp_path, None, str).close()
    assert signal.getsignal(signal.SIGUSR2) is before


GPU = """
planes { name: "/device:GPU:0"
  lines { id: 1 name: "Stream #7(Compute)" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 0 duration_ps: 4000000
      stats { metadata_id: 1 str_value: "dot.1" } stats { metadata_id: 2 str_value: "jit_step" } }
    events { metadata_id: 1 offset_ps: 6000000 duration_ps: 2000000
      stats { metadata_id: 1 str_value: "dot.1" } stats { metadata_id: 2 str_value: "jit_step" } }
    events { metadata_id: 1 offset_ps: 8000000 duration_ps: 9000000
      stats { metadata_id: 1 str_value: "dot.1" } stats { metadata_id: 2 str_value: "jit_eval" } } }
  lines { id: 2 name: "XLA Ops" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 0 duration_ps: 9000000
      stats { metadata_id: 1 str_value: "dot.1" } stats { metadata_id: 2 str_value: "jit_step" } } }
  event_metadata { key: 1 value { id: 1 name: "gemm_kernel" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "hlo_module" } } }
"""
PROGRAM = """HloModule jit_step, is_scheduled=true

ENTRY %main (p0: f32[100,100]) -> f32[100,100] {
  %p0 = f32[100,100]{1,0} parameter(0)
  ROOT %dot.1 = f32[100,100]{1,0} dot(%p0, %p0), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/Model/dot_general"}
}
"""


def test_a_trace_of_a_gpu(tmp_path):
    (tmp_path / 'x.xplane.pb').write_bytes(ProfileData.text_proto_to_serialized_xspace(GPU))
    trace = profiler.read(tmp_path, PROGRAM)
    (one,) = trace.operations
    assert (one.name, one.calls, one.source) == ('dot.1', 2, 'Model/dot_general')
    assert one.seconds == pytest.approx(6e-6) and one.flops == 2e6 and one.bytes == 3 * 40_000
    assert trace.busy == pytest.approx(6 / 8)
    lines = profiler.summary(tmp_path, PROGRAM, steps=2).splitlines()
    assert lines[0].startswith('2 steps, 0.00 ms') and lines[0].endswith('running 75 % of the time')
    # 2 MFLOP twice in 6 µs, and 120 kB each.
    assert lines[2].split()[:5] == ['100.0%', '0.003', '1', '667', '40.0']


def test_kernels_of_a_cuda_graph_are_told_apart_by_their_own_names(tmp_path):
    graph = GPU.replace('str_value: "dot.1"', 'str_value: "command_buffer_1"')
    for kernel, name, flops in (('dot_1', 'dot.1', 2e6), ('nvjet_sm90', 'nvjet_sm90', 0)):
        text = graph.replace('gemm_kernel', kernel)
        path = tmp_path / kernel
        path.mkdir()
        (path / 'x.xplane.pb').write_bytes(ProfileData.text_proto_to_serialized_xspace(text))
        (one,) = profiler.read(path, PROGRAM).operations
        assert (one.name, one.calls, one.flops) == (name, 2, flops)


def test_a_trace_without_the_program(tmp_path):
    (tmp_path / 'x.xplane.pb').write_bytes(ProfileData.text_proto_to_serialized_xspace(''))
    assert 'holds no operation' in profiler.summary(tmp_path, PROGRAM, steps=2)


def test_a_run_is_profiled(tmp_path, capsys):
    config = small.config(steps=8, eval_every=0, log_every=4, checkpoint=Checkpoint())
    train(config, str(tmp_path / 'run'), profile=(3, 6))
    table = (tmp_path / 'run' / 'profile' / '3-6' / 'operations.txt').read_text()
    assert table.splitlines()[0].startswith('3 steps, ') and 'conv' in table
    assert table in capsys.readouterr().out
