"""Convolutions of XLA's CPU programs by oneDNN (https://github.com/oneapi-src/oneDNN), through ctypes.

XLA:CPU calls foreign functions (`jax.ffi`). One Python function, `_handle`, is registered as the
target of all calls here. Each call carries its whole description, an `_Spec`, as text in its
attribute 'spec', so a program from the compile cache needs nothing else. oneDNN works on XLA's
buffers in place; its primitives are made once for each `_Spec` of a process.

The library is loaded when a convolution is first traced for a CPU: from the package
onednn-cpu-gomp, or the file that JAXDL_ONEDNN names; JAXDL_ONEDNN=0 loads none. Any build of oneDNN 3
for CPUs with OpenMP fits.
"""

import contextlib
import ctypes as C
import functools
import json
import math
import mmap
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxdl.errors import UserError
from jaxdl.models.ops import cpu

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]

_TARGET = 'jaxdl_onednn'
_PACKAGE = 'onednn-cpu-gomp'


class _Spec(NamedTuple):
    """What one call computes: the shapes of one lane, x and y NHWC, w HWIO.

    `kind` names the result: 'y' of x and w, 'x' (its gradient) of y and w, 'w' of x and y.
    """

    kind: str
    dtype: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    y: tuple[int, ...]
    strides: Pair
    pads: Pads
    dilation: Pair
    groups: int
    threads: int


_OPERANDS = {'y': ('x', 'w'), 'x': ('y', 'w'), 'w': ('x', 'y')}


# ---- the operation ---------------------------------------------------------------------------------


def conv(
    x: Array,
    kernel: Array,
    strides: Sequence[int] = (1, 1),
    padding='SAME',
    *,
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Array:
    """See plain.conv; NotImplemented where oneDNN is not there, cannot do this, or does not pay."""
    if library() is None or not cpu.on_one_device() or x.dtype != kernel.dtype:
        return NotImplemented
    if x.ndim != 4 or not all(isinstance(size, int) for size in x.shape):  # exported with any batch
        return NotImplemented
    pads = _explicit_pads(x, kernel, strides, padding, dilation)
    if x.dtype not in (jnp.float32, jnp.bfloat16) or min(*pads[0], *pads[1]) < 0:
        return NotImplemented
    spec = _spec('y', x, kernel, tuple(strides), pads, tuple(dilation), groups)
    if min(*spec.x, *spec.w, *spec.y) < 1 or _flops(spec) < _LEAST_FLOPS:
        return NotImplemented
    if not all(_is_fast(spec._replace(kind=kind)) for kind in _OPERANDS):
        return NotImplemented
    return _conv(x, kernel, spec)


# A call costs about 20 µs more than an operation of XLA's. From about 0.5 MFLOP on, forward and
# both gradients together were faster by oneDNN (docs/performance.md).
_LEAST_FLOPS = 2**20


# The three operations are linear in each operand, and each one's gradients are the other two.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, spec: _Spec) -> Array:
    return _call(spec._replace(kind='y'), x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _input_gradient(dy: Array, kernel: Array, spec: _Spec) -> Array:
    return _call(spec._replace(kind='x'), dy, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _kernel_gradient(x: Array, dy: Array, spec: _Spec) -> Array:
    return _call(spec._replace(kind='w'), x, dy)


def _keep(operation):
    return lambda a, b, spec: (operation(a, b, spec), (a, b))


def _conv_backward(spec, saved, dy):
    x, kernel = saved
    gradient: Any = _kernel_gradient(x, dy, spec)
    return cpu.after(gradient, _input_gradient(dy, kernel, spec)), gradient


def _input_backward(spec, saved, d_dx):
    dy, kernel = saved
    return _conv(d_dx, kernel, spec), _kernel_gradient(d_dx, dy, spec)


def _kernel_backward(spec, saved, d_kernel):
    x, dy = saved
    return _input_gradient(dy, d_kernel, spec), _conv(x, d_kernel, spec)


_conv.defvjp(_keep(_conv), _conv_backward)
_input_gradient.defvjp(_keep(_input_gradient), _input_backward)
_kernel_gradient.defvjp(_keep(_kernel_gradient), _kernel_backward)


def _explicit_pads(x, kernel, strides, padding, dilation) -> Pads:
    if isinstance(padding, str):
        window = [(kernel.shape[i] - 1) * dilation[i] + 1 for i in range(2)]
        padding = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


def _spec(kind, x, kernel, strides, pads, dilation, groups) -> _Spec:
    size = (
        (x.shape[1 + i] + sum(pads[i]) - (kernel.shape[i] - 1) * dilation[i] - 1) // strides[i] + 1
        for i in range(2)
    )
    y = (x.shape[0], *size, kernel.shape[3])
    dtype = jnp.dtype(x.dtype).name
    return _Spec(kind, dtype, x.shape, kernel.shape, y, strides, pads, dilation, groups, _threads())


def _threads() -> int:
    """Threads of one call: simulated devices share the cores, as they compute at the same time."""
    dnnl = library()
    limits = [dnnl.most_threads] if dnnl else []
    wanted = os.environ.get('OMP_NUM_THREADS', '')
    if wanted.isdigit():
        limits.append(int(wanted))
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return max(1, min(cores // jax.local_device_count(), *limits))


def _flops(spec: _Spec) -> int:
    """Of one call, as jaxdl.account.flops counts XLA's convolution, or its gradient, of these shapes."""
    if spec.kind != 'x':
        return 2 * math.prod(spec.y) * math.prod(spec.w[:3])
    pairs = 1  # of a pixel and a tap; a pixel of the input meets only some taps where strides skip
    for i in range(2):
        pixels, taps = np.arange(spec.x[1 + i]), np.arange(spec.w[i])
        place = pixels[:, None] + spec.pads[i][0] - taps * spec.dilation[i]
        pairs *= int(np.count_nonzero(place % spec.strides[i] == 0))
    return 2 * spec.x[0] * pairs * spec.w[2] * spec.w[3]


def _call(spec: _Spec, *operands: Array) -> Array:
    out = jax.ShapeDtypeStruct(getattr(spec, spec.kind), spec.dtype)
    call = jax.ffi.ffi_call(_TARGET, out, vmap_method='expand_dims')
    return call(*operands, spec=json.dumps(spec), conv_flops=np.int64(_flops(spec)))


def _is_fast(spec: _Spec) -> bool:
    try:
        return not _operation(spec).name.startswith('ref')
    except OneDnnError:  # it has no such convolution
        return False


# ---- oneDNN ----------------------------------------------------------------------------------------

# Numbers of oneDNN's C interface (include/oneapi/dnnl/dnnl_types.h, version 3).
_CPU, _ANY, _FORWARD, _DIRECT, _SCRATCH_BY_USER = 1, 1, 64, 1, 1
_DTYPES, _BYTES, _LINE = {'float32': 3, 'bfloat16': 2}, 6, 2  # u8; the layout 'a'
_ARGUMENTS = {  # of an execution
    'y': {'x': 1, 'w': 33, 'y': 17},
    'x': {'x': 129, 'w': 33, 'y': 145},
    'w': {'x': 1, 'w': 161, 'y': 145},
}
_FROM, _TO, _SCRATCH = 1, 17, 80
_QUERY_NAME, _QUERY_WEIGHTS, _QUERY_DIFF_WEIGHTS, _QUERY_SCRATCH = 8, 131, 132, 136
_Pointer = C.c_void_p


class OneDnnError(RuntimeError):
    """oneDNN refused: the function and the status it returned."""


class _Argument(C.Structure):
    _fields_ = [('name', C.c_int), ('memory', _Pointer)]


class Library:
    """oneDNN of one file.

    Attributes:
        path: the file.
        version: such as '3.2.0'.
    """

    def __init__(self, path: str):
        # OpenMP's threads sleep between calls, since XLA's own need the cores then. It reads this
        # when it is loaded.
        before = os.environ.get('OMP_WAIT_POLICY')
        os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
        try:
            self.path, self._free = path, C.CDLL(path)  # gives Python's lock away during a call
        finally:
            if before is None:
                del os.environ['OMP_WAIT_POLICY']
        self._held = C.PyDLL(path)  # keeps it, for calls of less than a microsecond
        for loaded in (self._free, self._held):
            loaded.dnnl_primitive_desc_query_md.restype = _Pointer
            loaded.dnnl_memory_desc_get_size.restype = C.c_size_t
            loaded.dnnl_version.restype = C.POINTER(C.c_int * 3)
        self.version = '.'.join(map(str, self._held.dnnl_version().contents))
        if not self.version.startswith('3.'):
            raise OSError(f'{path}: oneDNN {self.version}, and 3 is needed')
        self.most_threads = self._held.omp_get_thread_limit()
        self.set_address = self._held.dnnl_memory_set_data_handle
        self.run = self._free.dnnl_primitive_execute
        self.engine = self.make('dnnl_engine_create', _CPU, C.c_size_t(0))
        self.call('dnnl_primitive_attr_create', C.byref(attributes := _Pointer()))
        self.call('dnnl_primitive_attr_set_scratchpad_mode', attributes, _SCRATCH_BY_USER)
        self.attributes = attributes

    def set_threads(self, count: int) -> None:
        """For the calling thread: exactly so many, which oneDNN's code relies on."""
        self._held.omp_set_dynamic(0)
        self._held.omp_set_num_threads(count)

    def call(self, name: str, *args) -> None:
        status = getattr(self._free, name)(*args)
        if status:
            raise OneDnnError(f'{name}: status {status}')

    def make(self, name: str, *args) -> C.c_void_p:
        """The object that a function writes to its first argument."""
        made = _Pointer()
        self.call(name, C.byref(made), *args)
        return made

    def descriptor(self, dtype: str, sizes, strides=None) -> C.c_void_p:
        """Of memory, sizes in oneDNN's order; without strides in the layout that it likes best."""
        n = len(sizes)
        dims, kind = (C.c_int64 * n)(*sizes), _DTYPES[dtype]
        if strides is None:
            return self.make('dnnl_memory_desc_create_with_tag', n, dims, kind, _ANY)
        steps = (C.c_int64 * n)(*strides)
        return self.make('dnnl_memory_desc_create_with_strides', n, dims, kind, steps)

    def memory(self, descriptor) -> C.c_void_p:
        return self.make('dnnl_memory_create', descriptor, self.engine, _Pointer(0))

    def descriptor_of(self, primitive, query: int) -> C.c_void_p:
        return _Pointer(self._held.dnnl_primitive_desc_query_md(primitive, query, 0))

    def size(self, descriptor) -> int:
        return self._held.dnnl_memory_desc_get_size(descriptor)

    def equal(self, one, other) -> bool:
        return bool(self._held.dnnl_memory_desc_equal(one, other))

    def name_of(self, primitive) -> str:
        name = C.c_char_p()
        self.call('dnnl_primitive_desc_query', primitive, _QUERY_NAME, 0, C.byref(name))
        return (name.value or b'').decode()


@functools.cache
def library() -> Library | None:
    """oneDNN, loaded at the first call, and its target registered with XLA; None if it is not there."""
    named = os.environ.get('JAXDL_ONEDNN', '')
    if named == '0':
        return None
    path = named or _installed()
    if path is None:
        return None
    try:
        found = Library(path)
    except (OSError, AttributeError) as error:  # no OpenMP on this machine, or not this interface
        if named:
            raise UserError(
                f'JAXDL_ONEDNN={named}: cannot be loaded ({error}); it takes the file of oneDNN 3 '
                'for CPUs with OpenMP (libdnnl.so.3), or 0 to do without'
            ) from None
        return None
    # A call takes Python's lock twice. A thread that computes in Python gives it away this often,
    # after 5 ms by default: 30 convolutions then took 295 instead of 92 ms.
    sys.setswitchinterval(min(sys.getswitchinterval(), 1e-4))
    pointer = C.cast(_handle, _Pointer)
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(pointer), platform='cpu')
    return found


def _installed() -> str | None:
    from importlib import metadata

    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.name == 'libdnnl.so.3'), None)


class _Operation:
    """The primitive of a `_Spec`; between XLA's kernel and oneDNN's stands a re-ordering."""

    def __init__(self, dnnl: Library, spec: _Spec):
        self.dnnl, self.spec = dnnl, spec
        dnnl.set_threads(spec.threads)  # a primitive is made for a number of threads
        self._plain = {
            'x': _images(dnnl, spec.dtype, spec.x),
            'y': _images(dnnl, spec.dtype, spec.y),
        }
        self._plain['w'] = _kernel(dnnl, spec, any_layout=False)
        self._description = self._describe(_kernel(dnnl, spec, any_layout=True))
        self.name = dnnl.name_of(self._description)
        self._lock = threading.Lock()
        self._built = False
        self._idle: list[_Execution] = []

    def _describe(self, kernel):
        dnnl, spec = self.dnnl, self.spec
        pair = C.c_int64 * 2
        top_left, bottom_right = zip(*spec.pads, strict=True)
        steps = (pair(*spec.strides), pair(*(step - 1 for step in spec.dilation)))
        geometry = (*steps, pair(*top_left), pair(*bottom_right))
        x, y = self._plain['x'], self._plain['y']
        create = 'dnnl_convolution_{}_primitive_desc_create'
        head, tail = (dnnl.engine, _FORWARD, _DIRECT), (*geometry, dnnl.attributes)
        forward = dnnl.make(create.format('forward'), *head, x, kernel, None, y, *tail)
        if spec.kind == 'y':
            return forward
        head, tail = (dnnl.engine, _DIRECT), (*geometry, forward, dnnl.attributes)
        if spec.kind == 'x':
            return dnnl.make(create.format('backward_data'), *head, x, kernel, y, *tail)
        return dnnl.make(create.format('backward_weights'), *head, x, kernel, None, y, *tail)

    def _build(self) -> None:
        """Compiles the code, which takes milliseconds."""
        dnnl = self.dnnl
        self.primitive = dnnl.make('dnnl_primitive_create', self._description)
        to_kernel = self.spec.kind == 'w'
        query = _QUERY_DIFF_WEIGHTS if to_kernel else _QUERY_WEIGHTS
        best, plain = dnnl.descriptor_of(self._description, query), self._plain['w']
        scratch = dnnl.size(dnnl.descriptor_of(self._description, _QUERY_SCRATCH))
        self.best_kernel = self.reorder = None
        self.kernel_bytes = 0
        if not dnnl.equal(best, plain):
            source, target = (best, plain) if to_kernel else (plain, best)
            described = dnnl.make(
                'dnnl_reorder_primitive_desc_create',
                *(source, dnnl.engine, target, dnnl.engine, dnnl.attributes),
            )
            scratch = max(scratch, dnnl.size(dnnl.descriptor_of(described, _QUERY_SCRATCH)))
            self.reorder = dnnl.make('dnnl_primitive_create', described)
            self.best_kernel, self.kernel_bytes = best, -(-dnnl.size(best) // 64) * 64
        self.scratch_bytes = scratch
        self.scratch = dnnl.make(
            'dnnl_memory_desc_create_with_tag', 1, (C.c_int64 * 1)(max(scratch, 1)), _BYTES, _LINE
        )
        self._built = True

    def memory(self, name: str):
        """A memory of x, y or w in XLA's layout."""
        return self.dnnl.memory(self._plain[name])

    def run(self, *addresses: int) -> None:
        """Executes it once; the addresses are those of x, w and y."""
        try:
            execution = self._idle.pop()
        except IndexError:
            with self._lock:
                if not self._built:
                    self.dnnl.set_threads(self.spec.threads)
                    self._build()
            execution = _Execution(self)
        execution.run(addresses)
        self._idle.append(execution)


class _Execution:
    """What one thread needs to execute an operation: oneDNN's objects hold addresses."""

    def __init__(self, operation: _Operation):
        dnnl = operation.dnnl
        self._operation, self._stream = operation, dnnl.make('dnnl_stream_create', dnnl.engine, 1)
        self._memories = [operation.memory(name) for name in 'xwy']
        self._scratch = dnnl.memory(operation.scratch)
        x, w, y = self._memories
        kernel, self._kernel, before, after = w, None, [], []
        if operation.reorder is not None:
            self._kernel = kernel = dnnl.memory(operation.best_kernel)
            source, target = (kernel, w) if operation.spec.kind == 'w' else (w, kernel)
            move = self._arguments({_FROM: source, _TO: target})
            (after if operation.spec.kind == 'w' else before).append((operation.reorder, *move))
        numbers = _ARGUMENTS[operation.spec.kind]
        main = {numbers['x']: x, numbers['w']: kernel, numbers['y']: y}
        self._calls = [*before, (operation.primitive, *self._arguments(main)), *after]

    def _arguments(self, memories):
        """(how many, the array of them), the scratch memory added."""
        pairs = [*memories.items(), (_SCRATCH, self._scratch)]
        return len(pairs), (_Argument * len(pairs))(*(_Argument(*pair) for pair in pairs))

    def run(self, addresses) -> None:
        operation, dnnl = self._operation, self._operation.dnnl
        block, start = _take_scratch(operation.kernel_bytes + operation.scratch_bytes)
        for memory, address in zip(self._memories, addresses, strict=True):
            dnnl.set_address(memory, _Pointer(address))
        if self._kernel is not None:
            dnnl.set_address(self._kernel, _Pointer(start))
        dnnl.set_address(self._scratch, _Pointer(start + operation.kernel_bytes))
        threads = operation.spec.threads
        dnnl.set_threads(threads)
        with _turn if threads > 1 else _nothing:
            for primitive, count, arguments in self._calls:
                status = dnnl.run(primitive, self._stream, count, arguments)
                if status:
                    raise OneDnnError(f'dnnl_primitive_execute: status {status}')
        _scratch_blocks.append(block)


# Operations that take all cores wait for each other.
_turn = threading.Lock()
_nothing = contextlib.nullcontext()

# Scratch memory that is not in use: as many blocks as ever computed at the same time.
_scratch_blocks: list[tuple[mmap.mmap, int]] = []


def _take_scratch(size: int):
    """Returns (a block to give back to `_scratch_blocks`, its address)."""
    try:
        block = _scratch_blocks.pop()
    except IndexError:
        block = None
    if block is None or len(block[0]) < size:
        # Not from the heap, where a step's temporaries want one piece.
        memory = mmap.mmap(-1, max(size, 2**20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block = memory, C.addressof(C.c_char.from_buffer(memory))
    return block, block[1]


def _images(dnnl, dtype, shape):
    n, h, w, c = shape
    return dnnl.descriptor(dtype, (n, c, h, w), (h * w * c, 1, w * c, c))


def _kernel(dnnl, spec, *, any_layout):
    h, w, i, o = spec.w
    sizes, strides = (o, i, h, w), (1, o, w * i * o, i * o)
    if spec.groups > 1:
        part = o // spec.groups
        sizes, strides = (spec.groups, part, i, h, w), (part, *strides)
    return dnnl.descriptor(spec.dtype, sizes, None if any_layout else strides)


@functools.cache
def _operation(spec: _Spec) -> _Operation:
    dnnl = library()
    if dnnl is None:
        raise OneDnnError('the program was compiled with oneDNN, which is not there')
    return _Operation(dnnl, spec)


@functools.cache
def _operation_of_text(text: bytes) -> _Operation:
    def plain(value) -> Any:
        return tuple(map(plain, value)) if isinstance(value, list) else value

    return _operation(_Spec(*plain(json.loads(text))))


# ---- XLA's call frame (jaxlib/include/xla/ffi/api/c_api.h, version 0.3) -----------------------------


class _Base(C.Structure):
    _fields_ = [('size', C.c_size_t), ('extension', _Pointer)]


class _Extension(C.Structure):
    _fields_ = [('size', C.c_size_t), ('kind', C.c_int), ('next', _Pointer)]


class _Version(_Base):
    _fields_ = [('major', C.c_int), ('minor', C.c_int)]


class _Metadata(C.Structure):
    _fields_ = [('size', C.c_size_t), ('version', _Version), ('traits', C.c_uint32)]


class _MetadataExtension(C.Structure):
    _fields_ = [('base', _Extension), ('metadata', C.POINTER(_Metadata))]


class _Buffer(_Base):
    _fields_ = [('dtype', C.c_int), ('data', _Pointer), ('rank', C.c_int64)]
    _fields_ += [('dims', C.POINTER(C.c_int64))]


class _Buffers(_Base):
    _fields_ = [('count', C.c_int64), ('kinds', _Pointer)]
    _fields_ += [('buffers', C.POINTER(C.POINTER(_Buffer)))]


class _Text(C.Structure):
    _fields_ = [('data', _Pointer), ('size', C.c_size_t)]


class _Attributes(_Base):
    _fields_ = [('count', C.c_int64), ('kinds', C.POINTER(C.c_int)), ('names', _Pointer)]
    _fields_ += [('values', C.POINTER(C.POINTER(_Text)))]


class _Error(_Base):
    _fields_ = [('message', C.c_char_p), ('code', C.c_int)]


class _Api(_Base):
    _fields_ = [('version', _Version), ('internal', _Pointer)]
    _fields_ += [('make_error', C.PYFUNCTYPE(_Pointer, C.POINTER(_Error)))]


class _Frame(C.Structure):
    _fields_ = [
        ('size', C.c_size_t),
        ('extension', C.POINTER(_Extension)),
        ('api', C.POINTER(_Api)),
        ('context', _Pointer),
        ('stage', C.c_int),
        ('operands', _Buffers),
        ('results', _Buffers),
        ('attributes', _Attributes),
    ]


_IS_METADATA, _EXECUTE, _TEXT, _INTERNAL = 1, 3, 4, 13
_SIZES = {11: 4, 16: 2}  # bytes of an element of float32, bfloat16


@C.CFUNCTYPE(_Pointer, C.POINTER(_Frame))
def _handle(pointer):
    """The target: answers what it is, or executes; returns an error of XLA's, or None."""
    frame = pointer.contents
    try:
        if frame.extension and frame.extension.contents.kind == _IS_METADATA:
            extension = C.cast(frame.extension, C.POINTER(_MetadataExtension))
            metadata = extension.contents.metadata.contents
            metadata.version.major, metadata.version.minor, metadata.traits = 0, 3, 0
        elif frame.stage == _EXECUTE:
            _execute(frame)
    except BaseException as error:  # nothing may pass through XLA, which would go on
        message = f'oneDNN convolution: {type(error).__name__}: {error}'.encode()
        args = _Error(C.sizeof(_Error), None, message, _INTERNAL)
        return frame.api.contents.make_error(C.byref(args))
    return None


def _execute(frame) -> None:
    attributes = frame.attributes
    index = next(i for i in range(attributes.count) if attributes.kinds[i] == _TEXT)
    text = attributes.values[index].contents
    operation = _operation_of_text(C.string_at(text.data, text.size))
    operands, result = frame.operands.buffers, frame.results.buffers[0].contents
    kind = operation.spec.kind
    buffers = {kind: result}
    for i, name in enumerate(_OPERANDS[kind]):
        buffers[name] = operands[i].contents
    if result.rank == 4:
        operation.run(*(buffers[name].data for name in 'xwy'))
    else:
        lanes = tuple(result.dims[: result.rank - 4])
        for one in zip(*(_of_lanes(buffers[name], lanes) for name in 'xwy'), strict=True):
            operation.run(*one)


def _of_lanes(buffer, lanes) -> list[int]:
    """The address in `buffer` of each lane; an axis of vmap that it has not is 1 in its shape."""
    shape = buffer.dims[: buffer.rank]
    own, size = shape[: len(lanes)], math.prod(shape[len(lanes) :]) * _SIZES[buffer.dtype]
    places = np.arange(math.prod(own)).reshape(own) * size + buffer.data
    return np.broadcast_to(places, lanes).ravel().tolist()
