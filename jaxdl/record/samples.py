"""samples.jsonl: the ids of the examples of every step, each step once, also across resumes."""

import json
import os
from pathlib import Path

from jaxdl.files import parse_object
from jaxdl.record.terminal import warn


class SamplesFile:
    """One line {"step": …, "ids": […]} per step; opening drops the lines past `last_step`.

    If the disk fails, a warning is printed and nothing more is written, so the file is a correct
    record up to that step. The training goes on.

    Attributes:
        failed: True once the disk has failed.
    """

    def __init__(self, path: Path, *, last_step: int):
        self.path = path
        self.failed = False
        self._file = -1
        self.truncate(last_step)

    def truncate(self, last_step: int) -> None:
        """Drops an incomplete last line and every line past `last_step`."""
        self.close()
        try:
            if self.path.exists():
                # Truncating leaves the lines before untouched, and works on a full disk too.
                kept = sum(len(line) for line, step in _lines(self.path) if step <= last_step)
                os.truncate(self.path, kept)
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            self._fail(error)

    def write(self, step: int, ids: list[int]) -> None:
        if self._file < 0:
            return
        data = json.dumps({'step': step, 'ids': ids}).encode() + b'\n'
        try:
            # The whole line in one call, so that a killed process leaves no part of it.
            if os.write(self._file, data) < len(data):
                raise OSError(28, 'No space left on device')
        except OSError as error:
            self._fail(error)

    def flush(self) -> None:
        if self._file >= 0:
            try:
                os.fsync(self._file)
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _fail(self, error: OSError) -> None:
        self.failed = True
        self.close()
        warn(
            f'cannot write {self.path}: {error.strerror or error}. Training goes on; '
            'this file ends here'
        )


def _lines(path: Path) -> list[tuple[bytes, int]]:
    """(line, step) up to the first line that is incomplete or whose step does not increase."""
    if not path.exists():
        return []
    found: list[tuple[bytes, int]] = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            step = parse_object(line).get('step')
        except ValueError:
            break  # a crash has damaged this line, and what follows cannot be trusted
        if type(step) is not int or not line.endswith(b'\n') or (found and step <= found[-1][1]):
            break
        found.append((line, step))
    return found
