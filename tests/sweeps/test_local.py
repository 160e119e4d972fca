"""Real sweeps on this machine: real processes, faults, kills, wrong input."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxdl.commands.sweep import check
from jaxdl.errors import UserError
from jaxdl.record.metrics_file import read_metrics
from jaxdl.sweeps import local, slots
from jaxdl.sweeps.spec import Trial, load_sweep
from jaxdl.sweeps.store import Store
from tests import sweep_chaos
from tests.conftest import ROOT

HEAD = """
from jaxdl.sweeps import *
def get_sweep():
    return Sweep(config='tests/sweep_config.py{variant}', metric='{metric}', {rest})
"""
METRIC = 'eval/test/accuracy'


@pytest.fixture
def sweep(tmp_path):
    """Runs a sweep file; returns the finished process, or a running one with wait=False."""

    def call(rest, *words, variant='', metric=METRIC, wait=True, workdir=True, **env):
        file = tmp_path / 'sweep.py'
        file.write_text(HEAD.format(rest=rest, variant=variant, metric=metric))
        where = [f'--workdir={tmp_path / "out"}'] if workdir else []
        environ = {**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT), **env}
        process = subprocess.Popen(
            [sys.executable, '-m', 'jaxdl', 'sweep', str(file), *where, *words],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if not wait:
            return process
        out, _ = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out)

    call.out = tmp_path / 'out'
    return call


def results(sweep):
    return json.loads((sweep.out / 'results.json').read_text())


def finished_once(sweep, count):
    """Every trial finished, with strictly rising steps and one session to its end."""
    found = results(sweep)
    assert found['counts'] == {'finished': count}
    for trial in found['trials']:
        rows = read_metrics(sweep.out / trial['workdir'] / 'metrics.jsonl')
        steps = [row['step'] for row in rows]
        assert steps == sorted(set(steps)) and steps[-1] == 12
        info = json.loads((sweep.out / trial['workdir'] / 'run.json').read_text())
        assert [s['status'] for s in info['history']].count('finished') == 0
    return found


# ---- wrong input: exit 2 before anything starts ----


@pytest.mark.parametrize(
    ('rest', 'options', 'says'),
    [
        ("points=grid({'optimizer.learning_rat': (1, 2)})", {}, "did you mean 'learning_rate'"),
        ("points=grid({'optimizer.learning_rate': (0.1, 'x')})", {}, 'must be float'),
        ("points=grid({'batch_size': (48, 0)})", {}, 'batch_size=0'),
        ("points=grid({'seed': (1, 1)})", {}, 'are the same'),
        ("points=grid({'optimizer.learning_rate': (0.1, 0.10)})", {}, 'are the same'),
        ("points=[{}, {'optimizer.learning_rate': 0.05}]", {}, 'are the same run'),
        ('', {'metric': 'eval/test/acuracy'}, "did you mean 'eval/test/accuracy'"),
        ('', {'metric': 'eval/validation/accuracy'}, 'no run writes it'),
        ("points=[{'config': 'configs/none.py'}]", {}, 'there is no such file'),
        ("points=Search({'optimizer.lr': uniform(0, 1)}, 3)", {}, 'no field'),
    ],
)
def test_wrong_sweeps(checks, tmp_path, rest, options, says):
    file = tmp_path / 'sweep.py'
    file.write_text(HEAD.format(rest=rest, variant='', metric=options.get('metric', METRIC)))
    with pytest.raises(UserError) as caught:
        check(SimpleNamespace(dry_run=True), load_sweep(str(file)), None, checks, str(file))
    assert says in str(caught.value) and str(file) in str(caught.value)


@pytest.fixture(scope='module')
def checks():
    """The process that reads configs, one for all of these."""
    found = local.Checks(ROOT, {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT)})
    yield found
    found.close()


@pytest.mark.parametrize(
    ('rest', 'metric', 'says'),
    [
        ("points=grid({'optimizer.learning_rat': (1, 2)})", METRIC, "did you mean 'learning_rate'"),
        ('', 'eval/test/acuracy', "did you mean 'eval/test/accuracy'"),
    ],
)
def test_a_wrong_sweep_ends_with_2_before_anything_starts(sweep, rest, metric, says):
    done = sweep(rest, metric=metric)
    assert done.returncode == 2, done.stdout
    assert says in done.stdout and 'Traceback' not in done.stdout
    assert not sweep.out.exists()


@pytest.mark.parametrize(
    ('words', 'says'),
    [
        (['--gpus=7'], 'GPU'),
        (['--slots=-1'], '--slots=-1'),
        (['--slots=2', '--gpus=0'], 'leave it out'),
        (['--vectorize=0'], '--vectorize=0'),
        (['--launcher=cloud'], 'launcher'),
        (['--nonsense'], 'nonsense'),
        (['--hours=3'], '--hours is for --launcher=slurm'),
        (['--launcher=slurm', '--nofork'], '--fork is for --launcher=local'),
        (['another.py'], 'give one FILE, not'),
    ],
)
def test_wrong_flags(sweep, words, says):
    done = sweep('', *words, CUDA_VISIBLE_DEVICES='')
    assert done.returncode == 2 and says in done.stdout and 'Traceback' not in done.stdout
    assert not sweep.out.exists()


def test_a_workdir_is_needed_and_must_be_this_sweep(sweep):
    assert 'missing' in sweep('', workdir=False).stdout
    sweep.out.mkdir()
    (sweep.out / 'thesis.tex').touch()
    done = sweep('')
    assert done.returncode == 2 and 'thesis.tex' in done.stdout


@pytest.mark.slow
def test_dry_run(sweep):
    done = sweep(
        "points=grid({'optimizer.learning_rate': (0.1, 0.2)}), seeds=2", '--dry_run', '--slots=2'
    )
    assert done.returncode == 0, done.stdout
    assert '4 trials, 1 compiled programs' in done.stdout and ' h) on 2 slots' in done.stdout
    assert '0003' in done.stdout and not sweep.out.exists()


# ---- what runs ----


@pytest.mark.slow
def test_a_sweep_and_its_second_call(sweep, tmp_path):
    cache = tmp_path / 'cache'
    rest = "points=grid({'optimizer.learning_rate': (0.02, 0.1)}), seeds=2"
    done = sweep(rest, '--slots=2', JAX_COMPILATION_CACHE_DIR=str(cache))
    assert done.returncode == 0, done.stdout
    found = finished_once(sweep, 4)
    # Learning rates and seeds are arguments of one compiled program.
    entries = [
        name
        for name in os.listdir(cache)
        if name.startswith('jit_train_step') and name.endswith('cache')
    ]
    assert len(entries) == 1
    # The second call starts nothing; the command it prints trains the best trial again.
    again = sweep(rest, '--slots=2')
    assert again.returncode == 0 and results(sweep) == found
    command = again.stdout.strip().splitlines()[-1].strip()
    assert command == found['best']['command'] and command.startswith(
        'python -m jaxdl train --config='
    )
    best = next(t for t in found['trials'] if t['id'] == found['best']['trials'][0])
    words = [sys.executable, *command.split()[1:], f'--workdir={tmp_path / "best"}']
    environ = {**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT)}
    subprocess.run(words, cwd=ROOT, env=environ, check=True, capture_output=True, timeout=200)
    row = read_metrics(tmp_path / 'best' / 'metrics.jsonl')[-1]
    assert row[METRIC] == pytest.approx(best['value'], abs=1e-6)
    # Another sweep is refused here, and so is the same sweep under another base config.
    other = sweep("points=grid({'optimizer.learning_rate': (0.5,)})")
    assert other.returncode == 2 and 'another sweep' in other.stdout
    other = sweep(rest.replace('seeds=2', "seeds=2, overrides={'batch_size': 24}"))
    assert other.returncode == 2 and 'another sweep' in other.stdout


@pytest.mark.slow
def test_faults_are_recorded_and_the_rest_goes_on(sweep, tmp_path):
    mark = tmp_path / 'mark'
    rest = f"""retries=1, hang_timeout=20.0, grace=5.0, points=chain(
        grid({{'data.fault': ('', 'crash', 'memory', 'hang')}}),
        [{{'data.fault': 'once', 'data.mark': {str(mark)!r}}},
         {{'optimizer.learning_rate': 1e30}}])"""
    rest = rest.replace("'hang'", "'hang'").replace('\n', ' ')
    done = sweep(rest + ', ', '--slots=3', variant=':faulty')
    assert done.returncode == 1, done.stdout
    found = results(sweep)
    status = {str(t['varied'].get('data.fault', 'rate')): t for t in found['trials']}
    assert {k: t['status'] for k, t in status.items()} == {
        '': 'finished',
        'crash': 'failed',
        'memory': 'out_of_memory',
        'hang': 'failed',
        'once': 'finished',
        'rate': 'diverged',
    }
    assert 'the disk is on fire' in status['crash']['reason'] and status['crash']['attempts'] == 2
    assert 'hung' in status['hang']['reason'] and status['memory']['attempts'] == 1
    assert status['once']['attempts'] == 2


def test_gpus_are_pinned_and_their_memory_shared(sweep, tmp_path):
    """Two GPUs that a module in place of pynvml shows the sweep; the trials run on the CPU."""
    told = tmp_path / 'told'
    told.mkdir()
    (tmp_path / 'pynvml.py').write_text(
        'import sys\n'
        'class NVMLError(Exception): pass\n'
        'def nvmlInit():\n    if "jax" in sys.modules: raise NVMLError\n'
        'def nvmlShutdown(): pass\n'
        'def nvmlDeviceGetCount(): return 2\n'
    )
    environ = {'PYTHONPATH': f'{tmp_path}:{ROOT}', 'JAX_PLATFORMS': 'cpu'}
    rest = (
        "points=grid({'optimizer.learning_rate': (0.02, 0.1)}), seeds=2, "
        f"overrides={{'data.fault': 'tell', 'data.mark': {str(told)!r}}}"
    )
    wrong = sweep(rest, '--gpus=0,2', variant=':faulty', **environ)
    assert wrong.returncode == 2 and 'no GPU 2; this machine shows GPUs 0, 1' in wrong.stdout
    assert not sweep.out.exists()
    done = sweep(rest, '--per_gpu=2', variant=':faulty', **environ)
    assert done.returncode == 0, done.stdout
    # Without a GPU: the process that looked for the metric's name.
    assert sorted([variables for p in told.iterdir() if (variables := json.loads(p.read_text()))[0]]) == [
        ['0', '0.4500'], ['0', '0.4500'], ['1', '0.4500'], ['1', '0.4500'],
    ]  # fmt: skip
    places = [trial['place'] for trial in finished_once(sweep, 4)['trials']]
    assert sorted(places) == ['gpu 0.0', 'gpu 0.1', 'gpu 1.0', 'gpu 1.1']


def test_what_the_kernel_kills_for_memory_is_recorded_as_such(tmp_path, monkeypatch):
    """The kernel's counter is a file of the test's: a real shortage would hit everybody."""
    counter = tmp_path / 'vmstat'
    counter.write_text('nr_free_pages 5\noom_kill 3\n')
    monkeypatch.setattr(local, 'VMSTAT', counter)
    assert local.oom_kills() == 3
    place = slots.cpu_slots(1)
    for kills in (3, 4):
        folder = tmp_path / str(kills)
        (folder / 'logs').mkdir(parents=True)
        launcher = local.Local(
            folder, place, fork=True, env={'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
        )
        trial = Trial('0000', 0, {}, None, 'tests/sweep_config.py:faulty', {'data.fault': 'killed'})
        try:
            counter.write_text('oom_kill 3\n')
            launcher.start([local.Job([trial])])
            counter.write_text(f'oom_kill {kills}\n')
            ended = []
            while not ended:
                ended = launcher.poll(1.0)
        finally:
            launcher.close()
        assert ended[0].code == -9 and ended[0].seconds > 0
        assert ('Out of memory' in local.log_path(folder, trial).read_text()) == (kills > 3)


@pytest.mark.slow
def test_fresh_processes_give_the_same_as_forked_ones(sweep):
    rest = "points=grid({'optimizer.learning_rate': (0.02, 0.1)})"
    assert sweep(rest, '--slots=2').returncode == 0
    forked = [t['value'] for t in finished_once(sweep, 2)['trials']]
    os.rename(sweep.out, sweep.out.parent / 'forked')
    assert sweep(rest, '--slots=2', '--nofork').returncode == 0
    assert [t['value'] for t in finished_once(sweep, 2)['trials']] == forked
    info = json.loads((sweep.out / 'trials' / '0000' / 'run.json').read_text())
    assert 'late' not in info['environment'] and ' -m jaxdl train ' in info['command']


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# ---- the process of a trial ----


FACTS = """
import ctypes, json, multiprocessing, os, signal, sys, time
from pathlib import Path
def get_config():
    import jax
    from jax._src import xla_bridge
    death = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(death), 0, 0, 0)
    parent = os.getppid()
    facts = {
        'pid': os.getpid(), 'parent': parent, 'session': os.getsid(0), 'death': death.value,
        'backend': xla_bridge.backends_are_initialized(), 'cores': sorted(os.sched_getaffinity(0)),
        'threads of the parent': len(os.listdir(f'/proc/{parent}/task')),
        'program': Path('/proc/self/cmdline').read_text(), 'stdin': os.readlink('/proc/self/fd/0'),
        'stdout': os.readlink('/proc/self/fd/1'), 'main': sys.modules['__main__'].__file__,
        'heap': os.environ.get('GLIBC_TUNABLES', ''), 'env': dict(os.environ), 'argv': sys.argv,
        'preloaded': 'jaxdl.run.loop' in sys.modules,
    }
    if os.environ.get('END') == 'with a worker':
        if not os.fork():
            time.sleep(600)
    place = Path(__file__).parent / 'facts.json'
    place.with_suffix('.tmp').write_text(json.dumps(facts))
    place.with_suffix('.tmp').rename(place)
    end = os.environ.get('END', '7')
    if end == 'spawn':
        worker = multiprocessing.get_context('spawn').Process(target=os.getcwd)
        worker.start()
        worker.join()
        end = 7 + worker.exitcode
    if end == 'with a worker':
        os.kill(os.getpid(), signal.SIGKILL)
    if end == 'sleep':
        time.sleep(600)
    sys.exit(int(end))
"""
TRIAL_ENV = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT)}


def start(folder, end='7', *, fork=True, cpus=(), deterministic=False):
    """A launcher with one running trial that writes down what it finds about its own process."""
    (folder / 'logs').mkdir()
    (folder / 'facts.py').write_text(FACTS)
    slot = slots.Slot('cpu 0', (('END', end), ('CUDA_VISIBLE_DEVICES', '3')), cpus)
    launcher = local.Local(folder, [slot], fork=fork, env=TRIAL_ENV)
    trial = Trial('0000', 0, {}, None, str(folder / 'facts.py'), {'seed': 5})
    trial.deterministic = deterministic
    launcher.start([local.Job([trial])])
    return launcher


def facts_of(folder):
    wait_for((folder / 'facts.json').exists)
    return json.loads((folder / 'facts.json').read_text())


def ended(launcher):
    found = []
    while not found:
        found = launcher.poll(1.0)
    return found[0]


@pytest.mark.parametrize('how', ['forked', 'fresh', 'deterministic'])
def test_the_process_of_a_trial(tmp_path, monkeypatch, how):
    """Its own session, cores, files and variables; no device is open when its config is read."""
    monkeypatch.delenv('OPENBLAS_NUM_THREADS', raising=False)
    core = max(os.sched_getaffinity(0))
    options = {'fork': how != 'fresh', 'deterministic': how == 'deterministic'}
    launcher = start(tmp_path, cpus=(core,), **options)
    assert ended(launcher).code == 7 and not launcher.jobs and launcher.free() == 1
    facts = facts_of(tmp_path)
    assert facts['session'] == facts['pid'] and facts['death'] == signal.SIGTERM
    assert not facts['backend'] and facts['cores'] == [core]
    assert facts['stdin'] == os.devnull and facts['stdout'] == str(tmp_path / 'logs' / '0000.txt')
    assert facts['env']['CUDA_VISIBLE_DEVICES'] == '3' and local.MARK in facts['env']
    assert 'OPENBLAS_NUM_THREADS' not in facts['env'] and 'glibc.malloc' in facts['heap']
    assert facts['main'] == facts['argv'][0] == str(ROOT / 'jaxdl' / '__main__.py')
    assert facts['argv'][-1] == '--config.seed=5'
    if how == 'forked':
        assert 'forkserver' in facts['program'] and facts['threads of the parent'] == 1
        # glibc has read the tunables: they were there when the fork server's program started.
        assert b'glibc.malloc' in Path(f'/proc/{facts["parent"]}/environ').read_bytes()
        assert facts['preloaded']
    else:
        assert 'forkserver' not in facts['program'] and 'jaxdl\0train' in facts['program']


def test_a_forked_trial_can_start_workers(tmp_path):
    """As Grain does: each runs the file of the trial's `__main__` again."""
    assert ended(start(tmp_path, 'spawn')).code == 7, (tmp_path / 'logs' / '0000.txt').read_text()


def is_gone(pid):
    try:
        return 'Z' in Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
    except OSError:
        return True


def test_workers_end_with_a_trial_that_was_killed(tmp_path):
    launcher = start(tmp_path, 'with a worker')
    assert ended(launcher).code == -signal.SIGKILL
    session = facts_of(tmp_path)['session']

    def members():
        found = []
        for path in Path('/proc').glob('[0-9]*/stat'):
            with contextlib.suppress(OSError):
                words = path.read_text().rpartition(')')[2].split()
                found += [path] if int(words[3]) == session and words[0] != 'Z' else []
        return found

    wait_for(lambda: not members())


def test_kill_9_of_the_fork_server_ends_its_trials_and_the_next_one_starts(tmp_path):
    launcher = start(tmp_path, 'sleep')
    facts = facts_of(tmp_path)
    os.kill(facts['parent'], signal.SIGKILL)
    assert ended(launcher).code == local.LOST
    wait_for(lambda: is_gone(facts['pid']))
    (tmp_path / 'again').mkdir()
    assert ended(start(tmp_path / 'again')).code == 7


SWEEP = """
import sys
from pathlib import Path
from tests.sweeps import test_local
launcher = test_local.start(Path(sys.argv[1]), 'sleep')
while True:
    launcher.poll(1.0)
"""


def test_kill_9_of_the_sweep_ends_its_trials(tmp_path):
    environ = {**os.environ, **TRIAL_ENV}
    sweep = subprocess.Popen([sys.executable, '-c', SWEEP, str(tmp_path)], cwd=ROOT, env=environ)
    facts = facts_of(tmp_path)
    assert not is_gone(facts['pid'])
    sweep.kill()
    sweep.wait()
    wait_for(lambda: is_gone(facts['pid']) and is_gone(facts['parent']))


def test_a_check_that_is_killed_is_no_mistake_of_the_user(sweep, tmp_path):
    config = tmp_path / 'dies.py'
    config.write_text('import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n')
    done = sweep(f"points=[{{'config': {str(config)!r}}}]")
    assert done.returncode == 1 and 'checks the trials was killed' in done.stdout, done.stdout
    assert not sweep.out.exists()


# ---- kills ----


def running(sweep):
    """Process ids that own a trial's folder."""
    store = Store(sweep.out)
    return [store.owner(p.parent.name) for p in sweep.out.glob('trials/*/.lock')]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_interrupted_and_called_again(sweep):
    rest = "points=grid({'optimizer.learning_rate': (0.02, 0.1)}), seeds=2, retries=0"
    process = sweep(rest, '--slots=2', wait=False)
    wait_for(lambda: len(list(sweep.out.glob('trials/*/metrics.jsonl'))) >= 2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and 'the same command resumes' in out, out
    assert len(running(sweep)) >= 2 and not any(alive(pid) for pid in running(sweep))
    done = sweep(rest, '--slots=2')
    assert done.returncode == 0, done.stdout
    finished_once(sweep, 4)


@pytest.mark.slow
def test_killed_at_random(tmp_path, monkeypatch):
    """A small `python -m tests.sweep_chaos`: equal bit for bit to a sweep that nobody touched."""
    monkeypatch.setenv('XLA_FLAGS', '')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    done, wrong = sweep_chaos.run(
        tmp_path, trials=4, slots=2, kills=1, trial_kills=1, steps=60, seed=0
    )
    assert not wrong
    assert (done['sweep kills'], done['trial kills']) == (1, 1)


@pytest.mark.slow
def test_vectorized_sweep_is_the_same_sweep(sweep):
    rest = (
        "points=chain(grid({'optimizer.learning_rate': (0.02, 0.1)}), "
        "[{'model.dropout': 0.0}, {'batch_size': 24}]), seeds=2"
    )
    done = sweep(rest, '--slots=2', '--vectorize=4')
    assert done.returncode == 0, done.stdout
    together = finished_once(sweep, 8)
    infos = [
        json.loads((sweep.out / t['workdir'] / 'run.json').read_text()) for t in together['trials']
    ]
    # One group of four; without dropout it is another program, and so is another batch size.
    assert [info['together'] for info in infos] == [4, 4, 4, 4, 2, 2, 2, 2]
    os.rename(sweep.out, sweep.out.parent / 'together')
    assert sweep(rest, '--slots=2').returncode == 0
    alone = finished_once(sweep, 8)
    for a, b in zip(together['trials'], alone['trials'], strict=True):
        assert a['value'] == pytest.approx(b['value'], abs=1e-5)
        assert a['metrics']['train/loss'] == pytest.approx(b['metrics']['train/loss'], rel=1e-5)
    assert together['best']['trials'] == alone['best']['trials']


@pytest.mark.slow
def test_a_search_with_early_stopping(sweep):
    rest = (
        "points=Search({'optimizer.learning_rate': log_uniform(1e-5, 0.3)}, 5, 'random'), "
        "stopping=Median(trials=1), overrides={'eval_every': 3}"
    )
    done = sweep(rest, '--slots=1')
    assert done.returncode == 0, done.stdout
    found = results(sweep)
    assert len(found['trials']) == 5 and found['counts'].get('finished', 0) >= 2
    again = sweep(rest, '--slots=1')
    assert again.returncode == 0 and results(sweep)['trials'] == found['trials']
