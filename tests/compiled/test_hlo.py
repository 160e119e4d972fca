"""Reading the text of compiled programs: syntax."""

import pytest

from jaxdl.compiled import hlo


def test_instruction_with_nested_tuple_quotes_and_comments():
    line = (
        '  ROOT %fwd.5 = (bf16[8,8,256,64]{3,1,2,0}, /*index=1*/(f32[8]{0}, pred[])) '
        'custom-call(%a.1, f32[2]{0} %b), custom_call_target="__cudnn$fmha)Softmax", '
        'metadata={op_name="jit(step)/while/body" stack_frame_id=3}'
    )
    found = hlo.parse_instruction(line)
    assert (found.name, found.opcode, found.root) == ('fwd.5', 'custom-call', True)
    assert found.operands == ('a.1', 'b')
    assert [shape.dims for shape in found.shapes] == [(8, 8, 256, 64), (8,), ()]
    assert found.target == '__cudnn$fmha)Softmax'
    assert found.op_name == 'jit(step)/while/body'
    assert found.bytes == 2 * 8 * 8 * 256 * 64 + 4 * 8 + 1


def test_lines_that_are_no_instructions():
    assert hlo.parse_instruction('1 {file_name_id=1 function_name_id=1 line=37}') is None
    assert hlo.parse_instruction('') is None


@pytest.mark.parametrize(
    ('text', 'size'),
    [
        ('f32[3,5]{1,0}', 60),
        ('bf16[7]{0:T(256)}', 14),
        ('f8e4m3fn[9]{0}', 9),
        ('s4[9]{0}', 5),
        ('pred[]', 1),
        ('token[]', 0),
        ('(f32[2]{0}, (u8[3]{0}, c64[1]{0}))', 8 + 3 + 8),
        ('f32[<=10,2]{1,0}', 80),
    ],
)
def test_bytes_of_shapes(text, size):
    assert sum(shape.bytes for shape in hlo.shapes(text)) == size


def test_memory_space_of_the_host():
    (shape,) = hlo.shapes('f32[4]{0:S(5)}')
    assert shape.host
    (shape,) = hlo.shapes('f32[4]{0}')
    assert not shape.host


@pytest.mark.parametrize(
    ('text', 'groups'),
    [
        ('replica_groups={{0,1},{2,3}}', [[0, 1], [2, 3]]),
        ('replica_groups={}', [[0, 1, 2, 3]]),
        ('channel_id=1', [[0, 1, 2, 3]]),
        ('replica_groups=[2,2]<=[4]', [[0, 1], [2, 3]]),
        ('replica_groups=[2,2]<=[2,2]T(1,0)', [[0, 2], [1, 3]]),
        ('replica_groups=[1,4]<=[4], dimensions={0}', [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=4,'b'=1] {'a'}, dimensions={0}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ('source_target_pairs={{0,1},{1,0}}', [[0, 1], [1, 0]]),
    ],
)
def test_groups_of_devices(text, groups):
    assert hlo.replica_groups(text, 4) == groups


LOOP = """HloModule jit_f, is_scheduled=true

%cond (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(7)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  ROOT %p = (s32[], f32[4]{0}) parameter(0)
}

ENTRY %main (x: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = (s32[], f32[4]{0}) parameter(0)
  ROOT %while.1 = (s32[], f32[4]{0}) while(%x), condition=%cond, body=%body NOTE
}
"""


@pytest.mark.parametrize(
    ('note', 'trips'),
    [('', 7), (', backend_config={"known_trip_count":{"n":"5"},"x":[]}', 5)],
)
def test_trip_count(note, trips):
    module = hlo.parse(LOOP.replace(' NOTE', note))
    assert module.scheduled
    assert set(module.computations) == {'cond', 'body', 'main'}
    assert hlo.trip_count(module, module.entry.root) == trips


COUNTED = """
HloModule jit_step, is_scheduled=true

%less (a: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %n = s32[] constant(62)
  ROOT %lt = pred[] compare(%a, %n), direction=LT
}

%more (b: s32[]) -> s32[] {
  %b = s32[] parameter(0)
  %two = s32[] constant(2)
  ROOT %add = s32[] add(%b, %two)
}

%cond (p: (f32[4], s32[])) -> pred[] {
  %p = (f32[4]{0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=1
  ROOT %f = pred[] fusion(%i), kind=kLoop, calls=%less
}

%body (q: (f32[4], s32[])) -> (f32[4], s32[]) {
  %q = (f32[4]{0}, s32[]) parameter(0)
  %v = f32[4]{0} get-tuple-element(%q), index=0
  %j = s32[] get-tuple-element(%q), index=1
  %g = s32[] fusion(%j), kind=kLoop, calls=%more
  %again = s32[] copy(%g)
  ROOT %t = (f32[4]{0}, s32[]) tuple(%v, %again)
}

ENTRY %main (x: f32[4]) -> (f32[4], s32[]) {
  %x = f32[4]{0} parameter(0)
  %one = s32[] constant(1)
  %begin = s32[] copy(%one)
  %state = (f32[4]{0}, s32[]) tuple(%x, %begin)
  ROOT %while.1 = (f32[4]{0}, s32[]) while(%state), condition=%cond, body=%body
}
"""


def test_a_fused_condition_is_read_with_its_start_and_step():
    module = hlo.parse(COUNTED)
    assert hlo.trip_count(module, module.entry.root) == len(range(1, 62, 2))


def test_unknown_trip_count():
    module = hlo.parse(LOOP.replace(' NOTE', '').replace('constant(7)', 'parameter(1)'))
    assert hlo.trip_count(module, module.entry.root) is None


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match='no ENTRY'):
        hlo.parse('module @jit_f { }')
