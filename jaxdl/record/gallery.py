"""samples/STEP/NAME.png and .md: the newest pictures and texts of a run, as files to look at."""

import contextlib
import re
import shutil
from pathlib import Path

from jaxdl import files
from jaxdl.record.terminal import DiskGuard

KEPT = 3  # samples of one name that are kept; TensorBoard has all of them


class Gallery:
    """The folder samples/ of a run; opening it deletes samples of steps past `last_step`.

    An error of the disk is reported once and does not end the training.

    Args:
        folder: created with the first sample.
        last_step: the step that the run starts or resumes from.
    """

    def __init__(self, folder: Path, *, last_step: int):
        self.folder = folder
        self._guard = DiskGuard(f'samples in {folder}')
        self.truncate(last_step)

    def picture(self, step: int, name: str, png: bytes) -> None:
        """Writes a PNG file; `name` may contain slashes."""
        self._keep(step, name, '.png', png)

    def text(self, step: int, name: str, text: str) -> None:
        """Writes a Markdown file."""
        self._keep(step, name, '.md', text.encode())

    def truncate(self, last_step: int) -> None:
        """Deletes everything past `last_step`, for a roll-back to a checkpoint."""
        with self._guard:
            for step, folder in _steps(self.folder):
                if step > last_step:
                    shutil.rmtree(folder)

    def flush(self) -> None:
        """Does nothing, since every file is written at once."""

    def close(self) -> None:
        """Does nothing, since no file stays open."""

    def _keep(self, step: int, name: str, ending: str, data: bytes) -> None:
        parts = [re.sub(r'[^\w.=+-]+', '_', part).strip('.') for part in name.split('/')]
        place = '/'.join(part or '_' for part in parts) + ending
        with self._guard:
            files.write_bytes(self.folder / str(step) / place, data)
            there = [folder for _, folder in _steps(self.folder) if (folder / place).exists()]
            for folder in there[:-KEPT]:
                (folder / place).unlink()
                with contextlib.suppress(OSError):  # the folder is not empty
                    for parent in (folder / place).relative_to(self.folder).parents[:-1]:
                        (self.folder / parent).rmdir()


def newest(folder: Path) -> dict[str, tuple[int, Path]]:
    """The newest sample of each name, {file name relative to its step: (step, file)}."""
    found = {}
    for step, place in _steps(folder):
        for path in sorted(place.rglob('*')):
            if path.suffix in ('.png', '.md') and path.is_file() and not path.name.startswith('.'):
                found[path.relative_to(place).as_posix()] = step, path
    return found


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """The folders of all steps, in the order of the steps."""
    if not folder.is_dir():
        return []
    return sorted((int(path.name), path) for path in folder.iterdir() if path.name.isdecimal())
