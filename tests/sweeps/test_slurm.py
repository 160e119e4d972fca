"""Sweeps on a real Slurm with one node and two fake GPUs, where Slurm is installed (tests/slurm)."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jaxdl.errors import UserError
from jaxdl.files import write_json
from jaxdl.record.metrics_file import read_metrics
from jaxdl.sweeps import slurm, slurm_job
from jaxdl.sweeps.local import Job
from jaxdl.sweeps.spec import Trial
from jaxdl.sweeps.store import Store
from tests.conftest import ROOT

SETUP = ROOT / 'tests' / 'slurm' / 'setup.sh'
TOOLS = ('slurmctld', 'slurmd', 'munged', 'sbatch', 'setpriv')
METRIC = 'eval/test/accuracy'
SLURM = (
    '--launcher=slurm',
    '--cpus_per_trial=1',
)

pytestmark = pytest.mark.timeout(900)
needs_slurm = pytest.mark.skipif(
    os.geteuid() != 0 or not all(shutil.which(name) for name in TOOLS),
    reason='no Slurm on this machine, or not root: apt-get install slurm-wlm munge',
)


# ---- without a cluster --------------------------------------------------------------------------


OPTIONS = dict(
    most=None, partition='', hours=1.0, gpus=1, cpus=2, memory_gb=0.0, options='', grace=30.0
)


def test_without_slurm_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(UserError, match='sbatch and srun are not on this machine'):
        slurm.Slurm(tmp_path, **OPTIONS)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """sbatch, srun, squeue and scancel as scripts that write down what they are asked."""
    folder = tmp_path / 'tools'
    folder.mkdir()
    scripts = {
        'sbatch': 'cat > {0}/script; case "$*" in *account=bad*) echo "sbatch: error: bad lab" >&2; exit 1;; '
        '*--parsable*) echo "12;here";; esac',
        'srun': 'shift 2; exec "$@"',
        'squeue': 'cat {0}/queue',
        'scancel': 'true',
    }
    for name, script in scripts.items():
        file = folder / name
        file.write_text(
            f'#!/bin/bash\necho {name} "$@" >> {{0}}/asked\n{script}\n'.replace(
                '{0}', str(tmp_path)
            )
        )
        file.chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    return tmp_path


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'options': 'account=lab'}, "'account=lab' is no option"),
        ({'options': '--qos=low --array=1-4'}, '--array is set by the sweep itself'),
        ({'options': '--arr=1-4'}, '--arr is set by the sweep itself'),
        ({'options': "--qos='low"}, 'No closing quotation'),
        ({'options': '--account=bad'}, 'bad lab'),
        ({'hours': 0.01, 'grace': 120.0}, 'too short'),
    ],
)
def test_wrong_options(tools, changes, says):
    with pytest.raises(UserError, match=says):
        slurm.Slurm(tools / 'out', **{**OPTIONS, **changes})
    assert not (tools / 'out').exists()


def test_an_array_its_results_and_its_jobs_taken_over(tools):
    """The script that sbatch is given is run as Slurm would, once for every job of the array."""
    for name in ('logs', 'state'):
        (tools / 'out' / name).mkdir(parents=True)
    file = "it's.py"
    trials = [Trial(f'000{i}', i, {}, None, file, {'x': (1, 'a b')}) for i in range(3)]
    options = {**OPTIONS, 'partition': 'gpu', 'memory_gb': 1.5, 'options': '--qos=low'}
    launcher = slurm.Slurm(tools / 'out', **options)
    launcher.start([Job(trials[:1]), Job(trials[1:])])
    asked = (tools / 'asked').read_text().splitlines()[-1]
    for word in ('--array=0-1', '--cpus-per-task=2', '--mem=1536M', '--partition=gpu', '--qos=low'):
        assert word in asked.split()
    # A program in place of the interpreter: it shows what it is given.
    script = (tools / 'script').read_text().replace(sys.executable, str(tools / 'python'))
    (tools / 'python').write_text(
        f'#!/bin/bash\n[ "$3" = jaxdl.sweeps.slurm_job ] && exec {sys.executable} "$@"\n'
        'printf "<%s>" "$@"; exit 3\n'
    )
    (tools / 'python').chmod(0o755)
    for index in range(2):
        environ = {**os.environ, 'SLURM_ARRAY_JOB_ID': '12', 'SLURM_ARRAY_TASK_ID': str(index)}
        subprocess.run(['bash', '-c', script], env=environ, cwd=ROOT, check=True)
    assert launcher.poll(0.0)[0].code == 3 and not launcher.jobs
    said = (tools / 'out' / 'logs' / '0000.txt').read_text()
    assert f'<--config={file}>' in said and "<--config.x=(1, 'a b')>" in said
    assert '<--trials=0001,0002>' in (tools / 'out' / 'logs' / '0001.txt').read_text()
    # The next call finds one of the two in the queue, and a third that was never written down.
    (tools / 'queue').write_text('12_1|RUNNING|node7\n13_0|PENDING|\n')
    again = slurm.Slurm(tools / 'out', **options)
    (job,) = again.adopt(trials)
    assert [t.id for t in job.trials] == ['0001', '0002'] and job.place == 'node7 12_1'
    assert (tools / 'asked').read_text().splitlines()[-1] == 'scancel 13_0'


def test_a_job_is_stopped_or_vanishes(tools, monkeypatch):
    monkeypatch.setattr(slurm, 'LOOK_EVERY', 0.0)
    (tools / 'out' / 'logs').mkdir(parents=True)
    launcher = slurm.Slurm(tools / 'out', **OPTIONS)
    job = Job([Trial('0000', 0, {}, None, 'a.py', {})])
    launcher.start([job])
    (tools / 'queue').write_text('12_0|RUNNING|node7\n')
    assert launcher.poll(0.0) == [] and job.started and job.place == 'node7 12_0'
    launcher.stop(job)
    launcher.stop(job, now=True)
    asked = (tools / 'asked').read_text().splitlines()[-3:]
    assert asked == [f'scancel {word}12_0' for word in ('--state=PENDING ', '--signal=TERM ', '')]
    (tools / 'queue').write_text('')
    ended = [launcher.poll(0.0) for _ in range(2)]
    assert ended == [[], [job]] and job.code == -signal.SIGKILL
    assert 'Slurm job 12_0 ended: gone' in (tools / 'out' / 'logs' / '0000.txt').read_text()


def test_nothing_in_a_folder_that_others_can_write_is_run(tools):
    """Pickles and damaged files where jobs leave their results: no code of theirs runs."""
    marker = tools / 'run by somebody'

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    (tools / 'out' / 'logs').mkdir(parents=True)
    launcher = slurm.Slurm(tools / 'out', **OPTIONS)
    launcher.start([Job([Trial('0000', 0, {}, None, 'a.py', {})])])
    for name in ('12_0.json', '12_0_result.pkl', '12_0_submitted.pkl', '12_0_0_result.pkl'):
        (tools / 'out' / 'slurm' / name).write_bytes(pickle.dumps(Evil()))
    assert [ended.code for ended in launcher.poll(0.0)] == [1] and not marker.exists()
    assert '12_0.json is damaged' in (tools / 'out' / 'logs' / '0000.txt').read_text()
    (tools / 'queue').write_text('12_0|RUNNING|node7\n')
    (tools / 'out' / 'slurm' / '12.json').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r'12\.json is damaged'):
        slurm.Slurm(tools / 'out', **OPTIONS).adopt([])
    assert not marker.exists()


SAVES = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def stop(*_):
    (folder / 'trials/0000/checkpoints/7').mkdir(parents=True)
    sys.exit(int(sys.argv[2]))
signal.signal(signal.SIGUSR1, stop)
print('ready', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ('code', 'meant', 'state', 'back'),
    [
        (75, '', 'RUNNING', True),
        (75, 'sweep', 'RUNNING', False),
        (75, '', 'COMPLETING PreemptTime=None', False),  # cancelled by hand
        (75, '', 'COMPLETING PreemptTime=2026-01-01T00:00:00', True),
        (0, '', 'RUNNING', False),  # it had just finished
        (3, '', 'RUNNING', False),  # it diverged
    ],
)
def test_a_job_that_slurm_ends_goes_back_into_the_queue(
    tmp_path, monkeypatch, code, meant, state, back
):
    """A job with real processes and signals; scontrol alone is a script that writes down its words."""
    tools = tmp_path / 'tools'
    tools.mkdir()
    scontrol = tools / 'scontrol'
    scontrol.write_text(
        f'#!/bin/sh\n[ "$2" = show ] && echo JobId=12 JobState={state} && exit\n'
        f'echo "$@" >> {tmp_path}/asked\nexit 1\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tools}:{os.environ["PATH"]}')
    monkeypatch.setenv('SLURM_ARRAY_JOB_ID', '12')
    monkeypatch.setenv('SLURM_ARRAY_TASK_ID', '3')
    log = tmp_path / 'logs' / '0000.txt'
    log.parent.mkdir()
    program = tmp_path / 'program.py'
    program.write_text(SAVES)
    words = ['', str(tmp_path), '0000', sys.executable, str(program), str(tmp_path), f'{code}']
    monkeypatch.setattr(slurm_job.time, 'sleep', lambda _: None)
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        os._exit(slurm_job.main(words))
    while 'ready' not in (log.read_text() if log.exists() else ''):
        os.sched_yield()
    if meant:
        write_json(tmp_path / 'state' / '0000.json', {'stopping': meant})
    os.killpg(pid, signal.SIGUSR1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert json.loads((tmp_path / 'slurm' / '12_3.json').read_text()) == {'code': code}
    asked = (tmp_path / 'asked').read_text() if (tmp_path / 'asked').exists() else ''
    assert asked == ('requeue 12_3\n' * 3 if back else '')


# ---- with one -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    """A running Slurm; its environment."""
    place = tmp_path_factory.mktemp('slurm')
    done = subprocess.run([SETUP, 'start', place], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    yield {
        **os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT),
        'SLURM_CONF': str(place / 'slurm.conf'),
    }  # fmt: skip
    subprocess.run([SETUP, 'stop', place], capture_output=True, timeout=120)


@pytest.fixture
def sweep(tmp_path, cluster):
    """Starts a sweep file on the cluster."""

    def call(rest, *words, config='tests/sweep_config.py:faulty', where='out', wait=True):
        file = tmp_path / 'sweep.py'
        file.write_text(
            'from jaxdl.sweeps import *\n'
            f'def get_sweep():\n    return Sweep({config!r}, {METRIC!r}, grace=30.0, {rest})\n'
        )
        process = subprocess.Popen(
            [sys.executable, '-m', 'jaxdl', 'sweep', str(file), f'--workdir={tmp_path / where}', *words],
            cwd=ROOT, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        started.append(process)
        if not wait:
            return process
        out, _ = process.communicate(timeout=500)
        return subprocess.CompletedProcess(process.args, process.returncode, out)

    started: list[subprocess.Popen] = []
    call.out = tmp_path / 'out'
    yield call
    for process in started:
        process.kill()
        process.wait()
    subprocess.run(['scancel', f'--user={os.environ.get("USER", "root")}'], env=cluster)


def results(sweep, where=None):
    return json.loads(((where or sweep.out) / 'results.json').read_text())


def queue(cluster):
    words = ['squeue', '--noheader', '--array', '--format=%i %T']
    done = subprocess.run(words, env=cluster, capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


def steps_of(sweep, trial):
    try:
        rows = read_metrics(sweep.out / 'trials' / trial / 'metrics.jsonl')
    except OSError:
        return []
    return [row['step'] for row in rows]


def whole(sweep, count, steps):
    """Every trial finished once, with strictly rising steps up to the last."""
    found = results(sweep)
    assert found['counts'] == {'finished': count}
    for trial in found['trials']:
        seen = steps_of(sweep, trial['id'])
        assert seen == sorted(set(seen)) and seen[-1] == steps
    return found


@needs_slurm
@pytest.mark.slow
def test_an_array_on_two_gpus_is_the_sweep_on_this_machine(sweep):
    rest = "points=grid({'optimizer.learning_rate': (0.02, 0.1)}), seeds=2"
    refused = sweep(rest, *SLURM, '--partition=none', where='refused')
    assert refused.returncode == 2 and 'Invalid partition' in refused.stdout
    assert not (sweep.out.parent / 'refused').exists()
    done = sweep(rest, *SLURM)
    assert done.returncode == 0, done.stdout
    found = whole(sweep, 4, 12)
    texts = [(sweep.out / 'logs' / f'{t["id"]}.txt').read_text() for t in found['trials']]
    jobs = [re.search(r'Slurm job (\d+)_(\d) on \S+, GPU (\d)', text) for text in texts]
    assert len({job[1] for job in jobs}) == 1  # one array …
    assert [job[2] for job in jobs] == ['0', '1', '2', '3']
    assert {job[3] for job in jobs} == {'0', '1'}  # … that Slurm spread over both GPUs
    assert sweep(rest, '--slots=1', where='here').returncode == 0
    here = results(sweep, sweep.out.parent / 'here')
    assert [t['value'] for t in found['trials']] == pytest.approx(
        [t['value'] for t in here['trials']], abs=1e-6
    )
    assert found['best']['command'] == here['best']['command']


@needs_slurm
@pytest.mark.slow
def test_preempted_jobs_requeue_and_a_killed_sweep_takes_them_over(sweep, cluster):
    rest = (
        "points=grid({'optimizer.learning_rate': (0.02, 0.1)}), "
        "overrides={'data.delay': 0.1, 'steps': 100}"
    )
    process = sweep(rest, *SLURM, wait=False)
    wait_for(lambda: steps_of(sweep, '0000') and steps_of(sweep, '0001'))
    process.kill()  # the login node goes down; the jobs go on
    process.wait()
    job = next(number for number in queue(cluster) if number.endswith('_0'))
    # What Slurm does before the time limit, or to make room for another job.
    subprocess.run(['scancel', '--signal=USR1', job], env=cluster, check=True)
    text = sweep.out / 'logs' / '0000.txt'
    wait_for(lambda: 'goes back into the queue' in text.read_text())
    done = sweep(rest, *SLURM)
    assert done.returncode == 0, done.stdout
    found = whole(sweep, 2, 100)
    assert [t['attempts'] for t in found['trials']] == [1, 1]  # nothing was submitted twice
    assert 'restart 1' in text.read_text()
    info = json.loads((sweep.out / 'trials' / '0000' / 'run.json').read_text())
    assert [s['status'] for s in info['history']] == ['preempted']
    unbroken = sweep(rest, '--slots=2', where='here')
    assert unbroken.returncode == 0, unbroken.stdout
    here = results(sweep, sweep.out.parent / 'here')
    assert [t['value'] for t in found['trials']] == pytest.approx(
        [t['value'] for t in here['trials']], abs=1e-6
    )


@needs_slurm
@pytest.mark.slow
def test_interrupt_saves_all_and_empties_the_queue(sweep, cluster):
    rest = (
        "points=grid({'optimizer.learning_rate': (0.02, 0.1, 0.2)}), "
        "overrides={'data.delay': 0.1, 'steps': 100}"
    )
    process = sweep(rest, *SLURM, wait=False)
    wait_for(lambda: steps_of(sweep, '0000') and steps_of(sweep, '0001'))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 75 and 'the same command resumes' in out, out
    assert not [n for n, state in queue(cluster).items() if state != 'COMPLETING']
    status = json.loads((sweep.out / 'trials' / '0000' / 'run.json').read_text())
    assert status['status'] == 'preempted' and Store(sweep.out).saved('0000') > 0
    assert not steps_of(sweep, '0002')  # it waited for a GPU
    done = sweep(rest, *SLURM)
    assert done.returncode == 0, done.stdout
    assert [t['attempts'] for t in whole(sweep, 3, 100)['trials']] == [2, 2, 2]


@needs_slurm
@pytest.mark.slow
def test_faults_and_a_cancelled_job(sweep, cluster):
    rest = (
        "retries=1, points=[{'data.fault': 'crash'}, {'data.fault': 'memory'}, "
        "{'data.delay': 0.2, 'steps': 60}]"
    )
    process = sweep(rest, *SLURM, wait=False)
    wait_for(lambda: steps_of(sweep, '0002'))
    running = [n for n, state in queue(cluster).items() if state == 'RUNNING']
    mine = [n for n in running if n.endswith('_2')]
    subprocess.run(['scancel', *mine], env=cluster, check=True)  # by somebody's hand
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 1, out
    found = {t['id']: t for t in results(sweep)['trials']}
    assert {k: t['status'] for k, t in found.items()} == {
        '0000': 'failed', '0001': 'out_of_memory', '0002': 'finished',
    }  # fmt: skip
    assert 'the disk is on fire' in found['0000']['reason'] and found['0000']['attempts'] == 2
    assert found['0002']['attempts'] == 2
    # It does not put itself back into the queue against that hand; the sweep submits it anew.
    assert 'goes back' not in (sweep.out / 'logs' / '0002.txt').read_text()


@needs_slurm
@pytest.mark.slow
def test_a_trial_longer_than_the_time_limit_goes_on_in_several_jobs(sweep):
    # One minute is Slurm's least; it may send the signal up to a minute early. Two rows are fetched
    # at a time, so the trial takes 100 seconds.
    rest = "points=[{}], overrides={'data.delay': 0.5, 'steps': 400}"
    done = sweep(rest, *SLURM, f'--hours={2 / 60}')
    assert done.returncode == 0, done.stdout
    found = whole(sweep, 1, 400)
    assert found['trials'][0]['attempts'] == 1
    info = json.loads((sweep.out / 'trials' / '0000' / 'run.json').read_text())
    assert info['history'] and all(s['status'] == 'preempted' for s in info['history'])


@needs_slurm
@pytest.mark.slow
def test_a_job_of_higher_priority_takes_the_gpus_for_a_while(sweep, cluster, tmp_path):
    """Slurm's own preemption: TERM, some seconds to save, back into the queue."""
    rest = "points=[{}], overrides={'data.delay': 0.1, 'steps': 100}"
    process = sweep(rest, *SLURM, '--gpus_per_trial=2', '--partition=main', wait=False)
    wait_for(lambda: steps_of(sweep, '0000'))
    words = [
        'sbatch',
        '--partition=urgent',
        '--gpus=2',
        '--wrap=sleep 3',
        f'--output={tmp_path / "urgent"}',
    ]
    subprocess.run(words, env=cluster, check=True)
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    assert whole(sweep, 1, 100)['trials'][0]['attempts'] == 1
    info = json.loads((sweep.out / 'trials' / '0000' / 'run.json').read_text())
    assert [s['status'] for s in info['history']] == ['preempted']
    assert 'restart 1' in (sweep.out / 'logs' / '0000.txt').read_text()


@needs_slurm
@pytest.mark.slow
def test_srun_with_two_tasks_is_one_run_of_two_processes(tmp_path, cluster):
    words = [sys.executable, 'train.py', '--config=tests/sweep_config.py']
    two = [*words, f'--workdir={tmp_path / "two"}']
    step = ['srun', '--ntasks=2', '--cpus-per-task=1', '--kill-on-bad-exit=1']
    done = subprocess.run(
        [*step, *two], cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('done: ') == 1  # only one of the two talks
    info = json.loads((tmp_path / 'two' / 'run.json').read_text())
    assert info['processes'] == 2 and len(info['devices']) == 2
    # The same mathematics as one process with two devices.
    one = {**cluster, 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
    words.append(f'--workdir={tmp_path / "one"}')
    subprocess.run(words, cwd=ROOT, env=one, check=True, capture_output=True, timeout=500)
    rows, others = (read_metrics(tmp_path / name / 'metrics.jsonl') for name in ('two', 'one'))
    assert [row['step'] for row in rows] == [row['step'] for row in others]
    for row, other in zip(rows, others, strict=True):
        for name in ('train/loss', METRIC):
            assert (name in row) == (name in other)
            assert row.get(name, 0.0) == pytest.approx(other.get(name, 0.0), rel=1e-5)
