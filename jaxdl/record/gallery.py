"""samples/STEP/NAME.png and .md: the newest pictures and texts of a run, as files to look at."""

import contextlib
import re
import shutil
from pathlib import Path

from jaxdl import files
from jaxdl.record.terminal import DiskGuard

KEPT = 3  # pictures of one name; TensorBoard has all of them


class Gallery:
    """The folder samples/ of a run; on opening, what is of steps past `last_step` goes.

    A disk that refuses is said once and never ends the training.

    Args:
        folder: it is made with the first sample.
        last_step: the step that the run starts or resumes from.
    """

    def __init__(self, folder: Path, *, last_step: int):
        self.folder = folder
        self._guard = DiskGuard(f'samples in {folder}')
        self.truncate(last_step)

    def picture(self, step: int, name: str, png: bytes) -> None:
        """Keeps a PNG file; `name` may hold slashes."""
        self._keep(step, name, '.png', png)

    def text(self, step: int, name: str, text: str) -> None:
        """Keeps a text in Markdown."""
        self._keep(step, name, '.md', text.encode())

    def truncate(self, last_step: int) -> None:
        """Drops everything past `last_step`, for a run that goes back to a checkpoint."""
        with self._guard:
            for step, folder in _steps(self.folder):
                if step > last_step:
                    shutil.rmtree(folder)

    def flush(self) -> None:
        """Every file is on the disk as soon as it is written."""

    def close(self) -> None:
        """Nothing is open."""

    def _keep(self, step: int, name: str, ending: str, data: bytes) -> None:
        parts = [re.sub(r'[^\w.=+-]+', '_', part).strip('.') for part in name.split('/')]
        place = '/'.join(part or '_' for part in parts) + ending
        with self._guard:
            files.write_bytes(self.folder / str(step) / place, data)
            there = [folder for _, folder in _steps(self.folder) if (folder / place).exists()]
            for folder in there[:-KEPT]:
                (folder / place).unlink()
                with contextlib.suppress(OSError):  # not empty
                    for parent in (folder / place).relative_to(self.folder).parents[:-1]:
                        (self.folder / parent).rmdir()


def newest(folder: Path) -> dict[str, tuple[int, Path]]:
    """{file name relative to its step: (step, file)} of the newest sample of each name."""
    found = {}
    for step, place in _steps(folder):
        for path in sorted(place.rglob('*')):
            if path.suffix in ('.png', '.md') and path.is_file() and not path.name.startswith('.'):
                found[path.relative_to(place).as_posix()] = step, path
    return found


def _steps(folder: Path) -> list[tuple[int, Path]]:
    """The folders of steps, in order."""
    if not folder.is_dir():
        return []
    return sorted((int(path.name), path) for path in folder.iterdir() if path.name.isdecimal())
