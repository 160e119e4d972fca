"""Event files hold each (tag, step) once whatever happens, and another reader understands them."""

import io
import math
import os
import resource
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdl.record.pictures import encode_png
from jaxdl.record.tensorboard import TensorBoard, event_files

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

    board = TensorBoard(tmp_path, last_step=0)
    assert not event_files(tmp_path)
    picture = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    board.scalars(300, {'train/loss': 0.25, 'train/norm': math.nan})
    board.image(300, 'grid', encode_png(picture))
    board.image(2**40, 'grey', encode_png(picture[..., :1]))
    board.text(300, 'sample', 'Grüße')
    board.close()
    version, loss, norm, grid, grey, text = foreign_events(tmp_path)
    assert version.file_version == 'brain.Event:2'
    assert [e.summary.value[0].tag for e in (loss, norm)] == ['train/loss', 'train/norm']
    assert loss.summary.value[0].simple_value == 0.25 and loss.step == 300
    assert math.isnan(norm.summary.value[0].simple_value) and norm.wall_time > 1e9
    image = grid.summary.value[0].image
    assert (image.height, image.width, image.colorspace) == (5, 7, 3)
    decoded = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    np.testing.assert_array_equal(decoded, picture)
    assert grey.step == 2**40 and grey.summary.value[0].image.colorspace == 1
    value = text.summary.value[0]
    assert value.metadata.plugin_data.plugin_name == 'text'
    assert value.tensor.string_val[0].decode() == 'Grüße' and value.tensor.dtype == 7
    assert [d.size for d in value.tensor.tensor_shape.dim] == [1]


@settings(max_examples=60, deadline=None)
@given(sessions)
def test_event_files_hold_each_tag_and_step_once_after_crashes(history):
    with tempfile.TemporaryDirectory() as folder:
        saved, expected, board = 0, set(), None
        for number_of_steps, writes, every, tear, torn in history:
            expected = {(tag, step) for tag, step in expected if step <= saved}
            board = TensorBoard(folder, last_step=saved)
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
        TensorBoard(folder, last_step=saved).close()
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
    board = TensorBoard(tmp_path, last_step=0)
    board.scalars(1, {'a': 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = event_files(tmp_path)[0].stat().st_size + 10
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        board.scalars(2, {'a': 1.0})
        assert board.guard.failed
        assert purged(tmp_path) == [('a', 1)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    board.scalars(3, {'a': 1.0})
    board.close()
    assert not board.guard.failed
    assert purged(tmp_path) == [('a', 1), ('a', 3)]
    (tmp_path / 'file').write_text('')
    board = TensorBoard(tmp_path / 'file', last_step=0)
    board.scalars(1, {'a': 1.0})
    board.text(1, 'b', 'c')
    assert capsys.readouterr().err.count('cannot write TensorBoard files in') == 2


def test_a_tensorboard_that_shows_the_run_is_told_to_go_back(tmp_path):
    board = TensorBoard(tmp_path, last_step=0)
    for step in (1, 2, 3):
        board.scalars(step, {'a': step})
    board.truncate(2)
    board.scalars(3, {'a': 30.0})
    board.close()
    starts = [e.step for e in foreign_events(tmp_path) if e.HasField('session_log')]
    assert starts == [3] and purged(tmp_path) == [('a', 1), ('a', 2), ('a', 3)]


def test_a_damaged_end_is_cut_off(tmp_path):
    board = TensorBoard(tmp_path, last_step=0)
    board.scalars(1, {'a': 1.0})
    board.text(2, 'b', 'x' * 50)
    board.close()
    (path,) = event_files(tmp_path)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    TensorBoard(tmp_path, last_step=9).close()
    assert purged(tmp_path) == [('a', 1)]
