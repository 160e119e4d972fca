"""The process that trials are forked from: everything is imported once, no device is open.

A trial that is forked starts at once instead of importing jax for seconds. That is sound because
this process has one thread and opens no backend: a device is opened after the fork, under the
trial's own CUDA_VISIBLE_DEVICES. If a config opens one while it is read, trials are started as fresh
processes instead.

It reads one JSON object a line from stdin and answers on stdout:
    {"do": "check", "trials": […]}                  → {"checked": […], "forks": bool}
    {"do": "names", "config": …, "words": […]}      → {"names": […]} or {"error": …}
    {"do": "start", "id", "module", "argv", "env", "cpus", "log", "fork"} → {"started": id, "pid": …}
    {"do": "signal", "id", "number", "group"}
    when a trial ends                               → {"exited": id, "code": …, "seconds": …}
At the end of stdin it tells all trials to stop (they save) and waits for them; if it is killed
itself, the kernel tells them.
"""

import ctypes
import json
import os
import runpy
import select
import signal
import sys
import time
import traceback
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / 'train.py'
# Read once, like the modules: who edits the code while a sweep runs does not mix two versions.
_SOURCE = SCRIPT.read_bytes()
_PR_SET_PDEATHSIG = 1


class Server:
    """Starts trials and reports how they end."""

    def __init__(self, commands: int, answers: int):
        self.commands, self.answers = commands, answers
        self.running: dict[int, str] = {}
        self.started: dict[int, float] = {}
        self.buffer = b''
        self.libc = ctypes.CDLL(None, use_errno=True)
        # A child that ends makes the loop's select return.
        self.wake, wake = os.pipe()
        self.wake_write = wake
        for end in (self.wake, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the sweep, which tells us

    def say(self, message: dict) -> None:
        data = (json.dumps(message) + '\n').encode()
        while data:
            data = data[os.write(self.answers, data) :]

    def serve(self) -> None:
        while True:
            ready, _, _ = select.select([self.commands, self.wake], [], [])
            if self.wake in ready:
                os.read(self.wake, 4096)
            self.reap()
            if self.commands in ready:
                data = os.read(self.commands, 1 << 20)
                if not data:
                    return self.end()
                *lines, self.buffer = (self.buffer + data).split(b'\n')
                for line in lines:
                    getattr(self, 'do_' + json.loads(line)['do'])(json.loads(line))

    def reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            # Worker processes of a trial that was killed must not go on without it. Its number is
            # its own until it is reaped.
            _kill_group(ended.si_pid, signal.SIGKILL)
            _, status = os.waitpid(ended.si_pid, 0)
            name = self.running.pop(ended.si_pid, None)
            seconds = time.monotonic() - self.started.pop(ended.si_pid, time.monotonic())
            if name is not None:
                code = os.waitstatus_to_exitcode(status)
                self.say({'exited': name, 'code': code, 'seconds': round(seconds, 3)})

    def end(self) -> None:
        """The sweep is gone: its trials save and stop; nobody is left to hear how they ended."""
        self.say = lambda message: None
        for pid in self.running:
            os.kill(pid, signal.SIGTERM)
        while self.running:
            time.sleep(0.05)
            self.reap()

    # ---- commands ----

    def do_check(self, message: dict) -> None:
        from jaxdl.sweeps import check

        checked = check.check_trials(message['trials'])
        self.say({'checked': checked, 'forks': _can_fork()})

    def do_names(self, message: dict) -> None:
        """In a process of its own, because it opens a backend."""
        read, write = os.pipe()
        if not os.fork():
            os.close(read)
            answer = _names(message)
            with os.fdopen(write, 'w') as file:
                json.dump(answer, file)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as file:
            text = file.read()
        self.say(json.loads(text) if text else {'unknown': 'the check was killed'})

    def do_start(self, message: dict) -> None:
        parent, now = os.getpid(), time.monotonic()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                self.become(message, parent)
                code = _run(message)
            except BaseException:
                traceback.print_exc()
            finally:
                # Every file is closed by now; the interpreter's own tear-down would only cost time.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        self.running[pid], self.started[pid] = message['id'], now
        self.say({'started': message['id'], 'pid': pid})

    def do_signal(self, message: dict) -> None:
        for pid, name in self.running.items():
            if name == message['id']:
                if message.get('group'):
                    _kill_group(pid, message['number'])
                os.kill(pid, message['number'])  # not yet reaped, so the number is still its own

    # ---- the child ----

    def become(self, message: dict, parent: int) -> None:
        """Turns the forked child into a process of its own: session, signals, files, device."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self.libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(75)
        for end in (self.commands, self.answers, self.wake, self.wake_write):
            os.close(end)
        log = os.open(message['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(old, new)
        os.close(log)
        os.close(nothing)
        try:  # short of memory the kernel shall end a trial, not the sweep
            Path('/proc/self/oom_score_adj').write_text('500')
        except OSError:
            pass
        for name, value in message['env'].items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if message.get('cpus'):
            os.sched_setaffinity(0, message['cpus'])


def _kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _can_fork() -> bool:
    """Whether this process still has one thread and no open device."""
    from jax._src import xla_bridge

    try:
        threads = len(os.listdir('/proc/self/task'))
    except OSError:
        threads = 1
    return threads == 1 and not xla_bridge.backends_are_initialized()


def _run(message: dict) -> int:
    """Runs a program in this process, or in its place; returns its exit code."""
    script = str(SCRIPT) if message['module'] == 'train' else ''
    if not message['fork']:
        program = [script] if script else ['-m', message['module']]
        os.execv(sys.executable, [sys.executable, *program, *message['argv']])
    sys.argv = [script or message['module'], *message['argv']]
    shown = ['train.py'] if script else ['-m', message['module']]
    sys.orig_argv = [sys.executable, *shown, *message['argv']]
    try:
        if script:
            # Not by runpy, which reads the file again; worker processes find it by __file__.
            main = sys.modules['__main__'] = types.ModuleType('__main__')
            main.__file__ = script
            exec(compile(_SOURCE, script, 'exec'), main.__dict__)
        else:
            runpy.run_module(message['module'], run_name='__main__', alter_sys=True)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
            return 1
        return int(error.code or 0)
    return 0


def _names(message: dict) -> dict:
    from jaxdl.errors import UserError
    from jaxdl.sweeps import check

    try:
        return {'names': check.metric_names(message['config'], message['words'])}
    except UserError as error:
        return {'error': str(error)}
    except Exception as error:
        return {'unknown': f'{type(error).__name__}: {error}'}


def main() -> None:
    # Answers go to what was stdout; what configs and libraries print goes to stderr.
    commands, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    nothing: Any = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    for end in (commands, answers):
        os.set_inheritable(end, False)
    server = Server(commands, answers)
    from jaxdl.run import runtime

    runtime.prepare_process()
    # numpy's BLAS would start a thread, and a process with threads cannot be forked safely.
    ours = 'OPENBLAS_NUM_THREADS' not in os.environ
    os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
    import numpy  # noqa: F401

    if ours:
        del os.environ['OPENBLAS_NUM_THREADS']
    from orbax.checkpoint import v1  # noqa: F401  what a trial needs, imported once for all

    import jaxdl.run.loop  # noqa: F401

    server.serve()


if __name__ == '__main__':
    from jaxdl.run.runtime import restart_with_tuned_heap

    restart_with_tuned_heap()
    main()
