"""Signals and the watchdog, in processes that load nothing heavy."""

import subprocess
import sys

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
    assert found.returncode == 75 and found.stdout == 'SIGTERM\n'
    assert 'a second signal stops at once' in found.stderr
    assert 'second signal: stopping at once, without another save' in found.stderr


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
