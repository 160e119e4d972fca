"""metrics.jsonl and run.json survive crashes and full disks."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.errors import UserError
from jaxdl.record.metrics_file import MetricsFile, encode_line, read_metrics
from jaxdl.record.run_info import RunInfo

# ---- metrics.jsonl ------------------------------------------------------------------------------


def strict_lines(path: Path) -> list[dict]:
    """The lines of a file under a JSON parser that refuses NaN; every line must end."""

    def refuse(name):
        raise AssertionError(f'{name} is not JSON')

    data = path.read_bytes()
    assert data == b'' or data.endswith(b'\n')
    return [json.loads(line, parse_constant=refuse) for line in data.splitlines()]


def test_a_line_holds_all_values_of_a_step(tmp_path):
    path = tmp_path / 'run' / 'metrics.jsonl'
    file = MetricsFile(path, last_step=0)
    file.write(1, {'train/loss': np.float32(0.5), 'count': np.int64(3)})
    file.write(1, {'eval/test/loss': float('nan'), 'a': math.inf})
    file.write(2, {'a': -math.inf})
    file.close()
    first, second = strict_lines(path)
    assert list(first) == ['step', 'time', 'train/loss', 'count', 'eval/test/loss', 'a']
    assert first['train/loss'] == 0.5 and first['count'] == 3
    assert first['eval/test/loss'] == 'nan' and first['a'] == 'inf' and second['a'] == '-inf'
    rows = read_metrics(path)
    assert math.isnan(rows[0]['eval/test/loss'])
    assert rows[0]['a'] == math.inf and rows[1]['a'] == -math.inf


def test_lines_are_on_their_way_when_write_returns(tmp_path):
    """A process that is killed right after a write has lost nothing."""
    path = tmp_path / 'metrics.jsonl'
    code = (
        'import os, sys; from jaxdl.record.metrics_file import MetricsFile\n'
        f'file = MetricsFile({str(path)!r}, last_step=0)\n'
        'for step in range(1, 51): file.write(step, {"a": step})\n'
        'file.write(50, {"b": 1})\n'
        'os.kill(os.getpid(), 9)'
    )
    done = subprocess.run([sys.executable, '-c', code], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert [row['step'] for row in strict_lines(path)] == list(range(1, 51))
    assert strict_lines(path)[-1]['b'] == 1


def test_wrong_order_and_wrong_names(tmp_path):
    file = MetricsFile(tmp_path / 'm.jsonl', last_step=0)
    file.write(5, {})
    with pytest.raises(ValueError, match='step 4 written after step 5'):
        file.write(4, {})
    with pytest.raises(ValueError, match='names'):
        file.write(6, {'time': 1.0})
    file.truncate(3)
    file.write(4, {})
    file.close()
    assert [row['step'] for row in strict_lines(tmp_path / 'm.jsonl')] == [4]


sessions = st.lists(
    st.tuples(
        st.integers(1, 12),  # how many steps the session gets through
        st.lists(st.integers(0, 2), min_size=12, max_size=12),  # writes at each of its steps
        st.integers(1, 5),  # a checkpoint every so many steps
        st.floats(0, 1),  # where a crash tears the file, as a share of what was not yet safe
        st.booleans(),  # whether the crash tears it at all
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(sessions)
def test_crashes_and_resumes_keep_each_step_once(history):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'metrics.jsonl')
        saved, expected, position = 0, {}, 0
        for number_of_steps, writes, every, tear, torn in history:
            expected = {s: keys for s, keys in expected.items() if s <= saved}
            file = MetricsFile(path, last_step=saved)
            assert {r['step'] for r in strict_lines(path)} == set(expected)
            safe = path.stat().st_size
            for step in range(saved + 1, saved + 1 + number_of_steps):
                for index in range(writes[(step - 1) % 12]):
                    file.write(step, {f'value/{index}': step + index / 8, 'x' * 9: 1})
                    expected.setdefault(step, set()).add(f'value/{index}')
                if step % every == 0:
                    file.flush()
                    saved, safe = step, path.stat().st_size
                position = step
            if torn:  # the machine died: what was not flushed may be lost at any byte
                os.truncate(path, safe + int(tear * (path.stat().st_size - safe)))
            if position % 2:
                file.close()
        file = MetricsFile(path, last_step=saved)
        rows = strict_lines(path)
        steps = [row['step'] for row in rows]
        assert steps == sorted(set(steps)) == [s for s in sorted(expected) if s <= saved]
        for row in rows:
            assert expected[row['step']] <= set(row)
        file.close()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 400), st.integers(0, 12), st.binary(max_size=30))
def test_any_cut_and_any_rubbish_at_the_end_is_repaired(cut, last_step, rubbish):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'metrics.jsonl')
        lines = [encode_line({'step': s, 'time': 0.5, 'a': s}) for s in range(1, 11)]
        data = b''.join(lines)[:cut] + rubbish.replace(b'\n', b'\0')
        path.write_bytes(data)
        whole = [s for s in range(1, 11) if sum(map(len, lines[:s])) - 1 <= cut]
        before = {row['step'] for row in read_metrics(path)}
        # Rubbish may complete a cut line by chance, never the other way round.
        assert before >= set(whole[:-1])
        file = MetricsFile(path, last_step=last_step)
        file.write(last_step, {'b': 1})
        file.write(last_step + 1, {'b': 2})
        file.close()
        steps = [row['step'] for row in strict_lines(path)]
        assert steps == sorted(set(steps))
        assert set(whole[:-1]) & set(range(last_step)) <= set(steps)
        assert steps[-2:] == [last_step, last_step + 1]


def test_a_run_that_went_on_without_repair_reads_with_the_later_lines(tmp_path, capsys):
    path = tmp_path / 'm.jsonl'
    path.write_text(''.join(f'{{"step": {s}, "a": {a}}}\n' for s, a in [(1, 1), (3, 1), (2, 2)]))
    assert [(r['step'], r['a']) for r in read_metrics(path)] == [(1, 1), (2, 2)]
    path.write_text('{"step": 1}\nrubbish\n[1]\n{"step": "2"}\n{"step": 3}\n{"step": 4')
    with pytest.raises(UserError, match=r'm\.jsonl: line 2, 3, 4: not a JSON object'):
        read_metrics(path)
    MetricsFile(path, last_step=9).close()
    assert 'line 2, 3, 4' in capsys.readouterr().err
    assert [row['step'] for row in strict_lines(path)] == [1, 3]
    assert read_metrics(tmp_path / 'missing') == []


def test_a_blocked_folder_stops_nothing_and_is_made_up_for(tmp_path, capsys):
    (tmp_path / 'run').write_text('in the way')
    file = MetricsFile(tmp_path / 'run' / 'metrics.jsonl', last_step=0)
    for step in range(1, 5):
        file.write(step, {'a': step})
        file.write(step, {'b': step})
    assert file.failed
    assert capsys.readouterr().err.count('cannot write') == 1
    (tmp_path / 'run').unlink()
    file.write(5, {'a': 5})
    assert not file.failed and 'works again' in capsys.readouterr().err
    file.close()
    rows = strict_lines(tmp_path / 'run' / 'metrics.jsonl')
    assert [(r['step'], r['a']) for r in rows] == [(s, s) for s in range(1, 6)]
    assert all(r['b'] == r['step'] for r in rows[:4])


@pytest.mark.parametrize('room', [0, 1, 20, 39, 40, 41, 60, 80])
def test_a_full_disk_leaves_whole_lines(tmp_path, room, capsys):
    """A limit on the size of files makes the kernel itself write half a line and refuse the rest."""
    path = tmp_path / 'metrics.jsonl'
    file = MetricsFile(path, last_step=0)
    file.write(1, {'a': 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    capacity = path.stat().st_size + room
    resource.setrlimit(resource.RLIMIT_FSIZE, (capacity, limits[1]))
    try:
        file.write(1, {'b': 1})
        file.write(2, {'a': 2})
        file.write(3, {'a': 3})
        assert file.failed
        # Warnings are not written under the limit: pytest captures them in a file.
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    held = strict_lines(path)
    assert held[0]['a'] == 1 and path.stat().st_size <= capacity
    file.write(4, {'a': 4})
    assert not file.failed
    file.close()
    rows = strict_lines(path)
    assert [(r['step'], r['a']) for r in rows] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert rows[0]['b'] == 1


def test_a_deleted_file_is_started_anew(tmp_path, capsys):
    path = tmp_path / 'metrics.jsonl'
    file = MetricsFile(path, last_step=0)
    file.write(1, {'a': 1})
    path.unlink()
    file.write(2, {'a': 2})
    file.close()
    assert [row['step'] for row in strict_lines(path)] == [2]
    assert 'deleted while in use' in capsys.readouterr().err


# ---- run.json -----------------------------------------------------------------------------------


def test_run_json_tells_how_every_session_ended(tmp_path, monkeypatch, capsys):
    path = tmp_path / 'run' / 'run.json'

    def read():
        return json.loads(path.read_text())

    info = RunInfo(path, command=['python', 'train.py', '--config=a b'], devices=['cpu'])
    assert read()['status'] == 'running' and read()['command'] == "python train.py '--config=a b'"
    assert read()['packages']['numpy'] == np.__version__ and read()['history'] == []
    info.update(step=10, parameters=123)
    info = RunInfo(path, from_step=10, loss=math.nan)
    assert read()['history'][0]['status'] == 'killed' and read()['history'][0]['step'] == 10
    assert read()['loss'] == 'nan'
    info.end('preempted', 'SIGTERM', step=20)
    RunInfo(path, from_step=20).end('finished', step=30)
    done = read()
    assert [s['status'] for s in done['history']] == ['killed', 'preempted']
    assert done['status'] == 'finished' and done['ended'] and done['step'] == 30
    with pytest.raises(ValueError, match='done'):
        info.end('done')
    monkeypatch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(OSError(28, 'no space')))
    info.update(step=40)
    info.update(step=41)
    assert info.guard.failed and capsys.readouterr().err.count('no space') == 1
    assert read() == done and os.listdir(path.parent) == ['run.json']


def test_start_is_light():
    """Training starts without tensorboardX, PIL and matplotlib."""
    code = (
        'import sys, jaxdl.record.metrics_file; '
        "print([m for m in ('tensorboardX', 'PIL', 'matplotlib', 'jax') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == '[]'
