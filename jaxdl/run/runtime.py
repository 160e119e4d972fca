"""Settings of a process before jax is imported: the allocator, XLA's flags, the compile cache.

The values were measured; docs/performance.md says how, and what each gains. JAXDL_PLAIN=1 turns all
of them off for comparison.
"""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Sequence

from jaxdl import errors
from jaxdl.errors import UserError
from jaxdl.run import signals

# XLA aborts the process on an unknown flag, so flags are set only for versions they were tried on.
_CPU_FLAGS = {
    '0.10.2': (
        '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution',
        '--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED',
    ),
}
_DETERMINISTIC_FLAGS = {
    '0.10.2': ('--xla_gpu_deterministic_ops=true',),
}

# Parameters of mallopt, by the numbers in glibc's malloc.h. XLA allocates the temporaries of a step
# anew every time; with these settings the memory stays mapped, so its pages are not faulted in
# again. With one arena, a thread reuses the pages that another has freed.
_MALLOPT = {
    'M_MMAP_MAX': (-4, 0),
    'M_TRIM_THRESHOLD': (-1, -1),  # never
    'M_TOP_PAD': (-2, 64 * 2**20),
    'M_ARENA_MAX': (-8, 1),
    'M_MXFAST': (1, 0),  # no fast bins; see _TUNABLES
}

# A step's temporaries are one large block of the heap, with a small remainder cut off on each side.
# A remainder in a thread's cache or a fast bin is not merged with the large block when that is
# freed. Then the next step's block does not fit into the free space, and the process grows by a
# whole block, sometimes repeatedly. The thread's cache can only be turned off by this variable.
# The same holds for huge pages where the system gives them on request only: with them a
# convolutional step took 195 instead of 245 ms.
_TUNABLES = {'glibc.malloc.tcache_count': '0', 'glibc.malloc.hugetlb': '1'}


def program(
    main: Callable[[Sequence[str]], int | None], argv: Sequence[str], *, tuned_heap: bool
) -> int:
    """Runs a command as this process; returns its exit code, as `jaxdl.errors.run` gives it.

    It listens for signals from its first line on, and failing output does not end it. With
    `tuned_heap`, for commands that train, it restarts itself as `restart_with_tuned_heap` says.
    """
    signals.block()
    if tuned_heap:  # before slow imports, which the restarted process would repeat
        restart_with_tuned_heap()
    signals.listen()
    guard_output()
    code = errors.run(main, argv)
    lost = output_error()
    if lost is not None and code == 0:
        print(f'error: standard output cannot be written: {lost.strerror}', file=sys.stderr)
        code = 1
    signals.command_is_over(code)
    return code


def restart_with_tuned_heap() -> None:
    """Restarts this command once, with glibc's thread cache off and huge pages on (_TUNABLES).

    Only where a CPU computes, and not with JAXDL_PLAIN=1. Call it first, since everything before it
    runs twice. Settings that the environment already holds are kept; if it holds all of them, the
    process is not restarted.
    """
    present = os.environ.get('GLIBC_TUNABLES', '')
    wanted = [f'{name}={value}' for name, value in _TUNABLES.items() if name not in present]
    if _is_plain() or not wanted or 'jax' in sys.modules or sys.gettrace() is not None:
        return
    if not _has_glibc() or has_nvidia() or not sys.executable:
        return
    tunables = ':'.join([*([present] if present else []), *wanted])
    sys.stdout.flush()
    environ = {**os.environ, 'GLIBC_TUNABLES': tunables}
    with contextlib.suppress(OSError):  # it may not be started again: it goes on as it is
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


def prepare_process() -> dict:
    """Sets the allocator, XLA's flags and the compile cache, and returns what was set.

    Call it before jax is imported; afterwards only the allocator can still be set, and the result
    has the entry `late`. Settings of the user's environment are kept.
    """
    if _is_plain():
        return {'plain': True}
    gpu = has_nvidia() and os.environ.get('JAX_PLATFORMS') != 'cpu'
    # If a GPU computes, the host holds no temporaries, and the allocator keeps its defaults.
    done: dict = {'allocator': None if gpu else _set_allocator()}
    if 'jax' in sys.modules:
        done['late'] = True
        return done
    if gpu:
        _set_default(done, 'JAX_OPTIMIZATION_LEVEL', 'O1')
    done['xla_flags'] = _add_flags(_flags_for(_CPU_FLAGS))
    _set_compile_cache(done)
    return done


def make_deterministic(done: dict) -> None:
    """Asks for bit-equal results on GPUs and adds the flags to `done`, from prepare_process.

    Call it before a device is used, because XLA reads its flags at that moment.
    """
    if done.get('plain'):
        return
    flags = _flags_for(_DETERMINISTIC_FLAGS)
    if not flags:
        print(
            'WARNING: --config.deterministic: the flags of this jaxlib are not known, so a GPU may '
            f'give other bits; known: {", ".join(_DETERMINISTIC_FLAGS)}',
            file=sys.stderr,
        )
    done['xla_flags'] = [*done.get('xla_flags', ()), *_add_flags(flags)]


def open_devices() -> None:
    """Opens the devices that JAX_PLATFORMS names, or the machine's.

    Raises:
        UserError: there is no device of that kind.
    """
    import jax

    wanted = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        if not wanted:
            raise
        reason = str(error).strip().splitlines()
        raise UserError(
            f'JAX_PLATFORMS={wanted}: this machine, or this installation of jax, has no such device'
            f'{f" ({reason[0][:200]})" if reason else ""}; unset it, or set JAX_PLATFORMS=cpu'
        ) from None


class _Output(io.FileIO):
    """A standard output or error that discards text that cannot be written, and raises nothing.

    Attributes:
        error: the system's error; None if only the reader closed a pipe, as `| head` does.
    """

    error: OSError | None = None

    def write(self, data, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.error = error
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            return len(data)


def guard_output() -> None:
    """Makes print() raise nothing for a closed pipe, a full disk or an ASCII terminal."""
    for name, number in (('stdout', 1), ('stderr', 2)):
        old = getattr(sys, name)
        if old is None:  # the caller has closed it
            setattr(sys, name, open(os.devnull, 'w'))
            continue
        raw = _Output(number, 'w', closefd=False)
        stream = io.TextIOWrapper(
            raw if old.write_through else io.BufferedWriter(raw),  # type: ignore[arg-type]
            encoding=old.encoding,
            errors='backslashreplace' if number == 2 else 'replace',
            line_buffering=old.line_buffering,
            write_through=old.write_through,
        )
        setattr(sys, name, stream)


def output_error() -> OSError | None:
    """The error because of which printed text was lost, or None."""
    try:
        sys.stdout.flush()
    except ValueError:  # closed
        return None
    buffer = getattr(sys.stdout, 'buffer', None)
    return getattr(getattr(buffer, 'raw', buffer), 'error', None)


def release_heap() -> None:
    """Gives the free pages of the heap back to the system; called once, after compiling."""
    if _has_glibc() and not _is_plain():
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)


def process_started() -> float:
    """The time.monotonic() at which this process began; now, if the system does not say."""
    now = time.monotonic()
    try:
        with open('/proc/self/stat', encoding='utf-8') as file:
            ticks = int(file.read().rpartition(')')[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf('SC_CLK_TCK')
    except (OSError, ValueError, IndexError, AttributeError):
        return now
    return now - max(age, 0.0)


def _set_allocator() -> dict | None:
    if not _has_glibc():
        return None
    import ctypes

    mallopt = ctypes.CDLL(None).mallopt
    return {name: value for name, (number, value) in _MALLOPT.items() if mallopt(number, value)}


def _is_plain() -> bool:
    return os.environ.get('JAXDL_PLAIN', '') not in ('', '0')


def _has_glibc() -> bool:
    try:
        return (os.confstr('CS_GNU_LIBC_VERSION') or '').startswith('glibc')
    except (OSError, ValueError, AttributeError):  # not glibc: musl, macOS, Windows
        return False


def _flags_for(table: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    from jaxlib.version import __version__  # light: jax itself is not imported

    return table.get(__version__, ())


def _add_flags(flags: tuple[str, ...]) -> list[str]:
    """Adds flags to XLA_FLAGS, but for those that the user has set; returns the added ones."""
    present = os.environ.get('XLA_FLAGS', '')
    names = {word.split('=')[0] for word in present.split()}
    added = [flag for flag in flags if flag.split('=')[0] not in names]
    if added:
        os.environ['XLA_FLAGS'] = ' '.join([*present.split(), *added])
    return added


def has_nvidia() -> bool:
    """Whether this machine has an NVIDIA driver."""
    return os.path.exists('/proc/driver/nvidia') or os.path.exists('/dev/nvidiactl')


def _set_compile_cache(done: dict) -> None:
    if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
        done['compile_cache'] = os.environ['JAX_COMPILATION_CACHE_DIR']
        return
    done['compile_cache'] = None
    from jaxdl import files  # imported late, because a process that restarts does not need it

    cache = files.cache_folder()
    if cache is None:
        return
    folder = str(cache / 'compile')
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        return
    os.environ['JAX_COMPILATION_CACHE_DIR'] = done['compile_cache'] = folder
    _set_default(done, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')


def _set_default(done: dict, name: str, value: str) -> None:
    done[name] = os.environ.setdefault(name, value)
