"""The processes of one run watch each other: if one dies or fails, the others end with the reason.

Without this, a collective would wait for ever for a process that is gone. Each process reports to
the coordination service of jax.distributed every few seconds. The chief (process 0) notices when a
process stops reporting and publishes that; a process that fails publishes its own reason. All
others read it and end. If the chief itself dies, jax ends the others ("another task died").
"""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdl.core import mesh as mesh_lib
from jaxdl.core.step import STOP

# Seconds between two reports, and seconds of silence after which a process counts as dead. That is
# long enough for a machine that swaps; jax itself would wait 100 s and then abort.
EVERY, SILENT = 4.0, 25.0
MEET = 1800  # seconds by which one process may compile longer than another

_runs = 0  # runs begun in this process; each uses its own keys in the coordination service


class Peers:
    """Watches the other processes of this run; does nothing if there is only one.

    Attributes:
        report: called with the reason before another process's end ends this one with exit code 1.
    """

    def __init__(self):
        global _runs
        self.report: Callable[[str], None] = lambda reason: None
        self._closed = threading.Event()
        self._client: Any = None
        if jax.process_count() > 1:
            # The key-value store of the coordination service has no public name in jax 0.10.
            from jax._src import distributed

            self._client = distributed.global_state.client
        if self._client is None:
            return
        _runs += 1
        self._meetings = 0
        self._key = f'jaxdl/{_runs}'
        self._say('0')
        self._thread = threading.Thread(target=self._watch, name='peers', daemon=True)
        self._thread.start()

    def meet(self) -> None:
        """Waits until all have compiled, since a collective would wait only 30 s for the last."""
        if self._client is not None:
            self._meetings += 1
            self._client.wait_at_barrier(f'{self._key}/meet/{self._meetings}', 1000 * MEET)

    def failed(self, error: BaseException) -> BaseException:
        """Tells the others that this process ends because of `error`; they end too.

        Returns the error to raise: `error`, or a clearer one if a collective broke. The exit skips
        jax's own, which would wait for the other processes while they wait for this one.
        """
        if self._client is None or self._closed.is_set():
            return error
        self._closed.set()
        if isinstance(error, jax.errors.JaxRuntimeError):
            error = RuntimeError(
                f'another process of this run is probably gone ({_first(error)}); '
                'the same command on all processes resumes'
            )
        code = getattr(error, 'exit_code', 1)
        text = str(error) or type(error).__name__
        self._publish(f'process {jax.process_index()} failed: {text}')
        if jax.process_index() == 0:
            self._wait_for_others()  # the service that they read the reason from ends with us
        atexit.register(_exit_now, code)
        return error

    def close(self) -> None:
        """Stops watching; the others may go on without this process."""
        if self._client is not None and not self._closed.is_set():
            self._closed.set()
            self._thread.join(timeout=10)
            self._say('done')

    # ---- the thread ----

    def _watch(self) -> None:
        count, said, lost = 0, 0.0, 0.0
        seen: dict[int, tuple[str, float]] = {}
        while not self._closed.wait(min(1.0, EVERY)):
            now = time.monotonic()
            reason = ''
            try:
                # A blocking call would abort the process if it exits while this thread waits.
                reason = self._client.key_value_try_get(f'{self._key}/over')
                lost = 0.0
            except Exception as error:
                if 'NOT_FOUND' in str(error):  # the usual case: no process has ended
                    lost = 0.0
                else:
                    lost = lost or now
                    if now - lost > SILENT:
                        reason = f'the coordination service does not answer ({_first(error)})'
            if now - said > EVERY:
                count, said = count + 1, now
                self._say(str(count))
                if jax.process_index() == 0 and not reason:
                    reason = self._silent(seen)
            if reason and not self._closed.is_set():
                self._end(reason)

    def _silent(self, seen: dict[int, tuple[str, float]]) -> str:
        """Why the run is over: the processes that stopped reporting; '' if there are none."""
        try:
            found = dict(self._client.key_value_dir_get(f'{self._key}/beat/'))
        except Exception:
            return ''
        now = time.monotonic()
        beats = {int(key.rsplit('/', 1)[1]): value for key, value in found.items()}
        for index in range(jax.process_count()):
            value = beats.get(index, '')
            if index not in seen or seen[index][0] != value:
                seen[index] = (value, now)
        dead = [
            str(index)
            for index, (value, since) in seen.items()
            if value != 'done' and now - since > SILENT
        ]
        if not dead:
            return ''
        reason = (
            f'process {", ".join(dead)} of {jax.process_count()} is dead or unreachable '
            f'(silent for {SILENT:g} s)'
        )
        self._publish(reason)
        return reason

    def _end(self, reason: str) -> None:
        print(
            f'ERROR: {reason}; this process ends too. The same command on all processes resumes',
            file=sys.stderr,
            flush=True,
        )
        try:
            self.report(reason)
            if jax.process_index() == 0:
                self._wait_for_others()
            else:
                self._say('done')
        finally:
            _exit_now(1)

    def _say(self, value: str) -> None:
        key = f'{self._key}/beat/{jax.process_index()}'
        try:
            self._client.key_value_set(key, value, allow_overwrite=True)
        except Exception:
            pass  # the watching thread notices by itself if the service is gone

    def _publish(self, reason: str) -> None:
        try:
            self._client.key_value_set(f'{self._key}/over', reason)
        except Exception:
            pass  # another process has already published a reason, and one is enough

    def _wait_for_others(self) -> None:
        deadline = time.monotonic() + 2 * EVERY
        while time.monotonic() < deadline:
            try:
                found = self._client.key_value_dir_get(f'{self._key}/beat/')
            except Exception:
                return
            if sum(value == 'done' for _, value in found) >= jax.process_count() - 1:
                return
            time.sleep(0.1)


def _exit_now(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class StopFlag:
    """Lets several processes agree on the step at which they stop, without a separate collective.

    Each process adds one number per device to its batch: 1 if it was asked to stop. The step sums
    them, so all processes read the same sum in the metrics of the same step.

    Args:
        mesh: the run's mesh.
        calls: steps in one program.

    Attributes:
        alone: whether there is a single process, which needs no agreement and adds nothing.
        abstract: the shapes of the arrays that are added to the batch of one step.
    """

    def __init__(self, mesh: Mesh, calls: int):
        self.alone = jax.process_count() == 1
        self.abstract: dict[str, jax.ShapeDtypeStruct] = {}
        self._placed: list[dict[str, jax.Array]] = [{}, {}]
        if self.alone:
            return
        place = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        one = jax.ShapeDtypeStruct((mesh.size,), np.float32, sharding=place)
        self.abstract = {STOP: one}
        sent = one if calls == 1 else mesh_lib.stacked(one, calls)
        for asked in (0, 1):
            local = np.full(sent.sharding.shard_shape(sent.shape), asked, np.float32)
            self._placed[asked] = {
                STOP: jax.make_array_from_callback(
                    sent.shape, sent.sharding, lambda index, local=local: local
                )
            }

    def raised(self, asked: bool) -> dict[str, jax.Array]:
        """The arrays that this process adds to its batch; they are placed on the devices once."""
        return self._placed[asked]
