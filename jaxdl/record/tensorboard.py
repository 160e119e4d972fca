"""TensorBoard event files, written and read without TensorFlow.

An event file is a row of records [length uint64, its masked CRC-32C, bytes, their masked CRC-32C],
each record a protocol buffer `Event`. The few fields that are needed are encoded here by hand:
tensorboardX does the same from a queue and a thread, where a full disk kills the thread and the
next writes block the training for ever, and it imports torch where that is installed (2 s). The
tests read the files with tensorboardX's protocol buffers.
https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto
"""

import contextlib
import io
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxdl.record.terminal import warn

# The last bytes of a file, in which the checksums of contents are checked.
_CHECKED = 2**20


class TensorBoard:
    """Event files of a run in `folder`: scalars, images and texts, each (tag, step) once.

    `last_step` is the step the run starts or resumes from: on opening, events past it and torn
    ends are cut out of the files that are there. Writing a tag again at the same step replaces
    it. Files are made with the first write. Errors of the disk are said once and training goes on;
    what could not be written is missing here (metrics.jsonl is the record).

    Attributes:
        failed: True while the disk refuses.
    """

    def __init__(self, folder: str | os.PathLike, *, last_step: int):
        self.folder = Path(folder)
        self.failed = False
        self._file: BinaryIO | None = None
        self._latest: dict[str, int] = {}  # the newest step of each tag
        self._restart: int | None = None
        self.truncate(last_step)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes numbers; not-finite ones too, which TensorBoard shows as triangles."""
        self._write(step, {tag: _simple_value(float(value)) for tag, value in values.items()})

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Writes a uint8 image [height, width, 1 or 3]."""
        self._write(step, {tag: _image(np.asarray(image))})

    def text(self, step: int, tag: str, text: str) -> None:
        """Writes a text, which TensorBoard shows as Markdown."""
        self._write(step, {tag: _text(text)})

    def truncate(self, last_step: int) -> None:
        """Cuts out everything past `last_step`, for a run that goes back to a checkpoint."""
        with self._guard():
            if self._cut(lambda step, tag: step <= last_step):
                self._restart = last_step + 1

    def flush(self) -> None:
        """Puts everything onto the disk itself."""
        if self._file is not None:
            with self._guard():
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _write(self, step: int, values: dict[str, bytes]) -> None:
        if not values:
            return
        with self._guard():
            again = {tag for tag in values if self._latest.get(tag, -1) >= step}
            if again:
                self._cut(lambda s, tag: not (tag in again and s >= step))
            summary = b''.join(
                _field(1, _field(1, tag.encode()) + value) for tag, value in values.items()
            )
            self._append(_event(step, _field(5, summary)))
            self._latest.update(dict.fromkeys(values, step))

    def _append(self, event: bytes) -> None:
        if self._file is None:
            self._file = self._create()
        start = self._file.tell()
        try:
            _write_all(self._file, _record(event))
        except OSError:
            # Half a record would hide all that follow it, so the next write starts a new file
            # if this end cannot be removed.
            try:
                self._file.truncate(start)
                self._file.seek(start)
            except OSError:
                self.close()
            raise

    def _create(self) -> BinaryIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files in the order of their names; a clock that went back must
        # not bring a new file before an old one.
        stamps = [_stamp(path) for path in event_files(self.folder)]
        stamp = max([time.time(), *(s + 1e-3 for s in stamps)])
        name = f'events.out.tfevents.{stamp:017.6f}.{socket.gethostname()}.{os.getpid()}'
        file = open(self.folder / name, 'xb', buffering=0)
        try:
            _write_all(file, _record(_event(0, _field(3, b'brain.Event:2'))))
            if self._restart is not None:
                # A TensorBoard that is already showing the run drops what it read past this step.
                session = _field(7, b'\x08\x01')  # SessionLog(status=START)
                _write_all(file, _record(_event(self._restart, session)))
                self._restart = None
        except OSError:
            file.close()
            raise
        return file

    def _cut(self, keep: Callable[[int, str], bool]) -> bool:
        """Removes the values for which keep(step, tag) is False, and torn ends, from the files.

        Returns whether there were such values.
        """
        self.close()
        cut = False
        self._latest = {}
        for path in event_files(self.folder):
            data = path.read_bytes()
            kept = []
            for event in _events(data):
                dropped = [v for v in event.values if not keep(event.step, v.tag)]
                stays = [v for v in event.values if keep(event.step, v.tag)]
                for value in stays:
                    self._latest[value.tag] = max(self._latest.get(value.tag, -1), event.step)
                if not dropped:
                    kept.append(event.record)
                elif stays:
                    summary = b''.join(_field(1, value.data) for value in stays)
                    kept.append(_record(_event(event.step, _field(5, summary), event.time)))
                cut = cut or bool(dropped)
            new = b''.join(kept)
            if new == data:
                continue
            if data.startswith(new):
                os.truncate(path, len(new))
            else:
                temporary = path.with_name(f'.{os.getpid()}.tmp')
                temporary.write_bytes(new)
                os.replace(temporary, path)
        return cut

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self.failed:
                self.failed = True
                warn(
                    f'cannot write TensorBoard files in {self.folder}: {error.strerror or error}. '
                    'Training goes on; metrics.jsonl is the record'
                )
        else:
            self.failed = False


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def event_files(folder: str | os.PathLike) -> list[Path]:
    """The event files of a folder in the order in which they were written."""
    return sorted(Path(folder).glob('events.out.tfevents.*'))


def _stamp(path: Path) -> float:
    try:
        return float('.'.join(path.name.split('.')[3:5]))
    except ValueError:
        return 0.0


# ---- reading ------------------------------------------------------------------------------------


@dataclass
class Value:
    """One tagged value of an event: a number, a PNG image or a text (the others are None)."""

    tag: str = ''
    number: float | None = None
    png: bytes | None = None
    text: str | None = None
    data: bytes = b''


@dataclass
class Event:
    """One record of an event file."""

    step: int = 0
    time: float = 0.0
    values: list[Value] = field(default_factory=list)
    record: bytes = b''


def read_events(folder: str | os.PathLike) -> Iterator[Event]:
    """Yields the events of all files in a folder; each file up to its first broken record."""
    for path in event_files(folder):
        yield from _events(path.read_bytes())


def _events(data: bytes) -> Iterator[Event]:
    place = 0
    while place + 16 <= len(data):
        (length,) = struct.unpack_from('<Q', data, place)
        end = place + 12 + length + 4
        if end > len(data) or _masked_crc(data[place : place + 8]) != _number(data, place + 8):
            return
        body = data[place + 12 : end - 4]
        # What a crash damages is the end; checking pictures in pure Python takes 0.1 s a megabyte.
        if end > len(data) - _CHECKED and _masked_crc(body) != _number(data, end - 4):
            return
        try:
            event = _decode_event(body)
        except (IndexError, struct.error):
            return
        event.record = data[place:end]
        yield event
        place = end


def _number(data: bytes, place: int) -> int:
    return struct.unpack_from('<I', data, place)[0]


def _decode_event(data: bytes) -> Event:
    event = Event()
    for number, value in _fields(data):
        if number == 1:
            event.time = struct.unpack('<d', value)[0]
        elif number == 2:
            event.step = value
        elif number == 5:
            event.values = [_decode_value(v) for n, v in _fields(value) if n == 1]
    return event


def _decode_value(data: bytes) -> Value:
    value = Value(data=data)
    for number, content in _fields(data):
        if number == 1:
            value.tag = content.decode(errors='replace')
        elif number == 2:
            value.number = struct.unpack('<f', content)[0]
        elif number == 4:
            value.png = next((c for n, c in _fields(content) if n == 4), None)
        elif number == 8:
            texts = [c.decode(errors='replace') for n, c in _fields(content) if n == 8]
            value.text = '\n'.join(texts) if texts else None
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The (field number, raw value) pairs of an encoded protocol buffer."""
    place = 0
    while place < len(data):
        key, place = _read_varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _read_varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, place = data[place : place + size], place + size
        elif kind == 2:
            size, place = _read_varint(data, place)
            value, place = data[place : place + size], place + size
        else:
            return
        yield key >> 3, value


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place


# ---- encoding -----------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _event(step: int, content: bytes, moment: float | None = None) -> bytes:
    wall = struct.pack('<d', time.time() if moment is None else moment)
    return b'\x09' + wall + b'\x10' + _varint(step) + content


def _simple_value(value: float) -> bytes:
    return b'\x15' + np.float32(value).tobytes()


def _image(image: np.ndarray) -> bytes:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(
            f'image must be uint8 [height, width, 1 or 3], not {image.dtype} {image.shape}'
        )
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, 'PNG')
    height, width, channels = image.shape
    sizes = b''.join(
        bytes([number << 3]) + _varint(size)
        for number, size in ((1, height), (2, width), (3, channels))
    )
    return _field(4, sizes + _field(4, buffer.getvalue()))


def _text(text: str) -> bytes:
    # A string tensor (DT_STRING = 7) of shape [1], marked as one of the plug-in "text".
    shape = _field(2, _field(2, b'\x08\x01'))
    tensor = b'\x08\x07' + shape + _field(8, text.encode())
    return _field(8, tensor) + _field(9, _field(1, _field(1, b'text')))


def _record(data: bytes) -> bytes:
    length = struct.pack('<Q', len(data))
    return b''.join(
        [
            length,
            struct.pack('<I', _masked_crc(length)),
            data,
            struct.pack('<I', _masked_crc(data)),
        ]
    )


def _masked_crc(data: bytes) -> int:
    crc = _crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _make_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _make_table()


def _crc32c(data: bytes) -> int:
    table = _TABLE
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
