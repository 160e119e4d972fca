"""The table of a running sweep, on a terminal that is emulated here and on a pipe."""

import io
import time

import pytest

from jaxdl.sweeps import Sweep, grid
from jaxdl.sweeps.display import Display, listing, seconds_left, table
from jaxdl.sweeps.local import Job
from jaxdl.sweeps.store import Store
from tests.terminal import Terminal

METRIC = 'eval/test/accuracy'


class Pool:
    """What the display looks at: four trials, two of them running."""

    def __init__(self, folder):
        self.sweep = Sweep('c.py', METRIC, points=grid({'x': (1, 2, 3, 4)}))
        self.trials = self.sweep.trials()
        self.store, self.study = Store(folder), None
        for trial in self.trials:
            trial.steps = 100
        self.store.path.mkdir()
        (self.store.path / 'state').mkdir()
        self.store.note('0000', status='finished')
        self.store.note('0001', status='running')
        self.store.note('0002', status='running')
        first, second = Job([self.trials[1]], 'gpu 0'), Job([self.trials[2]], 'gpu 1')
        first.started = second.started = time.monotonic()
        self.launcher = type('Launcher', (), {'jobs': {'0001': first, '0002': second}})()
        self.launcher.free = lambda: 0
        self.rows = {
            '0001': [
                {'step': 10, 'time': 100.0, METRIC: 0.7},
                {'step': 30, 'time': 110.0, METRIC: 0.6},
            ]
        }
        entry = {'status': 'finished', 'seconds': 40.0, 'wall': 50.0}
        self.summary = {'trials': [entry], 'best': {'mean': 0.9, 'varied': {'x': 1}}}


def test_the_table(tmp_path):
    summary, head, first, second = table(Pool(tmp_path / 'sweep'), 65.0)
    assert summary.startswith('1/4 trials over') and '2 running' in summary
    assert 'best eval/test/accuracy 0.9 (x=1)' in summary and '1:05 elapsed' in summary
    # Three trials of 50 s are left, two at a time, none of whose time has passed yet.
    assert 'about 1:15 left' in summary
    assert head.split() == ['where', 'trial', 'state', 'step', 'now', 'best', 'left']
    # 20 steps took 10 s, 70 are left.
    assert first.split() == ['gpu', '0', '0001', 'running', '30/100', '0.6', '0.7', '0:35', 'x=2']
    assert second.split() == ['gpu', '1', '0002', 'starting', '0/100', 'x=3']


def test_it_is_redrawn_in_place_on_a_terminal(tmp_path, monkeypatch):
    pool, out = Pool(tmp_path / 'sweep'), Terminal()
    monkeypatch.setattr('jaxdl.sweeps.display.REDRAW', 0.0)
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '70')
    display = Display(out)
    display.show(pool)
    display.show(pool)
    display.event('0003 finished')
    display.show(pool)
    shown = out.screen()
    assert shown[0] == '0003 finished' and shown[1].startswith('1/4 trials over')
    assert len(shown) == 5 and sum('0001' in line for line in shown) == 1
    assert all(len(line) <= 70 for line in shown)
    display.close()
    assert [line for line in out.screen() if line] == ['0003 finished']


def test_a_low_terminal_shows_the_first_trials(tmp_path, monkeypatch):
    pool, out = Pool(tmp_path / 'sweep'), Terminal()
    for name, value in {'TERM': 'xterm', 'COLUMNS': '70', 'LINES': '5'}.items():
        monkeypatch.setenv(name, value)
    pool.launcher.jobs |= {f'x{i}': pool.launcher.jobs['0002'] for i in range(30)}
    monkeypatch.setattr('jaxdl.sweeps.display.REDRAW', 0.0)
    display = Display(out)
    for _ in range(3):
        display.show(pool)
    shown = out.screen()
    assert shown[0].startswith('1/4 trials over') and len(shown) == 5
    display.close()


def test_a_stream_that_breaks_does_not_end_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr('jaxdl.sweeps.display.REDRAW', 0.0)
    for interactive in (False, True):
        out = Terminal()
        out.isatty = lambda interactive=interactive: interactive
        display = Display(out)
        out.close()
        display.event('0003 finished')
        display.show(Pool(tmp_path / f'sweep{interactive}'))
        display.close()


def test_on_a_pipe_it_is_a_line_now_and_then(tmp_path, monkeypatch):
    pool, out = Pool(tmp_path / 'sweep'), io.StringIO()
    display = Display(out)
    display.show(pool)
    assert out.getvalue() == ''
    monkeypatch.setattr('jaxdl.sweeps.display.LINE_EVERY', 0.0)
    display.show(pool)
    assert out.getvalue().count('\n') == 1 and '\x1b' not in out.getvalue()


def test_time_left_of_a_run():
    rows = [{'step': 5, 'time': 1.0}, {'step': 15, 'time': 3.0}]
    assert seconds_left(rows, 100) == pytest.approx(17.0)
    assert seconds_left(rows[:1], 100) is None and seconds_left([], 100) is None


def test_the_list_of_trials_shows_what_differs():
    trials = Sweep('c.py', METRIC, points=[{'a.x': 1, 'b.x': 2}, {'a.x': 3}], seeds=2).trials()
    for trial in trials:
        trial.group = 'g' if trial.point else 'h'
    lines = listing(trials)
    assert lines[0].split() == ['trial', 'a.x', 'b.x', 'seed', 'program']
    assert lines[2].split() == ['0000', '1', '2', '0', '1']
    assert lines[4].split() == ['0002', '3', '·', '0', '2']
