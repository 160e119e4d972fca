"""Logs: metrics.jsonl and event files survive crashes and full disks, and a reader agrees."""

import io
import json
import math
import os
import re
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
from jaxdl.record import metrics_file as logs
from jaxdl.record.tensorboard import event_files, read_events
from jaxdl.record.terminal import duration, number

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
    file = logs.MetricsFile(path, last_step=0)
    file.write(1, {'train/loss': np.float32(0.5), 'count': np.int64(3)})
    file.write(1, {'eval/test/loss': float('nan'), 'a': math.inf})
    file.write(2, {'a': -math.inf})
    file.close()
    first, second = strict_lines(path)
    assert list(first) == ['step', 'time', 'train/loss', 'count', 'eval/test/loss', 'a']
    assert first['train/loss'] == 0.5 and first['count'] == 3
    assert first['eval/test/loss'] == 'nan' and first['a'] == 'inf' and second['a'] == '-inf'
    rows = logs.read_metrics(path)
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
    file = logs.MetricsFile(tmp_path / 'm.jsonl', last_step=0)
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
            file = logs.MetricsFile(path, last_step=saved)
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
        file = logs.MetricsFile(path, last_step=saved)
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
        lines = [logs.encode_line({'step': s, 'time': 0.5, 'a': s}) for s in range(1, 11)]
        data = b''.join(lines)[:cut] + rubbish.replace(b'\n', b'\0')
        path.write_bytes(data)
        whole = [s for s in range(1, 11) if sum(map(len, lines[:s])) - 1 <= cut]
        before = {row['step'] for row in logs.read_metrics(path)}
        # Rubbish may complete a cut line by chance, never the other way round.
        assert before >= set(whole[:-1])
        file = logs.MetricsFile(path, last_step=last_step)
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
    assert [(r['step'], r['a']) for r in logs.read_metrics(path)] == [(1, 1), (2, 2)]
    path.write_text('{"step": 1}\nrubbish\n[1]\n{"step": "2"}\n{"step": 3}\n{"step": 4')
    with pytest.raises(UserError, match=r'm\.jsonl: line 2, 3, 4: not a JSON object'):
        logs.read_metrics(path)
    logs.MetricsFile(path, last_step=9).close()
    assert 'line 2, 3, 4' in capsys.readouterr().err
    assert [row['step'] for row in strict_lines(path)] == [1, 3]
    assert logs.read_metrics(tmp_path / 'missing') == []


def test_a_blocked_folder_stops_nothing_and_is_made_up_for(tmp_path, capsys):
    (tmp_path / 'run').write_text('in the way')
    file = logs.MetricsFile(tmp_path / 'run' / 'metrics.jsonl', last_step=0)
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
    file = logs.MetricsFile(path, last_step=0)
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
    file = logs.MetricsFile(path, last_step=0)
    file.write(1, {'a': 1})
    path.unlink()
    file.write(2, {'a': 2})
    file.close()
    assert [row['step'] for row in strict_lines(path)] == [2]
    assert 'deleted while in use' in capsys.readouterr().err


# ---- TensorBoard --------------------------------------------------------------------------------


def foreign_events(folder: Path) -> list:
    """The events as tensorboardX's protocol buffers see them, with both checksums checked."""
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    events = []
    for path in event_files(folder):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], 'little')
            assert int.from_bytes(data[8:12], 'little') == masked_crc32c(data[:8])
            body, crc = data[12 : 12 + length], data[12 + length : 16 + length]
            assert int.from_bytes(crc, 'little') == masked_crc32c(body)
            event = event_pb2.Event()
            event.ParseFromString(body)
            events.append(event)
            data = data[16 + length :]
    return events


def purged(folder: Path) -> list[tuple[str, int]]:
    """(tag, step) of every value left after TensorBoard's own rule: a START drops later steps."""
    values = []
    for event in foreign_events(folder):
        if event.HasField('session_log'):
            assert event.session_log.status == event.session_log.START
            values = [(tag, step) for tag, step in values if step < event.step]
        values += [(value.tag, event.step) for value in event.summary.value]
    return values


def test_another_reader_understands_the_event_files(tmp_path):
    from PIL import Image

    board = logs.TensorBoard(tmp_path, last_step=0)
    assert not event_files(tmp_path)
    picture = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    board.scalars(300, {'train/loss': 0.25, 'train/norm': math.nan})
    board.image(300, 'grid', picture)
    board.image(2**40, 'grey', picture[..., :1])
    board.text(300, 'sample', 'Grüße')
    board.close()
    version, scalars, grid, grey, text = foreign_events(tmp_path)
    assert version.file_version == 'brain.Event:2'
    assert [v.tag for v in scalars.summary.value] == ['train/loss', 'train/norm']
    assert scalars.summary.value[0].simple_value == 0.25 and scalars.step == 300
    assert math.isnan(scalars.summary.value[1].simple_value) and scalars.wall_time > 1e9
    image = grid.summary.value[0].image
    assert (image.height, image.width, image.colorspace) == (5, 7, 3)
    decoded = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    np.testing.assert_array_equal(decoded, picture)
    assert grey.step == 2**40 and grey.summary.value[0].image.colorspace == 1
    value = text.summary.value[0]
    assert value.metadata.plugin_data.plugin_name == 'text'
    assert value.tensor.string_val[0].decode() == 'Grüße' and value.tensor.dtype == 7
    assert [d.size for d in value.tensor.tensor_shape.dim] == [1]


def test_files_of_another_writer_are_read(tmp_path):
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar('a', 0.5, 7)
        writer.add_text('t', 'hello', 8)
        writer.add_image('i', np.zeros((3, 4, 5), np.uint8), 9)
    found = {v.tag: (e.step, v) for e in read_events(tmp_path) for v in e.values}
    assert found['a'][0] == 7 and found['a'][1].number == 0.5
    assert found['t/text_summary'][1].text == 'hello'
    assert found['i'][0] == 9 and found['i'][1].png.startswith(b'\x89PNG')


@settings(max_examples=60, deadline=None)
@given(sessions)
def test_event_files_hold_each_tag_and_step_once_after_crashes(history):
    with tempfile.TemporaryDirectory() as folder:
        saved, expected, board = 0, set(), None
        for number_of_steps, writes, every, tear, torn in history:
            expected = {(tag, step) for tag, step in expected if step <= saved}
            board = logs.TensorBoard(folder, last_step=saved)
            assert set(purged(Path(folder))) == expected
            board.scalars(saved, {'a': 0.0})  # the evaluation of the step it resumed from, again
            expected.add(('a', saved))
            safe = event_files(folder)[-1].stat().st_size
            for step in range(saved + 1, saved + 1 + number_of_steps):
                for index in range(writes[(step - 1) % 12]):
                    board.scalars(step, {f'tag{index}': step, 'both': index})
                    expected |= {(f'tag{index}', step), ('both', step)}
                if step % every == 0:
                    board.flush()
                    saved, safe = step, event_files(folder)[-1].stat().st_size
            last = event_files(folder)[-1]
            if torn and last.stat().st_size > safe:
                os.truncate(last, safe + int(tear * (last.stat().st_size - safe)))
            board.close()
        logs.TensorBoard(folder, last_step=saved).close()
        values = [
            (v.tag, event.step)
            for event in foreign_events(Path(folder))
            for v in event.summary.value
        ]
        assert len(values) == len(set(values))
        assert set(values) == {(tag, step) for tag, step in expected if step <= saved}
        # TensorBoard's rule for restarts takes nothing away from that.
        assert sorted(purged(Path(folder))) == sorted(values)


def test_a_full_disk_leaves_whole_events(tmp_path, capsys):
    board = logs.TensorBoard(tmp_path, last_step=0)
    board.scalars(1, {'a': 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = event_files(tmp_path)[0].stat().st_size + 10
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        board.scalars(2, {'a': 1.0})
        assert board.failed
        assert purged(tmp_path) == [('a', 1)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    board.scalars(3, {'a': 1.0})
    board.close()
    assert not board.failed
    assert purged(tmp_path) == [('a', 1), ('a', 3)]
    (tmp_path / 'file').write_text('')
    board = logs.TensorBoard(tmp_path / 'file', last_step=0)
    board.scalars(1, {'a': 1.0})
    board.text(1, 'b', 'c')
    assert capsys.readouterr().err.count('cannot write TensorBoard files in') == 2


# ---- run.json -----------------------------------------------------------------------------------


def test_run_json_tells_how_every_session_ended(tmp_path, monkeypatch, capsys):
    path = tmp_path / 'run' / 'run.json'

    def read():
        return json.loads(path.read_text())

    info = logs.RunInfo(path, command=['python', 'train.py', '--config=a b'], devices=['cpu'])
    assert read()['status'] == 'running' and read()['command'] == "python train.py '--config=a b'"
    assert read()['packages']['numpy'] == np.__version__ and read()['history'] == []
    info.update(step=10, parameters=123)
    info = logs.RunInfo(path, from_step=10, loss=math.nan)
    assert read()['history'][0]['status'] == 'killed' and read()['history'][0]['step'] == 10
    assert read()['loss'] == 'nan'
    info.end('preempted', 'SIGTERM', step=20)
    logs.RunInfo(path, from_step=20).end('finished', step=30)
    done = read()
    assert [s['status'] for s in done['history']] == ['killed', 'preempted']
    assert done['status'] == 'finished' and done['ended'] and done['step'] == 30
    with pytest.raises(ValueError, match='done'):
        info.end('done')
    monkeypatch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(OSError(28, 'no space')))
    info.update(step=40)
    info.update(step=41)
    assert info.failed and capsys.readouterr().err.count('no space') == 1
    assert read() == done and os.listdir(path.parent) == ['run.json']


# ---- what a person sees -------------------------------------------------------------------------


class Terminal(io.StringIO):
    encoding = 'utf-8'

    def isatty(self):
        return True


def test_plain_progress_is_one_line_an_interval():
    stream = io.StringIO()
    progress = logs.Progress(100, start=0, stream=stream)
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


def test_the_bar_keeps_results_and_survives_its_terminal(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '60')
    monkeypatch.setenv('TERM', 'xterm')
    stream = Terminal()
    progress = logs.Progress(10, stream=stream)
    progress.update(4, {'train/loss': 2.0})
    progress.update(5, {'train/loss': 1.0, 'eval/test/accuracy': 0.5})
    logs.warn('look')
    assert capsys.readouterr().err == 'warning: look\n'
    bars = [p for p in re.split(r'\r\x1b\[K|\n', stream.getvalue()) if '%' in p]
    assert bars and all(len(bar) < 60 for bar in bars)
    assert ' 50%' in bars[-1] and 'loss 1' in bars[-1] and 'left' in bars[-1]
    assert 'step  5/10  test accuracy 0.5000\n' in stream.getvalue()
    progress.close()
    assert stream.getvalue().endswith('\n')

    class Broken(Terminal):
        def write(self, text):
            raise BrokenPipeError

    progress = logs.Progress(10, stream=Broken())
    progress.update(5, {'train/loss': 1.0})
    progress.close()


def test_numbers_and_durations():
    assert [number(v) for v in (0, 1, 0.5, 0.98765, 12.3456, 1234.5, 2.5e7, 1e-5)] == [
        '0', '1', '0.5000', '0.9877', '12.35', '1,234', '2.500e+07', '1.000e-05',
    ]  # fmt: skip
    assert [number(v) for v in (None, math.nan, -math.inf)] == ['', 'nan', '-inf']
    assert [duration(s) for s in (0, 7.4, 754, 18367, 2 * 86400 + 11100)] == [
        '0:00', '0:07', '12:34', '5:06:07', '2 d 03:05',
    ]  # fmt: skip


def test_image_grid_places_every_image():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 1), np.uint8)
    grid = logs.image_grid(images, columns=3)
    assert grid.shape == (2 * 5 + 2, 3 * 6 + 2, 3) and grid.dtype == np.uint8
    for index in range(5):
        top, left = 2 + index // 3 * 5, 2 + index % 3 * 6
        assert (grid[top : top + 3, left : left + 4] == index).all()
    with pytest.raises(ValueError, match='float64'):
        logs.image_grid(np.zeros((1, 2, 2, 3)))


def test_confusion_image_is_darkest_where_a_row_is_concentrated():
    matrix = np.zeros((25, 25))
    matrix[np.arange(25), np.arange(25)] = 3
    matrix[3, 3], matrix[3, 7] = 0, 1000
    image = logs.confusion_image(matrix).astype(int)
    cell = 720 // 25
    margin = image.shape[0] - 8 - 25 * cell
    centres = margin + cell // 2 + cell * np.arange(25)
    seen = image[np.ix_(centres, centres)].sum(-1) < 300
    np.testing.assert_array_equal(seen, matrix > 0)
    names = ['a cat', 'a dog']
    counts = logs.confusion_image([[2, 1], [0, 3]], names)
    shares = logs.confusion_image([[2 / 6, 1 / 6], [0, 3 / 6]], names)
    assert counts.shape == shares.shape and (counts != shares).any()  # 66.7 in the place of 2
    whole = logs.confusion_image([[4, 2], [0, 6]], names)
    np.testing.assert_array_equal(whole[-5:], counts[-5:])
    with pytest.raises(ValueError, match='1 class names'):
        logs.confusion_image(np.eye(2), ['a'])


def test_parameter_table_adds_up():
    import jax
    import jax.numpy as jnp

    values = np.random.default_rng(0).normal(2.0, 3.0, (300, 7)).astype(np.float32)
    tree = {
        'layers': {
            f'block{i}': {'kernel': jnp.asarray(values), 'bias': jnp.ones(7)} for i in range(11)
        },
        'head': jnp.zeros((7, 2), jnp.bfloat16),
    }
    lines = logs.parameter_table(tree).splitlines()
    names = [line.split()[0] for line in lines]
    assert names.index('layers/block2/kernel') < names.index('layers/block10/kernel')
    row = lines[names.index('layers/block3/kernel')].split()
    assert row[1:6] == ['300', '×', '7', 'float32', '2,100']
    assert float(row[6]) == pytest.approx(values.mean(), rel=1e-2)
    assert float(row[7]) == pytest.approx(values.std(), rel=1e-2)
    total = 11 * (2100 + 7) + 14
    assert lines[-1].split() == ['total', '23', 'arrays', f'{total:,}']
    short = logs.parameter_table(tree, max_rows=12)
    assert 'layers/block4' in short and 'kernel' not in short and '2 arrays' in short
    # Hundreds of arrays directly under one node cannot be grouped; the rest is summed up.
    flat = {f'w{i}': jnp.ones(3) for i in range(100)}
    lines = logs.parameter_table(flat).splitlines()
    assert len(lines) < 40 and '(66 more)' in lines[-3] and '198' in lines[-3]
    shapes = jax.eval_shape(lambda: tree)
    assert f'{total:,}' in logs.parameter_table(shapes) and 'mean' not in logs.parameter_table(
        shapes
    )
    assert logs.count_parameters(shapes) == total


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
