"""samples.jsonl: the ids of the examples of every step, each step once, also across resumes."""

import json
import os
from pathlib import Path


class SamplesFile:
    """One line {"step": …, "ids": […]} a step, appended; on opening, lines past `last_step` go."""

    def __init__(self, path: Path, *, last_step: int):
        self.path = path
        self.truncate(last_step)

    def truncate(self, last_step: int) -> None:
        """Drops a torn last line and every line past `last_step`."""
        kept = [line for line, step in _lines(self.path) if step <= last_step]
        temporary = self.path.with_suffix('.tmp')
        temporary.write_bytes(b''.join(kept))
        os.replace(temporary, self.path)
        self._file = open(self.path, 'ab', buffering=0)

    def write(self, step: int, ids: list[int]) -> None:
        self._file.write(json.dumps({'step': step, 'ids': ids}).encode() + b'\n')

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_samples(path: Path) -> dict[int, list[int]]:
    """{step: ids} of a samples.jsonl."""
    return {step: json.loads(line)['ids'] for line, step in _lines(path)}


def _lines(path: Path) -> list[tuple[bytes, int]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            found.append((line, json.loads(line)['step']))
        except (ValueError, KeyError):
            break  # torn by a crash; what follows cannot be trusted
    return [item for item in found if item[0].endswith(b'\n')]
