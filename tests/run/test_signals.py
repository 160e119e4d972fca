"""Signals and the watchdog, in processes that load nothing heavy."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxdl.run import signals
from tests.chaos import ROOT


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_the_second_signal_exits_at_once():
    found = run(
        'import os, signal, time\n'
        'from jaxdl.run.signals import StopRequest\n'
        'with StopRequest() as stop:\n'
        '    os.kill(os.getpid(), signal.SIGTERM)\n'
        '    print(stop.name, flush=True)\n'
        '    os.kill(os.getpid(), signal.SIGINT)\n'
        '    print("still here", flush=True)\n'
    )
    assert found.returncode == 1 and found.stdout == 'SIGTERM\n'
    assert 'a second signal stops at once' in found.stderr
    assert 'second signal: stopping at once, without another save' in found.stderr


# A lock taken twice stands for a compiler: other threads run, but no handler of Python's does.
LISTENING = (
    'import ctypes, os, signal, sys\n'
    'from jaxdl.run import signals\n'
    'signals.block(); signals.listen()\n'
    'def compile():\n'
    '    lock = (ctypes.c_char * 64)()\n'
    '    for _ in range(2): ctypes.CDLL(None).pthread_mutex_lock(lock)\n'
    'print("ready", flush=True)\n'
)


def interrupted(code: str, *numbers: int) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `code` that gets these signals in turn."""
    process = subprocess.Popen(
        [sys.executable, '-c', LISTENING + code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == 'ready\n'
    try:
        for number in numbers:
            time.sleep(0.5)
            process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize('number', signals.STOP_SIGNALS)
def test_with_nothing_to_save_the_first_signal_ends_even_a_compiler(number):
    code, _, err = interrupted('compile()', number)
    assert code == 75 and f'preempted: {number.name}: there was nothing to save' in err


def test_what_is_to_be_noted_is_noted_before_the_end():
    code, out, _ = interrupted(
        'note = lambda reason: print("noted", reason, flush=True)\n'
        'with signals.StopRequest(note): compile()',
        signal.SIGTERM,
    )
    assert code == 75 and out.startswith('noted SIGTERM: there was nothing to save')


def test_with_something_to_save_the_second_signal_ends_even_a_compiler():
    code, _, err = interrupted(
        'with signals.StopRequest(): compile()', signal.SIGUSR1, signal.SIGINT
    )
    assert code == 1 and 'SIGUSR1: finishing the step' in err and 'second signal' in err


def test_other_handlers_and_forked_processes_keep_theirs():
    """A handler that a scheduler installs is its own; a child's signal is not its parent's."""
    code, out, err = interrupted(
        'heard = []\n'
        'signal.signal(signal.SIGTERM, lambda *_: heard.append("TERM"))\n'
        'child = os.fork()\n'
        'if not child: compile(); os._exit(0)\n'
        'os.kill(child, signal.SIGINT)\n'
        'status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n'
        'import time\n'
        'while not heard: time.sleep(0.01)\n'
        'print(heard, status, flush=True)',
        signal.SIGTERM,
    )
    assert (code, out) == (0, "['TERM'] -2\n"), err


def test_a_signal_waits_through_an_exec():
    """Blocked by the first line, heard by the program that takes this one's place."""
    found = run(
        'import os, signal, sys\n'
        'from jaxdl.run import signals\n'
        'signals.block(); os.kill(os.getpid(), signal.SIGTERM)\n'
        'second = "from jaxdl.run import signals; print(1, flush=True); signals.listen(); print(2)"\n'
        'os.execv(sys.executable, [sys.executable, "-c", second])\n'
    )
    assert (found.returncode, found.stdout) == (75, '1\n'), found.stderr


def test_a_command_that_is_over_keeps_its_exit_code():
    """While the interpreter still cleans up, and after it gave up its own threads."""
    code, _, err = interrupted('signals.command_is_over(3); compile()', signal.SIGTERM)
    assert (code, err) == (3, '')
    found = run(
        'import atexit, os, signal\n'
        'class Last:\n'
        '    def __del__(self): os.kill(os.getpid(), signal.SIGTERM)\n'
        'import sys; sys.last = Last()\n'
        'from jaxdl.run import signals\n'
        'signals.listen()\n'
        'signals.command_is_over(0)\n'
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize('number', signals.STOP_SIGNALS)
@pytest.mark.parametrize('words', [['train.py'], ['-m', 'jaxdl', 'evaluate']])
def test_a_command_hears_signals_from_its_first_line_on(words, number):
    """Sent as soon as the kernel says that the process blocks or catches them, before any import."""
    process = subprocess.Popen(
        [sys.executable, *words, '--config=digits_cnn', '--workdir=none'],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def prepared() -> bool:
        lines = Path(f'/proc/{process.pid}/status').read_text().splitlines()
        masks = dict(line.split(':\t') for line in lines if line.startswith(('SigBlk', 'SigCgt')))
        bit = 1 << (signal.SIGUSR1 - 1)
        return any(int(mask, 16) & bit for mask in masks.values())

    while not prepared():
        assert process.poll() is None
    process.send_signal(number)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 75, said
    assert (
        said
        == f'\npreempted: {number.name}: there was nothing to save; the same command starts again\n'
    )


TRAINS = """
import sys
from jaxdl.run import loop, runtime
from tests import faulty
from tests.run.test_loop import FAULTS, first_id
FAULTS['train', first_id(6)] = faulty.send({number})
def main(argv):
    loop.train(faulty.config(steps=100, log_every=1), argv[0])
sys.exit(runtime.program(main, [sys.argv[1]], tuned_heap=False))
"""


def test_a_command_that_has_trained_saves(tmp_path):
    """The first signal ends a command at once only as long as nothing was trained."""
    code = TRAINS.format(number=int(signal.SIGTERM))
    done = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path / 'run')],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 75, done.stderr
    assert 'preempted: SIGTERM at step ' in done.stderr and '; saved' in done.stderr
    saved = [int(path.name) for path in (tmp_path / 'run' / 'checkpoints').glob('[0-9]*')]
    assert saved and f'at step {max(saved)};' in done.stderr


def test_the_old_handlers_come_back():
    found = run(
        'import signal\n'
        'from jaxdl.run.signals import STOP_SIGNALS, StopRequest\n'
        'before = [signal.getsignal(s) for s in STOP_SIGNALS]\n'
        'with StopRequest():\n'
        '    assert [signal.getsignal(s) for s in STOP_SIGNALS] != before\n'
        'assert [signal.getsignal(s) for s in STOP_SIGNALS] == before\n'
    )
    assert found.returncode == 0, found.stderr


def test_a_hang_prints_all_stacks_and_ends():
    found = run(
        'import threading, time\n'
        'from jaxdl.run.signals import Watchdog\n'
        'def stuck_reader(): time.sleep(60)\n'
        'threading.Thread(target=stuck_reader, daemon=True).start()\n'
        'watchdog = Watchdog(0.2, lambda reason: print("reported:", reason, flush=True))\n'
        'watchdog.beat()\n'
        'def stuck_step(): time.sleep(60)\n'
        'stuck_step()\n'
    )
    assert found.returncode == 1
    assert 'in stuck_reader' in found.stderr and 'in stuck_step' in found.stderr
    assert 'ERROR: no step for 0.2 s (config.hang_timeout)' in found.stderr
    assert (
        found.stdout == 'reported: no step for 0.2 s (config.hang_timeout); all stacks are above\n'
    )


def test_what_is_slow_for_a_reason_is_no_hang():
    found = run(
        'import time\n'
        'from jaxdl.run.signals import Watchdog\n'
        'watchdog = Watchdog(0.2, print)\n'
        'time.sleep(0.6)\n'  # before the first step
        'with watchdog.paused(): time.sleep(0.6)\n'  # compiling
        'for _ in range(8):\n'
        '    watchdog.beat(); time.sleep(0.05)\n'
        'watchdog.rest(); time.sleep(0.6)\n'
        'Watchdog(0, print).beat(); time.sleep(0.3)\n'  # switched off
        'print("fine")\n'
    )
    assert found.returncode == 0 and found.stdout == 'fine\n', found.stderr
