"""The processes of one run watch each other: one that dies or fails ends the others, with a reason.

A collective waits for ever for a process that is gone. So each process tells the coordination
service of jax.distributed every few seconds that it lives; the chief (process 0) looks for who fell
silent, and what it finds, or what a failing process says of itself, every process reads at once.
When the chief itself dies, jax ends the others ("another task died").
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

# A process that was silent for SILENT seconds counts as dead; well under a minute, and long enough
# for a machine that swaps. jax itself would wait 100 s and then abort.
EVERY, SILENT = 4.0, 25.0
MEET = 1800  # seconds that one process may compile longer than another

_runs = 0  # each run of a process has its own keys


class Peers:
    """This process among the others of its run; with a single process it does nothing.

    Attributes:
        report: called with the reason before another's death ends this process with exit code 1.
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
        """Waits for the others: a collective waits only 30 s for one that still compiles."""
        if self._client is not None:
            self._meetings += 1
            self._client.wait_at_barrier(f'{self._key}/meet/{self._meetings}', 1000 * MEET)

    def failed(self, error: BaseException) -> BaseException:
        """Tells the others that this process ends because of `error`; they end too.

        Returns what to raise: `error`, or a clearer one where a collective broke. jax would wait at
        exit for the others, which wait for this one: the exit becomes immediate.
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
            self._wait_for_others()  # the service they read from ends with this process
        atexit.register(_exit_now, code)
        return error

    def close(self) -> None:
        """Leaves in peace: the others may go on without this process."""
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
                # Never a call that waits inside: at exit such a thread would abort the process.
                reason = self._client.key_value_try_get(f'{self._key}/over')
                lost = 0.0
            except Exception as error:
                if 'NOT_FOUND' in str(error):  # the usual case: nothing happened
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
        """Why the run is over: who fell silent; '' while all live."""
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
            pass  # the thread finds out whether the service is gone

    def _publish(self, reason: str) -> None:
        try:
            self._client.key_value_set(f'{self._key}/over', reason)
        except Exception:
            pass  # another process was first: one reason is enough

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
    """How several processes agree on the step at which they stop, without waiting for each other.

    Every process sends with each batch whether it was asked to stop, one number a device; the step
    adds them up, so all read the same sum in the metrics of the same step.

    Args:
        mesh: of the run.
        calls: steps in one program.

    Attributes:
        alone: a single process needs no agreement; the batch carries nothing.
        abstract: what the batch carries for one step, as the step is compiled for it.
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
        """What this process adds to its batch; the arrays are placed once."""
        return self._placed[asked]
