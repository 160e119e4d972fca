"""The scheduler, with a launcher that runs nothing: every way a trial can end."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import types

import pytest

from jaxdl.commands import sweep as command
from jaxdl.errors import UserError
from jaxdl.files import write_json
from jaxdl.sweeps import Median, Search, Sweep, choices, grid, log_uniform
from jaxdl.sweeps.local import LOST, MARK, log_path
from jaxdl.sweeps.pool import Pool
from jaxdl.sweeps.results import joules_of, points_of, value_of
from jaxdl.sweeps.search import Study
from jaxdl.sweeps.store import STATUSES, Store

METRIC = 'eval/test/accuracy'


class Quiet:
    def __init__(self):
        self.events = []

    def event(self, text):
        self.events.append(text)

    def show(self, pool):
        pass


class Fake:
    """Ends jobs as a script says: {trial id: [what its attempts do]}; without one it finishes.

    What an attempt does: an exit code; 'finish'; ('save', step, code); ('say', text, code);
    ('exit', code of a member) for members of a joint program.
    """

    def __init__(self, folder, script=None, slots=2, value=lambda trial: 0.5):
        self.folder, self.script, self.slots, self.value = folder, script or {}, slots, value
        self.jobs, self.started, self.stopped, self.checked = {}, [], [], 0

    def adopt(self, trials):
        return []

    def check(self, trials):
        self.checked += len(trials)
        for trial in trials:
            trial.group, trial.identity, trial.steps = 'g', trial.id, 10
        return [''] * len(trials)

    def free(self):
        return self.slots - len(self.jobs)

    def start(self, jobs):
        for job in jobs:
            self.jobs[job.name] = job
            self.started.append([t.id for t in job.trials])

    def stop(self, job, *, now=False):
        self.stopped.append((job.name, job.stopping, now))

    def poll(self, timeout):
        if not self.jobs:
            return []
        name = next(iter(self.jobs))
        job = self.jobs.pop(name)
        job.seconds, job.code = 3.0, 0
        for trial in job.trials:
            steps = self.script.get(trial.id, [])
            job.code = self._act(trial, job, steps.pop(0) if steps else 'finish', job.code)
        return [job]

    def _act(self, trial, job, action, code):
        place = self.folder / 'trials' / trial.id
        place.mkdir(parents=True, exist_ok=True)
        if action == 'finish':
            finish(place, self.value(trial))
            return code
        if isinstance(action, int):
            return action
        kind, what, *rest = action
        if kind == 'save':
            (place / 'checkpoints' / str(what)).mkdir(parents=True)
        if kind == 'say':
            with open(log_path(self.folder, job.trials[0]), 'a') as file:
                file.write(what + '\n')
        if kind == 'measured':  # it wrote the metric before it ended
            finish(place, what)
            write_json(place / 'run.json', {'status': 'failed', 'step': 5})
        if kind == 'exit':
            write_json(place / 'run.json', {'status': 'failed', 'exit': what})
            return code
        return rest[0]


def finish(place, value, steps=10):
    write_json(place / 'run.json', {'status': 'finished', 'step': steps, 'seconds': 2.0})
    row = {'step': steps, 'time': 1.0, METRIC: value}
    (place / 'metrics.jsonl').write_text(json.dumps(row) + '\n')


def make(tmp_path, script=None, count=4, **kinds):
    options = {k: kinds.pop(k) for k in ('slots', 'value', 'together', 'study') if k in kinds}
    sweep = Sweep('c.py', METRIC, points=grid({'x': range(count)}), **kinds)
    store = Store(tmp_path / 'sweep')
    store.open()
    trials = sweep.trials()
    for trial in trials:
        trial.group, trial.steps = 'g', 10
    store.save_plan('s.py', sweep, trials)
    launcher = Fake(
        store.path, script, options.pop('slots', 2), options.pop('value', lambda t: 0.5)
    )
    return Pool(store, sweep, trials, launcher, Quiet(), **options), launcher


def statuses(found):
    return [trial['status'] for trial in found['trials']]


def test_all_finish_and_the_best_is_found(tmp_path):
    pool, launcher = make(tmp_path, seeds=2, value=lambda t: t.varied['x'] + (t.seed or 0) / 10)
    found = pool.run()
    assert statuses(found) == ['finished'] * 8 and len(launcher.started) == 8
    assert found['best']['varied'] == {'x': 3} and found['best']['mean'] == pytest.approx(3.05)
    assert found['best']['deviation'] == pytest.approx(0.0707, abs=1e-4)
    again = 'python -m jaxdl train --config=c.py --config.x=3 --config.seed=0'
    assert found['best']['command'] == again
    assert json.loads((pool.store.path / 'results.json').read_text())['counts'] == {'finished': 8}
    lines = (pool.store.path / 'results.csv').read_text().splitlines()
    assert len(lines) == 9 and lines[0].startswith('id,point,x,seed,status,value')


def test_a_second_call_runs_nothing_twice(tmp_path):
    pool, _ = make(tmp_path)
    first = pool.run()
    pool.store.close()
    pool, launcher = make(tmp_path)
    assert pool.run() == first and launcher.started == []


def test_what_the_sweep_did_not_see_finish_is_not_run_again(tmp_path):
    pool, launcher = make(tmp_path)
    pool.store.note('0001', status='running', attempts=1)
    finish(pool.store.path / 'trials' / '0001', 0.9)
    found = pool.run()
    assert ['0001'] not in launcher.started and found['best']['varied'] == {'x': 1}


def test_crashes_are_retried_and_then_recorded_with_their_last_lines(tmp_path):
    script = {'0000': [('say', 'ValueError: no luck', 1)] * 5, '0001': [1, 1]}
    pool, launcher = make(tmp_path, script, retries=2)
    found = pool.run()
    assert statuses(found) == ['failed', 'finished', 'finished', 'finished']
    assert launcher.started.count(['0000']) == 3 and launcher.started.count(['0001']) == 3
    assert [t['wall'] for t in found['trials']] == [9.0, 9.0, 3.0, 3.0]
    assert 'exit code 1' in found['trials'][0]['reason']
    assert 'no luck' in found['trials'][0]['reason'] and found['trials'][0]['attempts'] == 3
    # A new call tries it again.
    pool.store.close()
    pool, launcher = make(tmp_path)
    assert statuses(pool.run()) == ['finished'] * 4 and launcher.started == [['0000']]


def test_progress_renews_the_retries(tmp_path):
    script = {'0000': [('save', step, -9) for step in range(1, 7)]}
    pool, launcher = make(tmp_path, script, count=1, retries=1)
    assert statuses(pool.run()) == ['finished'] and len(launcher.started) == 7


def test_progress_counts_from_the_start_of_each_attempt(tmp_path):
    """A break without progress counts, one with progress starts the count again."""
    script = {
        '0000': [1, ('save', 1, -9), 1, ('save', 2, 1), 1, 'finish'],
        '0001': [('save', 5, -9), 1, 1, 'finish'],  # an old checkpoint is no progress
    }
    pool, launcher = make(tmp_path, script, count=2, retries=1)
    assert statuses(pool.run()) == ['finished', 'failed']
    assert launcher.started.count(['0000']) == 6 and launcher.started.count(['0001']) == 3


def test_preemption_resumes(tmp_path):
    script = {'0000': [('save', 3, 75), ('save', 6, 75)]}
    pool, launcher = make(tmp_path, script, count=1, retries=0)
    assert statuses(pool.run()) == ['finished'] and len(launcher.started) == 3


@pytest.mark.parametrize(
    ('action', 'status', 'says'),
    [
        (('say', 'diverged: step 3: not finite', 3), 'diverged', 'step 3: not finite'),
        (('say', 'error: --config.x=9: too large', 2), 'mistake', 'too large'),
        (
            ('say', 'XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory', 1),
            'out_of_memory',
            'memory',
        ),
        (('say', 'terminate called: std::bad_alloc', -6), 'out_of_memory', 'SIGABRT'),
    ],
)
def test_what_is_not_retried(tmp_path, action, status, says):
    pool, launcher = make(tmp_path, {'0000': [action]})
    found = pool.run()
    assert statuses(found) == [status, 'finished', 'finished', 'finished']
    assert says in found['trials'][0]['reason'] and launcher.started.count(['0000']) == 1
    assert found['trials'][0]['value'] is None


def test_a_run_without_the_metric_is_said_to_be_one(tmp_path):
    pool, _ = make(tmp_path, count=1, value=lambda t: 'nan')
    found = pool.run()
    assert (
        statuses(found) == ['finished'] and 'no eval/test/accuracy' in found['trials'][0]['reason']
    )
    assert found['best'] is None


def test_together_and_what_breaks_there(tmp_path):
    # 0000 … 0003 in one program crash; each is then tried alone.
    script = {f'000{i}': [1] for i in range(4)}
    pool, launcher = make(tmp_path, script, count=6, together=4, slots=1)
    assert statuses(pool.run()) == ['finished'] * 6
    assert launcher.started == [
        ['0000', '0001', '0002', '0003'],
        ['0004', '0005'],
        ['0000'],
        ['0001'],
        ['0002'],
        ['0003'],
    ]


def test_together_without_enough_memory_fewer_are_tried(tmp_path):
    bad = ('say', 'RESOURCE_EXHAUSTED', 1)
    script = {'0000': [bad, bad], '0001': [bad, bad], '0002': [bad], '0003': [bad]}
    pool, launcher = make(tmp_path, script, count=4, together=4, slots=1)
    assert statuses(pool.run()) == ['finished'] * 4
    assert [len(names) for names in launcher.started] == [4, 2, 1, 1, 1, 1]


def test_together_one_diverges(tmp_path):
    pool, launcher = make(tmp_path, {'0001': [('exit', 3)]}, together=4)
    found = pool.run()
    assert statuses(found) == ['finished', 'diverged', 'finished', 'finished']
    assert launcher.started == [['0000', '0001', '0002', '0003']] and found['wall'] == 3.0


def test_the_process_that_trials_are_forked_from_dies(tmp_path, monkeypatch):
    """What was lost may still be saving: it is waited for, then goes on, if that broke nothing anew."""
    script = {'0000': [('save', 1, LOST), ('save', 2, LOST)], '0001': [LOST, LOST]}
    pool, launcher = make(tmp_path, script, retries=1)
    waited = []
    monkeypatch.setattr(pool.store, 'wait_for', lambda names, *_: waited.append(names))
    found = pool.run()
    assert statuses(found) == ['finished', 'failed', 'finished', 'finished']
    assert 'fork server died' in found['trials'][1]['reason'] and len(launcher.started) == 7
    assert sorted(waited[1:]) == [['0000'], ['0000'], ['0001'], ['0001']]


def test_a_signal_stops_all_and_the_next_call_resumes(tmp_path):
    pool, launcher = make(tmp_path)
    poll = launcher.poll

    def poll_and_stop(timeout):
        if not pool.signal:
            signal.raise_signal(signal.SIGINT)
            return []
        launcher.script = {name: [('save', 4, 75)] for name in launcher.jobs}
        return poll(timeout)

    launcher.poll = poll_and_stop
    found = pool.run()
    assert not pool.killed  # they saved: exit 75
    assert pool.signal == 'SIGINT' and [s[1] for s in launcher.stopped] == ['sweep', 'sweep']
    assert statuses(found) == ['pending'] * 4 and len(launcher.started) == 2
    pool.store.close()
    pool, launcher = make(tmp_path)
    found = pool.run()
    assert statuses(found) == ['finished'] * 4
    assert [t['attempts'] for t in found['trials']] == [2, 2, 1, 1]


class Clock:
    """Clocks that a test sets, in place of the module `time` of the scheduler."""

    def __init__(self):
        self.wall, self.steady = 1.0e9, 1000.0

    def time(self):
        return self.wall

    def monotonic(self):
        return self.steady


@pytest.mark.parametrize(
    ('wall', 'steady', 'writes', 'status'),
    [
        (3.0, 3.0, False, 'failed'),
        (3.0, 3.0, True, 'finished'),  # its log grows
        (1e6, 0.1, False, 'finished'),  # somebody sets the clock
        (-1e6, 3.0, False, 'failed'),
    ],
)
def test_a_trial_that_hangs_is_ended(tmp_path, monkeypatch, wall, steady, writes, status):
    """For 20 looks nothing is heard of it but what it writes; the clocks go on as they are told."""
    import jaxdl.sweeps.pool as pools

    pool, launcher = make(tmp_path, count=1, hang_timeout=5.0, retries=0)
    clock = Clock()
    monkeypatch.setattr(pools, 'TICK', 0.0)
    monkeypatch.setattr(pools, 'time', clock)
    poll, looks = launcher.poll, []

    def slowly(timeout):
        job = next(iter(launcher.jobs.values()))
        looks.append(job)
        job.started = 1.0
        clock.wall, clock.steady = clock.wall + wall, clock.steady + steady
        if writes:
            log = log_path(pool.store.path, job.trials[0])
            os.utime(log, ns=(len(looks), len(looks)))
        if launcher.stopped:
            launcher.script = {'0000': [75]}
        return poll(timeout) if launcher.stopped or len(looks) == 20 else []

    launcher.poll = slowly
    found = pool.run()
    assert statuses(found) == [status]
    assert ('hung' in found['trials'][0]['reason']) == (status == 'failed')
    assert (len(looks) == 20) == (status == 'finished')


@pytest.mark.parametrize('again', [False, True])
def test_what_does_not_stop_is_killed(tmp_path, monkeypatch, capsys, again):
    """After its grace, or at the second signal; it did not save, so the exit code is not 75."""
    import jaxdl.sweeps.pool as pools

    pool, launcher = make(tmp_path, count=1, grace=10.0)
    clock, poll, looks = Clock(), launcher.poll, []
    monkeypatch.setattr(pools, 'TICK', 0.0)
    monkeypatch.setattr(pools, 'time', clock)

    def deaf(timeout):
        looks.append(launcher.stopped[-1:])
        if len(looks) == 1 or (again and len(looks) == 2):
            signal.raise_signal(signal.SIGTERM)
        clock.steady += 4.0
        assert len(looks) < 20
        if launcher.stopped and launcher.stopped[-1][2]:
            launcher.script = {'0000': [-9]}
            return poll(timeout)
        return []

    launcher.poll = deaf
    given = types.SimpleNamespace(vectorize=1)
    assert command.run(given, pool.sweep, pool.store, launcher, 's.py', pool.trials) == 1
    (line,) = re.findall('error: .*', capsys.readouterr().err)
    assert 'SIGTERM' in line and '1 killed before saving' in line and 'resumes' in line
    assert pool.store.state('0000')['status'] == 'pending'
    assert launcher.stopped == [('0000', 'sweep', False), ('0000', 'sweep', True)]
    assert len(looks) == (3 if again else 5)


def test_a_run_that_ended_before_its_last_step_is_not_over(tmp_path):
    """Its run.json may be of an earlier sweep with fewer steps."""
    pool, launcher = make(tmp_path, count=2)
    finish(pool.store.path / 'trials' / '0001', 0.9, steps=5)
    assert statuses(pool.run()) == ['finished'] * 2 and ['0001'] in launcher.started


def test_what_was_stopped_for_good_before_the_sweep_was_killed_stays_stopped(tmp_path):
    pool, launcher = make(tmp_path, count=2)
    why = 'pruned at step 3 by Median'
    pool.store.note('0001', status='running', attempts=1, stopping=why)
    found = pool.run()
    assert statuses(found) == ['finished', 'pruned'] and launcher.started == [['0000']]
    assert found['trials'][1]['reason'] == why


# ---- results ----


@pytest.mark.parametrize('mode', ['max', 'min'])
def test_the_value_of_a_trial(mode):
    draw = random.Random(7)
    for _ in range(200):
        values = draw.choices([0.25, -3.0, 2, math.nan, math.inf, 10**400, None, 'nan'], k=5)
        rows = [
            {'step': step, **({} if v is None else {METRIC: v})} for step, v in enumerate(values)
        ]
        good = [(v, i) for i, v in enumerate(values) if v in (0.25, -3.0, 2)]
        written = [i for i, v in enumerate(values) if v is not None]
        last = good[-1] if good and good[-1][1] == written[-1] else (None, None)
        top = (max if mode == 'max' else min)((v for v, _ in good), default=0)
        best = next((item for item in good if item[0] == top), (None, None))
        assert value_of(Sweep('c.py', METRIC, mode), rows) == last
        assert value_of(Sweep('c.py', METRIC, mode, value='best'), rows) == best


def test_a_point_that_misses_a_seed_ranks_after_the_complete_ones():
    def trial(point, value):
        status = 'failed' if value is None else 'finished'
        return {'point': point, 'id': f'{point}', 'varied': {}, 'status': status, 'value': value}

    trials = [
        trial(0, 0.9), trial(0, None), trial(1, 0.5), trial(1, 0.3), trial(2, None), trial(3, 0.6),
        trial(3, 0.4),
    ]  # fmt: skip
    found = points_of(Sweep('c.py', METRIC), trials)
    assert [point['point'] for point in found] == [3, 1, 0, 2]
    assert found[1]['mean'] == pytest.approx(0.4)
    assert found[1]['deviation'] == pytest.approx(0.02**0.5)


def test_joules_are_the_last_of_each_counter():
    rows = [
        {'step': 1, 'energy/gpu_joules': 5.0, 'energy/cpu_joules': 1.0, 'energy/gpu_watts': 300.0},
        {'step': 2, 'energy/gpu_joules': 7.5},
        {'step': 3, 'energy/cpu_joules': math.nan},
    ]
    assert joules_of(rows) == 8.5 and joules_of([{'step': 1}]) is None


# ---- the folder ----


def test_a_folder_of_another_sweep_is_refused(tmp_path):
    pool, _ = make(tmp_path)

    def trials(sweep, identity='a'):
        found = sweep.trials()
        for trial in found:
            trial.identity = identity
        return found

    pool.store.save_plan('one.py', pool.sweep, trials(pool.sweep))
    assert pool.store.adopt(pool.sweep, trials(pool.sweep))
    other = Sweep('c.py', METRIC, points=grid({'y': (1, 2)}))
    with pytest.raises(UserError, match='another sweep'):
        pool.store.adopt(other, trials(other))
    with pytest.raises(UserError, match='has changed; compare'):
        pool.store.adopt(pool.sweep, trials(pool.sweep, 'b'))
    # More points are welcome, also in front: the old ones keep their numbers.
    more = Sweep('c.py', METRIC, points=grid({'x': (7, 0, 1, 2, 3)}))
    found = pool.store.adopt(more, trials(more))
    assert [t.id for t in found] == ['0004', '0000', '0001', '0002', '0003']
    with pytest.raises(UserError, match='is running this sweep'):
        Store(pool.store.path).open()
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.tex').touch()
    with pytest.raises(UserError, match=r'thesis\.tex'):
        Store(tmp_path / 'mine').open()


DAMAGES = [b'', b'{', b'[]', b'null', b'\xff\xfe{', b'[' * 100_000, b'{"trials": ' * 50_000]
WRONG = [
    None,
    'x',
    '../..',
    -(10**400),
    10**400,
    1e300,
    math.inf,
    0.5,
    True,
    [],
    ['x'],
    {},
    {'a': {}},
]


def damaged(file, draw):
    """Damages a JSON file at random; True: certainly, its types being wrong."""
    data = file.read_bytes()
    kind = draw.randrange(4)
    if kind == 0:
        file.write_bytes(draw.choice(DAMAGES))
        return True
    if kind == 1:
        file.write_bytes(data[: draw.randrange(len(data) - 2)])
        return True
    if kind == 2:
        flipped = bytearray(data)
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(flipped))
        return False
    tree = json.loads(data)
    holder = tree
    if file.name == 'sweep.json' and draw.random() < 0.7:
        holder = draw.choice(tree['trials'])
    name = draw.choice(list(holder))
    old, holder[name] = holder[name], draw.choice(WRONG)
    file.write_text(json.dumps(tree))
    return type(old) is not type(holder[name]) and None not in (old, holder[name])


@pytest.mark.parametrize('seed', range(60))
def test_a_damaged_folder_is_named_or_the_sweep_ends_as_ever(tmp_path, seed):
    """Random damage of sweep.json, of a state, and of a trial's run.json."""
    draw = random.Random(seed)
    pool, _ = make(tmp_path, {'0001': [2]})
    before = pool.run()
    pool.store.close()
    file = draw.choice(['sweep.json', 'state/0000.json', 'state/0001.json', 'trials/0002/run.json'])
    certain = damaged(pool.store.path / file, draw)
    store = Store(pool.store.path)
    try:
        store.open()
        trials = store.trials()
        sweep = Sweep('c.py', METRIC, points=grid({'x': range(4)}))
        store.adopt(sweep, sweep.trials())
        assert all(isinstance(trial.label() + str(trial.key()), str) for trial in trials)
        found = Pool(store, sweep, trials, Fake(store.path), Quiet()).run()
    except UserError as error:
        assert str(store.path) in str(error) and len(str(error)) < 600
        assert file in str(error) or file == 'sweep.json'
    else:
        assert not certain, f'damage of {file} went unnoticed'
        assert set(found['counts']) <= {*STATUSES} and len(found['trials']) == len(before['trials'])
    finally:
        store.close()


HOLD = """
import sys, time
from jaxdl.record.folder import Workdir
place = Workdir(sys.argv[1])
place.create()
print('held', flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize('whose', ['the sweep', 'another sweep', 'somebody'])
def test_a_process_left_behind_is_killed_only_if_the_sweep_started_it(tmp_path, whose):
    store, said = Store(tmp_path), []
    mark = {'the sweep': {MARK: str(tmp_path)}, 'another sweep': {MARK: f'{tmp_path}2'}}
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, str(tmp_path / 'trials' / '0000')],
        stdout=subprocess.PIPE, start_new_session=True, env={**os.environ, **mark.get(whose, {})},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == b'held\n'
        assert store.is_running('0000') and store.owner('0000') == process.pid
        if whose == 'the sweep':
            store.wait_for(['0000', '0001'], 0.1, said.append)
            assert process.wait(10) == -signal.SIGKILL and not store.is_running('0000')
        else:
            with pytest.raises(UserError, match='no part of this sweep'):
                store.wait_for(['0000', '0001'], 0.1, said.append)
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert 'waiting for 1 trials' in said[0]


# ---- searches ----


def search(tmp_path, sampler='tpe', points=8, script=None, space=None, **options):
    space = space or {'lr': log_uniform(1e-4, 1.0), 'act': choices(('relu', (1, 2)))}
    if sampler == 'grid':
        space = {'lr': choices((0.1, 0.2)), 'act': choices(('relu', (1, 2)))}
    sweep = Sweep('c.py', METRIC, points=Search(space, points, sampler), **options)
    store = Store(tmp_path / 'search')
    store.open()
    launcher = Fake(store.path, script, value=lambda t: -abs(t.varied['lr'] - 0.1))
    store.save_plan('s.py', sweep, [])
    pool = Pool(
        store,
        sweep,
        [],
        launcher,
        Quiet(),
        study=Study(store.journal, sweep),
        on_search=lambda trials: store.save_plan('s.py', sweep, trials),
    )
    return pool, launcher


@pytest.mark.parametrize('sampler', ['tpe', 'random', 'quasi_random', 'grid', 'gp'])
def test_searches(tmp_path, sampler):
    if sampler == 'gp':
        pytest.importorskip('torch')
    count = 4 if sampler == 'grid' else 8
    pool, launcher = search(tmp_path, sampler)
    found = pool.run()
    assert statuses(found) == ['finished'] * count
    assert len({str(t['varied']) for t in found['trials']}) == count
    assert {str(t['varied']['act']) for t in found['trials']} == {'relu', '(1, 2)'}
    pool.store.close()
    pool, launcher = search(tmp_path, sampler)
    assert statuses(pool.run()) == ['finished'] * count and launcher.started == []


def test_a_search_that_was_interrupted_asks_for_the_same_points(tmp_path):
    whole, _ = search(tmp_path / 'a', 'random', points=6)
    expected = [t['varied'] for t in whole.run()['trials']]
    for points in (2, 5, 6):
        part, _ = search(tmp_path / 'b', 'random', points=points)
        found = part.run()
        part.store.close()
    assert [t['varied'] for t in found['trials']] == expected


def test_a_search_takes_failures(tmp_path):
    script = {'0000': [3], '0003': [1, 1, 1], '0005': [('say', 'Out of memory', 1)]}
    pool, _ = search(tmp_path, script=script, points=12)
    found = pool.run()
    assert found['counts'] == {'finished': 9, 'diverged': 1, 'failed': 1, 'out_of_memory': 1}
    states = [t.state.name for t in pool.study._study.get_trials()]
    assert states.count('PRUNED') == 3 and states.count('COMPLETE') == 9


def test_a_search_takes_no_value_of_a_trial_that_diverged(tmp_path):
    pool, _ = search(tmp_path, script={'0001': [('measured', 0.9, 3)]}, points=3)
    assert pool.run()['counts'] == {'finished': 2, 'diverged': 1}
    states = [t.state.name for t in pool.study._study.get_trials()]
    assert states == ['COMPLETE', 'PRUNED', 'COMPLETE']


def test_a_search_with_seeds_takes_their_mean(tmp_path):
    pool, _ = search(tmp_path, points=3, seeds=2)
    found = pool.run()
    assert len(found['trials']) == 6
    values = [t.value for t in pool.study._study.get_trials()]
    means = {p['point']: p['mean'] for p in found['points']}
    assert values == pytest.approx([means[i] for i in range(3)])


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        (
            {'metric': 'eval/test/loss'},
            'metric is "eval/test/accuracy" there, "eval/test/loss" now',
        ),
        ({'mode': 'min'}, 'mode is "max" there'),
        ({'seeds': 3}, 'seeds is'),
        ({'points': Search({'lr': log_uniform(1e-4, 2.0)}, 8)}, 'search is'),
        ({'points': [{}]}, 'search is'),
    ],
)
def test_another_search_is_refused(tmp_path, changes, says):
    pool, _ = search(tmp_path)
    same = {'config': 'c.py', 'metric': METRIC, 'points': pool.sweep.points}
    assert pool.store.adopt(Sweep(**same), []) == []
    other = Sweep(**{**same, **changes})
    with pytest.raises(UserError, match=says):
        pool.store.adopt(other, other.trials())


def test_a_search_asks_for_no_point_twice(tmp_path):
    pool, _ = search(tmp_path, 'random', points=10, space={'lr': choices((0.1, 0.2, 0.3))})
    assert sorted(t['varied']['lr'] for t in pool.run()['trials']) == [0.1, 0.2, 0.3]


def test_the_first_seed_decides_for_its_point(tmp_path, monkeypatch):
    import jaxdl.sweeps.pool as pools

    monkeypatch.setattr(pools, 'TICK', 0.0)
    pool, launcher = search(tmp_path, points=3, seeds=2, stopping=Median())
    monkeypatch.setattr(pool.study, 'report', lambda trial, rows: trial.id in ('0002', '0005'))
    poll, seen = launcher.poll, []

    def slowly(timeout):
        name = next(iter(launcher.jobs))
        if name not in seen:
            seen.append(name)
            finish(pool.store.path / 'trials' / name, 0.5, steps=1)
            return []
        launcher.script = {job[0]: [75] for job in launcher.stopped}
        return poll(timeout)

    launcher.poll = slowly
    found = pool.run()
    assert statuses(found) == ['finished', 'finished', 'pruned', 'pruned', 'finished', 'finished']
    assert found['trials'][3]['reason'] == 'pruned with 0002'


def test_a_damaged_journal_is_named(tmp_path):
    pool, _ = search(tmp_path)
    pool.run()
    data = pool.store.journal.read_text()
    for damage in (data.replace('"op_code"', '"op"', 1), f'{{"op_code": 4\n{data}', '\x00' + data):
        pool.store.journal.write_text(damage)
        with pytest.raises(UserError, match=r'optuna\.journal is damaged'):
            Study(pool.store.journal, pool.sweep)


def test_early_stopping_reads_the_metrics_of_running_trials(tmp_path, monkeypatch):
    import jaxdl.sweeps.pool as pools

    monkeypatch.setattr(pools, 'TICK', 0.0)
    sweep_options = {'stopping': Median(trials=2), 'count': 4, 'slots': 1}
    pool, launcher = make(tmp_path, **sweep_options)
    pool.study = Study(pool.store.journal, pool.sweep)
    step = {}

    def poll(timeout):
        """Each trial writes steps 1 … 10; the later its number, the worse it is."""
        name, job = next(iter(launcher.jobs.items()))
        place = launcher.folder / 'trials' / name
        place.mkdir(parents=True, exist_ok=True)
        step[name] = step.get(name, 0) + 1
        rows = [
            {'step': s, 'time': 0, METRIC: 1.0 - int(name) * 0.1} for s in range(1, step[name] + 1)
        ]
        (place / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
        if job.stopping or step[name] == 10:
            launcher.jobs.pop(name)
            if not job.stopping:
                info = {'status': 'finished', 'step': 10, 'seconds': 1}
                write_json(place / 'run.json', info)
            job.code = 75 if job.stopping else 0
            return [job]
        return []

    launcher.poll = poll
    found = pool.run()
    assert statuses(found) == ['finished', 'finished', 'pruned', 'pruned']
    assert 'by Median' in found['trials'][2]['reason'] and step['0002'] < 10
    pool.store.close()
    again, launcher = make(tmp_path, **sweep_options)
    again.study = Study(again.store.journal, again.sweep)
    assert statuses(again.run()) == statuses(found) and launcher.started == []
