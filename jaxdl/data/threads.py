"""Work on many rows in a few threads: decoders of images let go of Python's lock."""

import concurrent.futures
import functools
import os
from collections.abc import Callable

_CHUNK = 256  # rows a thread decodes at a time


def threads() -> int:
    # Past some threads the work that holds the lock does not become faster.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return min(32, cores or 1)


@functools.cache
def pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads(), thread_name_prefix='decode')


def in_chunks(rows: int, work: Callable[[int, int], None]) -> None:
    """Calls work(start, stop) for consecutive parts of 0 … rows, in threads if there are several."""
    chunk = max(1, min(_CHUNK, -(-rows // threads())))
    starts = range(0, rows, chunk)
    stops = [min(start + chunk, rows) for start in starts]
    if len(starts) < 2:
        for start, stop in zip(starts, stops, strict=True):
            work(start, stop)
    else:
        list(pool().map(work, starts, stops))
