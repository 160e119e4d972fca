"""TensorBoard event files, written without TensorFlow, and truncated if a run is rolled back.

An event file is a sequence of records [length uint64, its masked CRC-32C, bytes, their masked
CRC-32C]; each record is a protocol buffer `Event`. The few fields that are needed are encoded here
by hand. tensorboardX is not used because it writes from a queue and a thread: a full disk kills the
thread, and the next writes block the training for ever. It also imports torch where that is
installed (2 s). The tests read the files with tensorboardX's protocol buffers.
https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto
"""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxdl import files
from jaxdl.record.terminal import DiskGuard

# Checksums of contents are verified only in this many bytes at the end of a file.
_CHECKED = 2**20


class TensorBoard:
    """Event files of a run in `folder`: scalars, images and texts, each (tag, step) once.

    `last_step` is the step the run starts or resumes from. Opening removes events past it and
    incomplete records from the existing files. Writing a tag again at the same step replaces it.
    Files are created with the first write. Errors of the disk are reported once and training goes
    on; values that could not be written are missing here, but not in metrics.jsonl.

    Attributes:
        guard: knows whether the disk fails.
    """

    def __init__(self, folder: str | os.PathLike, *, last_step: int):
        self.folder = Path(folder)
        after = 'Training goes on; metrics.jsonl is the record'
        self.guard = DiskGuard(f'TensorBoard files in {folder}', after)
        self._file: BinaryIO | None = None
        self._latest: dict[bytes, int] = {}  # the newest step of each tag
        self._restart: int | None = None
        self.truncate(last_step)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes numbers; TensorBoard shows those that are not finite as triangles."""
        self._write(step, {tag: _simple_value(float(value)) for tag, value in values.items()})

    def image(self, step: int, tag: str, png: bytes) -> None:
        """Writes a PNG file, grey or RGB."""
        self._write(step, {tag: _image(png)})

    def text(self, step: int, tag: str, text: str) -> None:
        """Writes a text, which TensorBoard shows as Markdown."""
        self._write(step, {tag: _text(text)})

    def truncate(self, last_step: int) -> None:
        """Removes everything past `last_step`, for a roll-back to a checkpoint."""
        with self.guard:
            if self._cut(lambda step, tag: step <= last_step):
                self._restart = last_step + 1

    def flush(self) -> None:
        """Forces everything onto the disk (fsync)."""
        if self._file is not None:
            with self.guard:
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _write(self, step: int, values: dict[str, bytes]) -> None:
        if not values:
            return
        coded = {tag.encode(): value for tag, value in values.items()}
        with self.guard:
            again = {tag for tag in coded if self._latest.get(tag, -1) >= step}
            if again:
                self._cut(lambda s, tag: not (tag in again and s >= step))
            # One event per value, so that a value can be removed without encoding the others anew.
            self._append(
                b''.join(_event(step, _summary(tag, value)) for tag, value in coded.items())
            )
            self._latest.update(dict.fromkeys(coded, step))

    def _append(self, records: bytes) -> None:
        if self._file is None:
            self._file = self._create()
        start = self._file.tell()
        try:
            _write_all(self._file, records)
        except OSError:
            # Readers stop at an incomplete record. If it cannot be removed, the next write starts a
            # new file.
            try:
                self._file.truncate(start)
                self._file.seek(start)
            except OSError:
                self.close()
            raise

    def _create(self) -> BinaryIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names, so the time in a new file's name must
        # be the latest, even if the clock was set back.
        stamps = [_stamp(path) for path in event_files(self.folder)]
        stamp = max([time.time(), *(s + 1e-3 for s in stamps)])
        name = f'events.out.tfevents.{stamp:017.6f}.{socket.gethostname()}.{os.getpid()}'
        file = open(self.folder / name, 'xb', buffering=0)
        try:
            _write_all(file, _event(0, _field(3, b'brain.Event:2')))
            if self._restart is not None:
                # This event makes a running TensorBoard drop what it has read past this step.
                session = _field(7, b'\x08\x01')  # SessionLog(status=START)
                _write_all(file, _event(self._restart, session))
                self._restart = None
        except OSError:
            file.close()
            raise
        return file

    def _cut(self, keep: Callable[[int, bytes], bool]) -> bool:
        """Removes values for which keep(step, tag) is False, and incomplete records.

        Returns whether there were such values.
        """
        self.close()
        cut = False
        self._latest = {}
        for path in event_files(self.folder):
            data = path.read_bytes()
            kept = []
            for record, step, tag in _records(data):
                if tag and not keep(step, tag):
                    cut = True
                    continue
                kept.append(record)
                if tag:
                    self._latest[tag] = max(self._latest.get(tag, -1), step)
            new = b''.join(kept)
            if len(new) < len(data):
                if data.startswith(new):
                    os.truncate(path, len(new))  # works on a full disk too
                else:
                    files.write_bytes(path, new)
        return cut


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


# ---- reading what this module wrote -------------------------------------------------------------


def _records(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """(record, step, tag) of each event up to the first broken one; tag b'': it has no value."""
    place = 0
    while place + 16 <= len(data):
        (length,) = struct.unpack_from('<Q', data, place)
        end = place + 12 + length + 4
        if end > len(data) or _checksum(data[place : place + 8]) != data[place + 8 : place + 12]:
            return
        body = data[place + 12 : end - 4]
        # A crash damages only the end of a file, and a checksum in Python takes 0.1 s per megabyte.
        if end > len(data) - _CHECKED and _checksum(body) != data[end - 4 : end]:
            return
        try:
            step, after = _read_varint(body, 10)  # after the wall time and the key of the step
            size = 0
            if body[after] == 5 << 3 | 2:  # Event.summary
                for _ in range(3):  # descend into the summary, its value and the value's tag
                    size, after = _read_varint(body, after + 1)
        except IndexError:
            return
        yield data[place:end], step, body[after : after + size]
        place = end


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


def _event(step: int, content: bytes) -> bytes:
    """The record of an event."""
    data = b'\x09' + struct.pack('<d', time.time()) + b'\x10' + _varint(step) + content
    length = struct.pack('<Q', len(data))
    return length + _checksum(length) + data + _checksum(data)


def _summary(tag: bytes, value: bytes) -> bytes:
    return _field(5, _field(1, _field(1, tag) + value))


def _simple_value(value: float) -> bytes:
    return b'\x15' + np.float32(value).tobytes()


def _image(png: bytes) -> bytes:
    width, height = struct.unpack_from('>II', png, 16)
    channels = {0: 1, 2: 3}[png[25]]  # PNG's colour types: grey, RGB
    sizes = b''.join(
        bytes([number << 3]) + _varint(size)
        for number, size in ((1, height), (2, width), (3, channels))
    )
    return _field(4, sizes + _field(4, png))


def _text(text: str) -> bytes:
    # A string tensor (DT_STRING = 7) of shape [1] for TensorBoard's plug-in "text".
    shape = _field(2, _field(2, b'\x08\x01'))
    tensor = b'\x08\x07' + shape + _field(8, text.encode())
    return _field(8, tensor) + _field(9, _field(1, _field(1, b'text')))


def _make_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _make_table()


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C, four bytes."""
    table = _TABLE
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
