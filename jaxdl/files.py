"""Files: atomic writes, checked JSON, locks, and the cache folder."""

import contextlib
import fcntl
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from jaxdl.errors import UserError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A new binary file that replaces `path` once it is complete and on the disk.

    It has a random temporary name until then, so two processes do not write the same file. Raises
    OSError where the disk refuses; `path` then keeps its old content.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent)
    try:
        with os.fdopen(handle, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode_of(path))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The rename itself is safe only once the folder is on the disk.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _mode_of(path: Path) -> int:
    """The permissions of the file at `path`, or those of a new file under the umask."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file atomically: a reader sees the old content or the new one, never a part."""
    with replacing(path) as file:
        file.write(data)


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes `obj` as JSON atomically; numbers that are not finite become 'nan', 'inf', '-inf'."""
    text = json.dumps(_strict(obj), indent=2, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + '\n').encode())


def _strict(obj: Any) -> Any:
    if isinstance(obj, float) and not math.isfinite(obj):
        return str(obj)
    if isinstance(obj, Mapping):
        return {str(key): _strict(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_strict(value) for value in obj]
    return obj


DEEPEST = 100  # allowed levels of nested JSON, so that recursive readers never run out of stack


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text; ValueError where it is not JSON, or nested too deep."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError('it is nested too deeply') from None
    brackets = (b'[', b'{') if isinstance(data, bytes) else ('[', '{')
    if sum(map(data.count, brackets)) > DEEPEST and _deeper(value, DEEPEST):  # type: ignore[arg-type]
        raise ValueError('it is nested too deeply')
    return value


def _deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return False
    return not levels or any(_deeper(item, levels - 1) for item in inner)


def parse_object(data: bytes | str) -> dict[str, Any]:
    """The value of a JSON text that is an object; ValueError for any other value."""
    value = parse_json(data)
    if not isinstance(value, dict):
        raise ValueError(f'it holds a {type(value).__name__} instead of an object')
    return value


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """The object of a JSON file. Raises OSError or ValueError."""
    return parse_object(Path(path).read_bytes())


class Lock:
    """An exclusive lock on a file; the system releases it even if the owner is killed.

    Args:
        path: the lock file, created if it is missing.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file: Any = None

    def take(self, *, wait: bool = False) -> bool:
        """Takes the lock; False if it is held elsewhere. Raises OSError if it cannot be opened."""
        file = open(self.path, 'a+')
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return False
        except BaseException:
            file.close()
            raise
        with contextlib.suppress(OSError):  # on a full disk the lock works without its text
            file.seek(0)
            file.truncate()
            file.write(f'{os.getpid()} on {os.uname().nodename}')
            file.flush()
        self._file = file
        return True

    def is_taken(self) -> bool:
        """Whether some process holds the lock; the text in the file is left unchanged."""
        try:
            with open(self.path) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def owner(self) -> str:
        """The process named in the lock file, such as '4711 on host'."""
        try:
            return self.path.read_text(errors='replace').strip()[:80] or 'unknown'
        except OSError:
            return 'unknown'

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def expanded(path: str) -> str:
    """`path` with a leading `~` replaced by the home folder, as shells do; theirs leave `--flag=~` alone.

    Raises:
        UserError: there is no such home folder, or a folder named `~` would come about.
    """
    found = os.path.expanduser(path)
    if found.startswith('~'):
        raise UserError(f'{found:.80}: there is no home folder for the ~; write the whole path')
    return found


def cache_folder(given: str = '') -> Path | None:
    """The cache folder: `given`, else $JAXDL_CACHE, $XDG_CACHE_HOME/jaxdl or ~/.cache/jaxdl.

    An absolute path, which need not exist; None where there is no home folder.
    """
    chosen = given or os.environ.get('JAXDL_CACHE')
    if chosen:
        found = os.path.expanduser(chosen)
        return None if found.startswith('~') else Path(os.path.abspath(found))
    base = os.environ.get('XDG_CACHE_HOME')
    if base and os.path.isabs(base):
        return Path(base) / 'jaxdl'
    home = os.path.expanduser('~')
    return Path(home) / '.cache' / 'jaxdl' if os.path.isabs(home) else None


def needed_cache_folder(given: str = '') -> Path:
    """The cache folder, for callers that cannot work without one.

    Raises:
        UserError: there is no home folder, and neither `given` nor the environment names another.
    """
    folder = cache_folder(given)
    if folder is None:
        raise UserError('there is no home folder to keep data in; set JAXDL_CACHE to a folder')
    return folder
