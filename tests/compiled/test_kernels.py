"""What compiled programs do: texts compiled here for 8 CPU devices, and pieces of CUDA programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdl.account import flops
from jaxdl.compiled import kernels

LAYERS, WIDTH, BATCH = 3, 128, 32


def loss(params, x):
    def layer(x, kernel):
        return jnp.tanh(x @ kernel), None

    x, _ = jax.lax.scan(layer, x, params['layers'])
    return jnp.mean((x @ params['head']) ** 2)


def step(params, x):
    grads = jax.grad(loss)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


def compile_step(shape, axes, layer_spec, batch_spec):
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
    head = P(*layer_spec[1:])
    params = {'layers': (LAYERS, WIDTH, WIDTH), 'head': (WIDTH, WIDTH)}
    specs = {'layers': layer_spec, 'head': head}
    args = {
        name: jax.ShapeDtypeStruct(dims, jnp.float32, sharding=NamedSharding(mesh, specs[name]))
        for name, dims in params.items()
    }
    x = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32, sharding=NamedSharding(mesh, batch_spec))
    out = {name: arg.sharding for name, arg in args.items()}
    text = jax.jit(step, out_shardings=out).lower(args, x).compile().as_text()
    return kernels.read(text, devices=8)


PARAM_BYTES = 4 * (LAYERS + 1) * WIDTH**2


def test_data_parallel_reduces_exactly_the_gradient():
    program = compile_step((8,), ('data',), P(None), P('data'))
    traffic = program.traffic()
    assert set(traffic) == {'all-reduce'}
    assert traffic['all-reduce'][1] == PARAM_BYTES
    for collective, _ in program.collectives():
        assert collective.groups == (tuple(range(8)),)
        assert collective.wire_bytes == pytest.approx(collective.bytes * 2 * 7 / 8)
        assert not collective.crosses(gpus_per_host=8)
        assert collective.crosses(gpus_per_host=4)
        assert collective.dtype == 'float32'


def test_fsdp_gathers_every_layer_in_each_turn():
    program = compile_step((8,), ('fsdp',), P(None, 'fsdp'), P('fsdp'))
    number, gathered = program.traffic()['all-gather']
    assert number >= LAYERS
    # Once forward, and once more backward where XLA does not keep the gathered layer.
    assert PARAM_BYTES <= gathered <= 2 * PARAM_BYTES


def test_two_axes_have_their_own_groups():
    program = compile_step((2, 4), ('data', 'fsdp'), P(None, 'fsdp'), P(('data', 'fsdp')))
    groups = {collective.groups for collective, _ in program.collectives()}
    assert ((0, 1, 2, 3), (4, 5, 6, 7)) in groups
    assert ((0, 4), (1, 5), (2, 6), (3, 7)) in groups


def test_flops_of_the_kernels_equal_the_analytic_count():
    program = compile_step((8,), ('data',), P(None), P('data'))
    shapes = {
        'layers': jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32),
        'head': jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32),
    }
    counted = flops.count(step, shapes, jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32))
    assert 8 * sum(k.flops * n for k, n in program.kernels()) == counted.hardware
    assert sum(n for _, n in program.float32_products()) == 3 * LAYERS + 3


def test_conv_flops_of_the_kernels_equal_the_analytic_count():
    def conv(x, kernel):
        y = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        return (y**2).sum()

    fn = jax.grad(conv, argnums=(0, 1))
    args = (jnp.zeros((2, 9, 9, 4)), jnp.zeros((3, 3, 4, 8)))
    program = kernels.read(jax.jit(fn).lower(*args).compile().as_text())
    by_kernel = [k.flops for k, _ in program.kernels() if k.kind == 'conv']
    assert sum(by_kernel) == pytest.approx(flops.count(fn, *args).conv, rel=0.3)


def attention(query, key, value):
    weights = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', query, key))
    return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


def test_attention_by_products_is_found():
    query = jnp.zeros((2, 64, 4, 16))
    program = kernels.read(jax.jit(attention).lower(query, query, query).compile().as_text())
    assert (2 * 4 * 64 * 64, 1) in program.unfused_attention()
    plain = jax.jit(lambda x, w: jax.nn.softmax(x @ w)).lower(query, jnp.zeros((16, 16)))
    assert kernels.read(plain.compile().as_text()).unfused_attention() == []


def test_bytes_of_a_scan_count_slices_only():
    stack = jnp.zeros((50, 64, 64))

    def fn(x, stack):
        return jax.lax.scan(lambda x, kernel: (x * kernel.sum(0), None), x, stack)[0]

    program = kernels.read(jax.jit(fn).lower(jnp.zeros(64), stack).compile().as_text())
    # The stack is read once: not once whole for every turn.
    assert stack.nbytes <= program.bytes <= 4 * stack.nbytes


CUDA = """HloModule jit_step, is_scheduled=true, entry_computation_layout={()->()}

%gemm_fusion_dot.1_computation (p0: bf16[2048,512], p1: bf16[512,512]) -> bf16[2048,512] {
  %p0 = bf16[2048,512]{1,0} parameter(0)
  %p1 = bf16[512,512]{1,0} parameter(1)
  ROOT %dot.1 = bf16[2048,512]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (t: (s32[], bf16[2048,512])) -> (s32[], bf16[2048,512]) {
  %t = (s32[], bf16[2048,512]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = bf16[2048,512]{1,0} get-tuple-element(%t), index=1
  %w = bf16[64,512]{1,0} custom-call(), custom_call_target="shard"
  %gather = ((bf16[64,512]{1,0}), (bf16[512,512]{1,0})) all-gather-start(%w), channel_id=1, replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, dimensions={0}, backend_config={"collective_backend_config":{"is_sync":false}}
  %a = (bf16[8,8,256,64]{3,1,2,0}, f32[8,8,256]{2,1,0}, u8[0]{0}) custom-call(%x, %x, %x), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["8", "8", "256", "256"], "tuple_shapes": []}}}
  %done = bf16[512,512]{1,0} all-gather-done(%gather)
  %y = bf16[2048,512]{1,0} fusion(%x, %done), kind=kCustom, calls=%gemm_fusion_dot.1_computation, metadata={op_name="jit(step)/dot_general"}, backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  ROOT %r = (s32[], bf16[2048,512]{1,0}) tuple(%i, %y)
}

%cond (t: (s32[], bf16[2048,512])) -> pred[] {
  %t = (s32[], bf16[2048,512]{1,0}) parameter(0)
  ROOT %go = pred[] custom-call(%t), custom_call_target="go"
}

%async_computation (g: f32[512,128]) -> f32[64,128] {
  %g = f32[512,128]{1,0} parameter(0)
  ROOT %scatter = f32[64,128]{1,0} reduce-scatter(%g), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, to_apply=%add
}

ENTRY %main (p: (s32[], bf16[2048,512])) -> f32[64,128] {
  %p = (s32[], bf16[2048,512]{1,0}) parameter(0)
  %image = bf16[8,16,16,64]{3,2,1,0} custom-call(), custom_call_target="image"
  %kernel = bf16[64,3,3,64]{3,2,1,0} custom-call(), custom_call_target="kernel"
  %while.1 = (s32[], bf16[2048,512]{1,0}) while(%p), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  %conv = (bf16[8,16,16,64]{3,2,1,0}, u8[4096]{0}) custom-call(%image, %kernel), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %grad = (bf16[64,3,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%image, %image), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %lhs = f32[2048,512]{1,0} custom-call(), custom_call_target="lhs"
  %rhs = f32[512,128]{1,0} custom-call(), custom_call_target="rhs"
  %gemm = (f32[2048,128]{1,0}, s8[4194304]{0}) custom-call(%lhs, %rhs), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  %start = ((f32[512,128]{1,0}), f32[64,128]{1,0}) async-start(%rhs), calls=%async_computation
  %end = f32[64,128]{1,0} async-done(%start)
  %sync = f32[64,128]{1,0} all-reduce-start(%end), replica_groups=[4,2]<=[8], to_apply=%add, backend_config={"collective_backend_config":{"is_sync":true}}
  ROOT %synced = f32[64,128]{1,0} all-reduce-done(%sync)
}
"""


@pytest.fixture(scope='module')
def cuda():
    return kernels.read(CUDA, devices=8)


def test_cuda_kernels(cuda):
    found = {k.name: (k, n) for k, n in cuda.kernels() if k.flops}
    kinds = {name: (k.kind, k.library, k.dtype, n) for name, (k, n) in found.items()}
    assert kinds == {
        'a': ('attention', 'cuDNN', 'bfloat16', 4),
        'y': ('matmul', 'Triton', 'bfloat16', 4),
        'conv': ('conv', 'cuDNN', 'bfloat16', 1),
        'grad': ('conv', 'cuDNN', 'bfloat16', 1),
        'gemm': ('matmul', 'cuBLAS', 'float32', 1),
    }
    assert found['y'][0].flops == 2 * 2048 * 512 * 512
    assert found['gemm'][0].flops == 2 * 2048 * 128 * 512
    assert found['conv'][0].flops == found['grad'][0].flops == 2 * 8 * 256 * 64 * 64 * 9
    assert found['gemm'][0].bytes == 4 * (2048 * 512 + 512 * 128 + 2048 * 128)  # no scratch
    assert [k.name for k, _ in cuda.float32_products()] == ['gemm']
    assert cuda.unfused_attention() == []


def test_cuda_collectives(cuda):
    found = {c.name: (c, n) for c, n in cuda.collectives()}
    gather, turns = found['gather']
    assert (gather.kind, gather.bytes, turns) == ('all-gather', 2 * 512 * 512, 4)
    assert gather.asynchronous and gather.size == 8
    scatter, _ = found['start']
    assert (scatter.kind, scatter.bytes) == ('reduce-scatter', 4 * 512 * 128)
    assert scatter.wire_bytes == scatter.bytes * 7 / 8
    reduce, _ = found['sync']
    assert (reduce.kind, reduce.size, reduce.asynchronous) == ('all-reduce', 2, False)
    # The attention runs between start and end of the gather; nothing runs beside the others.
    assert cuda.overlapped() == {'gather'}
    assert cuda.traffic()['all-gather'] == (4, 4 * 2 * 512 * 512)


def test_offloading_is_a_copy_to_the_host():
    text = """HloModule m, is_scheduled=true

ENTRY %main (p: f32[1024]) -> f32[1024] {
  %p = f32[1024]{0} parameter(0)
  %c = (f32[1024]{0:S(5)}, f32[1024]{0}, u32[]) copy-start(%p)
  ROOT %d = f32[1024]{0:S(5)} copy-done(%c)
}
"""
    ((copy, times),) = kernels.read(text).collectives()
    assert (copy.kind, copy.bytes, times) == ('host-copy', 4096, 1)


def test_unknown_loops_are_noted():
    text = CUDA.replace(', backend_config={"known_trip_count":{"n":"4"}}', '')
    assert 'unknown length' in kernels.read(text, devices=8).notes[0]
