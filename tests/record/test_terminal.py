"""What a person sees of a run: lines on a pipe, a bar on a terminal, numbers and durations."""

import io
import math
import re

import pytest

from jaxdl.record.terminal import Progress, columns, duration, number, say, warn
from tests.terminal import Terminal


def test_plain_progress_is_one_line_an_interval():
    stream = io.StringIO()
    progress = Progress(100, start=0, stream=stream)
    scalars = {'train/accuracy': 0.5, 'train/loss': 1.0, 'train/learning_rate': 0.1}
    progress.update(50, {**scalars, 'perf/examples_per_s': 1234.5})
    progress.update(100, {**scalars, 'eval/test/accuracy': 0.98765, 'eval/test/examples': 10.0})
    progress.update(100, {'perf/time_step_s': 3.0})
    progress.message('done')
    progress.close()
    assert stream.getvalue().splitlines() == [
        'step  50/100  loss 1  accuracy 0.5000  1,234 examples/s',
        'step 100/100  loss 1  accuracy 0.5000',
        'step 100/100  test accuracy 0.9877',
        'done',
    ]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv('COLUMNS', '60')
    monkeypatch.setenv('TERM', 'xterm-256color')
    monkeypatch.delenv('NO_COLOR', raising=False)
    return Terminal()


def test_the_bar_stays_below_what_is_printed(terminal, capsys):
    progress = Progress(10, stream=terminal)
    progress.update(4, {'train/loss': 2.0})
    progress.update(5, {'train/loss': 1.0, 'eval/test/accuracy': 0.5})
    warn('look')
    assert capsys.readouterr().err == 'warning: look\n'
    progress.message('/a/path/' + 'x' * 80)
    result, path, bar = terminal.screen()
    assert result == 'step  5/10  test accuracy 0.5000' and path == '/a/path/' + 'x' * 80
    assert ' 50%  step  5/10  loss 1  ' in bar
    assert 'left' in bar and len(bar) <= 60 and '━' in bar
    progress.update(10, {f'train/metric{i}': 1.0 for i in range(6)})  # more than fits
    assert len(terminal.screen()) == 3 and len(terminal.screen()[-1]) <= 60
    progress.close()
    *_, bar, last = terminal.screen()
    assert '100%' in bar and last == ''
    assert '\x1b[?25l' not in terminal.getvalue()  # a killed run leaves the cursor


def test_colours_are_left_out_where_nobody_wants_them(terminal, monkeypatch):
    Progress(10, stream=terminal).close()
    assert re.search(r'\x1b\[[\d;]*3\d', terminal.getvalue())
    monkeypatch.setenv('NO_COLOR', '1')
    plain = Terminal()
    Progress(10, stream=plain).close()
    assert not re.search(r'\x1b\[[\d;]*3\d', plain.getvalue())


@pytest.mark.parametrize('environment', [{'FORCE_COLOR': '1'}, {'TTY_COMPATIBLE': '1'}])
def test_a_pipe_is_a_pipe_whatever_the_environment_says(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    progress = Progress(10, stream=stream)
    progress.update(5, {'train/loss': 1.0})
    progress.close()
    assert stream.getvalue() == 'step  5/10  loss 1\n'


def test_a_dumb_terminal_gets_lines(terminal, monkeypatch):
    monkeypatch.setenv('TERM', 'dumb')
    progress = Progress(10, stream=terminal)
    progress.update(5, {'train/loss': 1.0})
    progress.close()
    assert terminal.getvalue() == 'step  5/10  loss 1\n'


class Broken(Terminal):
    def write(self, text):
        raise BrokenPipeError


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize('make', [Broken, closed, lambda: None])
def test_no_stream_ends_the_training(make, monkeypatch):
    monkeypatch.setattr('sys.stdout', make())
    monkeypatch.setattr('sys.stderr', make())
    progress = Progress(10)
    progress.update(5, {'train/loss': 1.0, 'eval/test/loss': 1.0})
    progress.message('text')
    say('text')
    warn('text')
    progress.close()


@pytest.mark.parametrize('interactive', [False, True])
def test_an_ascii_stream_gets_what_it_can_show(interactive, monkeypatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding='ascii')
    stream.isatty = lambda: interactive
    monkeypatch.setattr('sys.stdout', stream)
    progress = Progress(10)
    progress.update(5, {'train/loss': 1.0})
    progress.message('3 × 4')
    progress.close()
    say('é')
    assert b'3 ? 4' in raw.getvalue() and b'loss 1' in raw.getvalue()
    assert raw.getvalue().rstrip().endswith(b'?')


def test_numbers_and_durations():
    assert [number(v) for v in (0, 1, 0.5, 0.98765, 12.3456, 1234.5, 2.5e7, 1e-5)] == [
        '0', '1', '0.5000', '0.9877', '12.35', '1,234', '2.500e+07', '1.000e-05',
    ]  # fmt: skip
    assert [number(v) for v in (None, math.nan, -math.inf)] == ['', 'nan', '-inf']
    assert [duration(s) for s in (0, 7.4, 754, 18367, 2 * 86400 + 11100)] == [
        '0:00', '0:07', '12:34', '5:06:07', '2 d 03:05',
    ]  # fmt: skip


def test_columns():
    rows = [['a', 'number'], ['long', '7']]
    assert columns(rows, right=[1]) == ['a     number', 'long       7']
    assert columns(rows) == ['a     number', 'long  7']


def test_a_terminal_is_a_terminal_whatever_the_environment_says(terminal, monkeypatch):
    monkeypatch.setenv('TTY_COMPATIBLE', '0')
    progress = Progress(10, stream=terminal)
    progress.update(5, {'train/loss': 1.0})
    assert ' 50%' in terminal.screen()[-1]
    progress.close()
