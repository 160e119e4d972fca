"""Shows a report that follows its runs: a web server for this machine alone."""

import functools
import http.server
import threading
import time
from collections.abc import Callable
from pathlib import Path

from jaxdl.errors import UserError
from jaxdl.record.terminal import warn

EVERY = 10
"""Seconds after which an open page is asked for anew, and at least between two reports."""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder; the page is made anew when it is asked for."""

    def __init__(self, *args, refresh: Callable[[], None], **options):
        self.refresh = refresh
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        # Only names of this machine: a page of somebody else's must not read it by another name.
        if self.headers.get('Host', '').rpartition(':')[0] not in ('127.0.0.1', 'localhost'):
            self.send_error(403, 'only for this machine')
            return
        if self.path in ('/', '/index.html'):
            self.refresh()
        super().do_GET()

    def end_headers(self) -> None:
        if self.path in ('/', '/index.html'):
            self.send_header('Refresh', str(EVERY))
        self.send_header('Cache-Control', 'no-store')
        super().end_headers()

    def log_message(self, format: str, *args) -> None:
        """Does not print every request."""


def server(output: Path, make: Callable[[], object], port: int) -> http.server.ThreadingHTTPServer:
    """A server of the report in `output`, which `make` writes; 127.0.0.1 only; port 0: a free one.

    Raises:
        UserError: the port cannot be had.
    """
    lock, made = threading.Lock(), [0.0]

    def refresh() -> None:
        with lock:  # several pages may be open
            if time.monotonic() - made[0] < EVERY / 2:
                return
            try:
                make()
            except (
                UserError
            ) as error:  # a file is half written, or a run was moved: the old page stays
                warn(f'the report stays as it is: {error}')
            made[0] = time.monotonic()

    handler = functools.partial(Handler, refresh=refresh, directory=str(output))
    try:
        return http.server.ThreadingHTTPServer(('127.0.0.1', port), handler)
    except (OSError, OverflowError) as error:
        raise UserError(f'--port={port}: {error}; give another one') from None
