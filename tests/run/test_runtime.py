"""What prepare_process sets, looked at from processes of its own."""

import errno
import json
import os
import subprocess
import sys

import pytest

from jaxdl.run import runtime

CALL = 'import json, os, sys; from jaxdl.run import runtime; done = runtime.prepare_process(); '

TUNABLES = 'glibc.malloc.tcache_count=0:glibc.malloc.hugetlb=1'


def process(code, **environment):
    """The JSON that `code`, run after prepare_process, prints in a fresh process."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ('XLA_FLAGS', 'JAX_PLATFORMS', 'JAXDL_PLAIN') and 'CACHE' not in name
    }
    result = subprocess.run(
        [sys.executable, '-c', CALL + code],
        env={**inherited, 'JAX_PLATFORMS': 'cpu', **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_jax_runs_with_what_was_set(tmp_path):
    found = process(
        'import jax; import jax.numpy as jnp; '
        'jax.jit(lambda x: x @ x)(jnp.ones((8, 8))).block_until_ready(); '
        'print(json.dumps([done, jax.config.jax_compilation_cache_dir]))',
        JAXDL_CACHE=str(tmp_path / 'cache'),
    )
    done, folder = found
    assert folder == done['compile_cache'] == str(tmp_path / 'cache' / 'compile')
    assert os.listdir(folder), 'nothing was cached'


def test_nothing_heavy_is_imported(tmp_path):
    modules = process(
        "print(json.dumps([m for m in ('jax', 'numpy', 'flax') if m in sys.modules]))",
        JAXDL_CACHE=str(tmp_path),
    )
    assert modules == []


def test_the_user_wins(tmp_path):
    flag = '--xla_cpu_experimental_ynn_fusion_type=individual_dot'
    done, flags = process(
        "print(json.dumps([done, os.environ['XLA_FLAGS']]))",
        XLA_FLAGS=flag,
        JAX_COMPILATION_CACHE_DIR=str(tmp_path),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='7',
    )
    assert flags.split() == [flag, *done['xla_flags']]
    assert not any('ynn_fusion_type' in added for added in done['xla_flags'])
    assert done['compile_cache'] == str(tmp_path)


def test_plain_sets_nothing():
    done, flags = process("print(json.dumps([done, os.environ.get('XLA_FLAGS')]))", JAXDL_PLAIN='1')
    assert done == {'plain': True} and flags is None


def test_deterministic_flags_reach_xla_after_jax_was_imported(tmp_path):
    """A config is read first, which imports jax; XLA itself writes down what it runs with."""
    done = process(
        'import flax, jax; runtime.make_deterministic(done); '
        'jax.jit(lambda x: x + 1)(1); print(json.dumps(done))',
        JAXDL_CACHE=str(tmp_path / 'cache'),
        XLA_FLAGS=f'--xla_dump_to={tmp_path / "dump"}',
    )
    assert '--xla_gpu_deterministic_ops=true' in done['xla_flags']
    found = [path.read_text() for path in (tmp_path / 'dump').glob('*.debug_options')]
    assert found and all('xla_gpu_deterministic_ops: true' in text for text in found)


def test_deterministic_warns_where_the_flags_are_unknown(monkeypatch, capsys):
    monkeypatch.setattr('jaxlib.version.__version__', '99.0')
    done = {'xla_flags': ['--a']}
    runtime.make_deterministic(done)
    assert done == {'xla_flags': ['--a']}
    assert 'not known' in capsys.readouterr().err


def test_a_home_that_cannot_be_written_is_no_error(tmp_path):
    blocker = tmp_path / 'file'
    blocker.write_text('')
    done = process('print(json.dumps(done))', JAXDL_CACHE=str(blocker))
    assert done['compile_cache'] is None


def test_late_call_only_sets_the_allocator():
    import jax  # noqa: F401

    before = dict(os.environ)
    done = runtime.prepare_process()
    assert done['late'] and set(done) == {'allocator', 'late'}
    assert dict(os.environ) == before


def test_unknown_version_gets_no_flags(monkeypatch):
    monkeypatch.setattr('jaxlib.version.__version__', '99.0')
    assert runtime._flags_for(runtime._CPU_FLAGS) == ()


def test_allocator_is_set_on_glibc():
    if not (os.confstr('CS_GNU_LIBC_VERSION') or '').startswith('glibc'):
        assert runtime._set_allocator() is None
    else:
        assert runtime._set_allocator() == {k: v for k, (_, v) in runtime._MALLOPT.items()}


@pytest.mark.skipif(not runtime._has_glibc(), reason='malloc is of another C library')
def test_small_blocks_are_not_cut_from_a_large_hole():
    # Beside a large block that is freed and taken again, small ones are taken and kept, as a
    # program does between two steps: the heap must not grow.
    code = """
import ctypes
from jaxdl.run import runtime
runtime._set_allocator()
libc = ctypes.CDLL(None)
for name, result, arguments in (
    ("aligned_alloc", ctypes.c_void_p, [ctypes.c_size_t] * 2),
    ("malloc", ctypes.c_void_p, [ctypes.c_size_t]),
    ("sbrk", ctypes.c_void_p, [ctypes.c_ssize_t]),
    ("free", None, [ctypes.c_void_p]),
):
    getattr(libc, name).restype, getattr(libc, name).argtypes = result, arguments
large = 200 << 20
sizes = []
for step in range(20):
    block = libc.aligned_alloc(64, large)
    libc.malloc(40 + 16 * (step % 8))
    libc.free(block)
    for size in (24, 56, 100, 400, 5000, 100_000, 1_000_000):
        libc.malloc(size)
    sizes.append(libc.sbrk(0))
print(sizes[0], sizes[-1])
"""
    found = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'GLIBC_TUNABLES': TUNABLES},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, last = map(int, found.stdout.split())
    assert last - first < 100 << 20


def test_restart_keeps_the_command_and_happens_once(tmp_path):
    (tmp_path / 'again.py').write_text(
        'import os, sys\n'
        'from jaxdl.run import runtime\n'
        'with open("starts", "a") as file: file.write(f"{os.getpid()}\\n")\n'
        'runtime.restart_with_tuned_heap()\n'
        'print(sys.argv[1:], os.environ["GLIBC_TUNABLES"])\n'
    )

    def run(**environment):
        (tmp_path / 'starts').unlink(missing_ok=True)
        found = subprocess.run(
            [sys.executable, 'again.py', 'a b', '--c=d'],
            cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': os.getcwd(), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return found.stdout.strip(), (tmp_path / 'starts').read_text().split()

    # A card, or another C library, needs none of it.
    some = runtime._has_glibc() and not runtime.has_nvidia()
    said, starts = run(GLIBC_TUNABLES='glibc.malloc.mxfast=0')
    tunables = f'glibc.malloc.mxfast=0:{TUNABLES}' if some else 'glibc.malloc.mxfast=0'
    assert said == f"['a b', '--c=d'] {tunables}"
    assert len(starts) == (2 if some else 1) and len(set(starts)) == 1, 'another process'
    own = 'glibc.malloc.tcache_count=3:glibc.malloc.hugetlb=0'
    assert run(GLIBC_TUNABLES=own)[0].endswith(own) and len(run(GLIBC_TUNABLES=own)[1]) == 1
    half = 'glibc.malloc.hugetlb=0'
    added = f'{half}:glibc.malloc.tcache_count=0' if some else half
    assert run(GLIBC_TUNABLES=half)[0].endswith(f' {added}')
    assert len(run(GLIBC_TUNABLES='', JAXDL_PLAIN='1')[1]) == 1
    # Where it may not be started again it goes on as it is.
    script = (tmp_path / 'again.py').read_text()
    refuse = 'import os\ndef refuse(*_): raise PermissionError\nos.execve = refuse\n'
    (tmp_path / 'again.py').write_text(refuse + script)
    said, starts = run(GLIBC_TUNABLES='')
    assert said == "['a b', '--c=d']" and len(starts) == 1


# ---- what is printed ----

PRINTS = (
    'import os, sys\n'
    'from jaxdl.run import runtime\n'
    'runtime.guard_output()\n'
    'for _ in range(9000): print("3 \\xd7 3 " * 9)\n'
    'lost = runtime.output_error()\n'
    'print("to the end", lost and lost.errno, file=sys.stderr)\n'
)


def printing(stdout, **environment):
    return subprocess.Popen(
        [sys.executable, '-c', PRINTS],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def test_a_reader_that_goes_away_ends_nothing():
    process = printing(subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == 'to the end None\n' and process.wait() == 0


def test_a_full_disk_behind_standard_output_is_noticed_and_ends_nothing():
    with open('/dev/full', 'w') as full:
        process = printing(full)
        assert process.stderr.read() == f'to the end {errno.ENOSPC}\n' and process.wait() == 0
        done = subprocess.run(
            [sys.executable, '-m', 'jaxdl'], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == 'error: standard output cannot be written: No space left on device\n'


def test_a_terminal_of_few_characters_shows_what_it_can():
    ascii_only = dict(LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')
    out, err = printing(subprocess.PIPE, **ascii_only).communicate()
    assert out.splitlines()[-1] == '3 ? 3 ' * 9 and err == 'to the end None\n'


def test_closed_standard_output_and_error_end_nothing():
    words = f'{sys.executable} -m jaxdl'
    assert subprocess.run(f'{words} >&-', shell=True).returncode == 0
    assert subprocess.run(f'{words} no_such_command 2>&-', shell=True).returncode == 2


# ---- devices and folders ----


def test_devices_that_are_not_there_are_one_line():
    code = (
        'from jaxdl import errors; from jaxdl.run import runtime; '
        'raise SystemExit(errors.run(lambda _: runtime.open_devices(), []))'
    )
    for platforms in ('cuda', 'quantum'):
        done = subprocess.run(
            [sys.executable, '-c', code],
            env={**os.environ, 'JAX_PLATFORMS': platforms},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(f'error: JAX_PLATFORMS={platforms}: ')
        assert 'JAX_PLATFORMS=cpu' in done.stderr and 'Traceback' not in done.stderr


def test_without_a_home_nothing_is_cached_and_no_folder_named_after_it(tmp_path, monkeypatch):
    for name in ('HOME', 'JAXDL_CACHE', 'XDG_CACHE_HOME', 'JAX_COMPILATION_CACHE_DIR'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('pwd.getpwuid', {}.__getitem__)  # as for a user id without an entry
    monkeypatch.chdir(tmp_path)
    for given in ('', '~/cache'):
        monkeypatch.setenv('JAXDL_CACHE', given)
        done = {}
        runtime._set_compile_cache(done)
        assert done == {'compile_cache': None} and not list(tmp_path.iterdir())
