"""Checkpoints that are verified: Orbax writes them, and a record in each proves their content.

Orbax checks neither the bytes of arrays nor to which step and run they belong. So each checkpoint
also holds a record (identity.py) with a digest per leaf of the state. Digests are computed on the
device and do not depend on the sharding. A restore computes them again; if anything differs or
cannot be read, the next older step is tried.
"""

import functools
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdl.core import config as config_lib
from jaxdl.core.optim import path_name
from jaxdl.errors import UserError
from jaxdl.record.digest import Digest
from jaxdl.record.identity import hash_of, identity, read_record, record_file, seal

READ_AHEAD = 2**27  # bytes that a restore may hold in host memory besides the arrays


def leaf_names(tree: Any) -> list[str]:
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be trusted; the message says which part and why."""


class Checkpoints:
    """The checkpoints of one run: folder/STEP/, written in the background.

    Args:
        folder: the run's `checkpoints` folder.
        options: which checkpoints are kept.
        read_only: never write, clean up or move anything in the folder.
    """

    def __init__(self, folder: Path, options: config_lib.Checkpoint, *, read_only: bool = False):
        self.folder = Path(folder).absolute()
        self.options = options
        self.read_only = read_only
        self.failed = ''
        self._checkpointer: Any = None
        self._under_way: int | None = None  # the step that is being saved
        self._identity: dict[str, Any] | None = None  # what every new record holds, read once

    def steps(self) -> list[int]:
        """The steps that have a folder, oldest first; their content is not checked."""
        try:
            names = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(
                f'{self.folder} cannot be read ({error.strerror}); it must be a folder of checkpoints'
            ) from None
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def _open(self) -> Any:
        if self._checkpointer is None:
            ocp = _orbax()
            policies = ocp.training.preservation_policies
            keep: list[Any] = [policies.LatestN(self.options.keep)]
            if self.options.best:
                keep.append(
                    policies.BestN(
                        get_metric_fn=lambda metrics: metrics['best'],
                        reverse=self.options.mode == 'min',
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    )
                )

            def open_folder():
                return ocp.training.Checkpointer(
                    self.folder,
                    save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                    preservation_policy=policies.AnyPreservationPolicy(keep),
                    cleanup_tmp_directories=True,
                )

            try:
                self._checkpointer = open_folder()
            except ValueError:
                # Orbax reads the metadata of all steps, and refuses if one of them is damaged.
                for step in self.steps():
                    try:
                        self._metadata(step)
                    except DamagedCheckpoint as error:
                        self._name_damage(step, error)
                self._checkpointer = open_folder()
        return self._checkpointer

    # ---- saving ----

    def save(self, step: int, state: Any, *, extra: dict, best: float | None = None) -> bool:
        """Starts to save `state`, and returns once it may be changed; False: it failed.

        `extra` is JSON that is restored with the state. A failed save does not end the training: a
        warning is printed, `failed` holds the reason, and older checkpoints stay as they are.
        """
        self.wait()  # warns if the previous save failed; this one may still work
        try:
            checkpointer = self._open()
            if self._identity is None:
                self._identity = identity(self.folder.parent)
            content = {**self._identity, 'step': step, 'leaves': leaf_names(state), 'extra': extra}
            context = _orbax().Context()
            # Weights hardly compress: zstd takes four times the CPU time for 8 % fewer bytes.
            context.array.saving.use_compression = False
            with context:
                checkpointer.save_checkpointables_async(
                    step,
                    {'state': state, 'record': _Record(json.dumps(content), Digest(state))},
                    overwrite=True,
                    metrics=None if best is None else {'best': best},
                    custom_metadata={'step': step},
                )
            self._under_way = step
            return True
        except Exception as error:  # the file system and Orbax may raise anything
            self._warn(step, error)
            return False

    def wait(self) -> bool:
        """Waits for the save that is under way; False if it failed."""
        step, self._under_way = self._under_way, None
        if self._checkpointer is None:
            return True
        try:
            self._checkpointer.wait()
            # Orbax silently skips a step if the folder holds a newer one.
            if step is not None and not record_file(self.folder, step).is_file():
                raise OSError('Orbax has written nothing; is there a folder of a later step?')
            return True
        except Exception as error:
            self._warn(step, error)
            return False

    def _warn(self, step: int | None, error: BaseException) -> None:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = 'a checkpoint' if step is None else f'the checkpoint of step {step}'
        self.failed = f'{where} could not be saved in {self.folder}: {first}'
        print(f'WARNING: {self.failed}', file=sys.stderr, flush=True)
        # Orbax may still be inside the failed save, so the next save opens the folder anew.
        checkpointer, self._checkpointer = self._checkpointer, None
        try:
            if checkpointer is not None:
                checkpointer.close()
        except Exception:
            pass

    def close(self) -> None:
        if self._checkpointer is not None:
            self.wait()
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None

    # ---- restoring ----

    def restore(self, abstract: Any, *, step: int | None = None) -> tuple[int, Any, dict]:
        """The newest good (step, state, extra), with the shardings of `abstract`.

        Damaged steps are named on stderr. Once a good one is found they are moved to `../damaged`,
        unless read_only. All processes of a run restore the same step.

        Raises:
            UserError: there is no good checkpoint; the message says what was tried.
        """
        return self._newest_good(lambda shapes: abstract, step=step, whole=True)

    def restore_part(
        self, choose: Callable[[dict[str, jax.ShapeDtypeStruct]], Any], *, step: int | None = None
    ) -> tuple[int, Any, dict]:
        """Like `restore`, for a part of the state.

        `choose` gets the shapes of all saved leaves, {'params/…': shape}, and returns an abstract
        tree with shardings of those to load. Only these are read.
        """
        return self._newest_good(choose, step=step, whole=False)

    def _newest_good(
        self, choose: Callable, *, step: int | None, whole: bool
    ) -> tuple[int, Any, dict]:
        steps = self.steps() if step is None else [step]
        tried = {}
        for candidate in reversed(steps):
            try:
                state, extra = self._load(candidate, choose, whole=whole)
            except DamagedCheckpoint as error:
                tried[candidate] = error
                continue
            for damaged, error in tried.items():
                self._name_damage(damaged, error)
            return candidate, state, extra
        reasons = '; '.join(f'step {number}: {error}' for number, error in tried.items())
        raise UserError(
            f'no good checkpoint in {self.folder} (tried {reasons or "none: it is empty"}).\n'
            'Give another --workdir to start anew, or put back a good checkpoint folder'
        )

    def _load(self, step: int, choose: Callable, *, whole: bool) -> tuple[Any, dict]:
        record, abstract, error = {}, None, None
        try:
            record = self._read_record(step)
            if whole:
                self._compare(record)
            shapes, names = self._shapes(step), record['leaves']
            if shapes.keys() != set(names):
                raise DamagedCheckpoint('the description of its arrays cannot be read')
            abstract = choose(shapes)
            wanted = leaf_names(abstract)
            if (names != wanted) if whole else not set(wanted) <= set(names):
                odd = sorted(set(wanted) ^ set(names))
                raise DamagedCheckpoint(
                    f'its state has other leaves than this config: {", ".join(odd[:3])}'
                )
        except DamagedCheckpoint as found:
            error = found
        _raise_on_all(error)  # all processes must take part in the read that follows, or none
        try:
            state = self._read_state(step, abstract, record)
        except DamagedCheckpoint as found:
            error = found
        _raise_on_all(error)
        return state, record['extra']

    def _read_state(self, step: int, abstract: Any, record: dict[str, Any]) -> Any:
        ocp = _orbax()
        wanted, names = leaf_names(abstract), record['leaves']
        context = ocp.Context()
        context.pytree.loading.partial_load = len(wanted) < len(names)
        # Without a limit Orbax reads the whole state into host memory, besides the arrays.
        largest = max(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
        context.memory.read_concurrent_bytes = max(READ_AHEAD, 2 * largest)
        try:
            with context:
                state = ocp.load_checkpointables(self.folder / str(step), {'state': abstract})[
                    'state'
                ]
        except Exception as error:
            raise DamagedCheckpoint(f'it cannot be read ({_first_line(error)})') from None
        expected = dict(zip(names, record['digests'], strict=True))
        digests = zip(wanted, Digest(state).values().tolist(), strict=True)
        wrong = [name for name, digest in digests if expected[name] != digest]
        if wrong:
            more = f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''
            raise DamagedCheckpoint(f'the bytes of {wrong[0]}{more} do not match their digest')
        held = dict(zip(wanted, jax.tree.leaves(state), strict=True)).get('step')
        if held is not None and int(held) != step:
            raise DamagedCheckpoint(f'its state is of step {int(held)}')
        return state

    def _read_record(self, step: int) -> dict[str, Any]:
        """The record of a step; raises DamagedCheckpoint if it is not one of this run."""
        if not (self.folder / str(step)).is_dir():
            raise DamagedCheckpoint('there is no such folder')
        try:
            record = read_record(record_file(self.folder, step))
        except (OSError, ValueError) as error:
            raise DamagedCheckpoint(f'its record cannot be read ({_first_line(error)})') from None
        if record['step'] != step:
            raise DamagedCheckpoint(f'it is the checkpoint of step {record["step"]}')
        if len(record['leaves']) != len(record['digests']):
            raise DamagedCheckpoint(f'it has {len(record["digests"])} digests for its leaves')
        own = identity(self.folder.parent)['id']
        if own and record['id'] != own:
            raise DamagedCheckpoint(
                f'it belongs to another run ({record["id"]:.8}…, this one is {own:.8}…)'
            )
        return record

    def check(self, step: int | None = None) -> dict[str, Any]:
        """The record of the newest readable checkpoint of this run, or of `step`; {} without one.

        Raises:
            UserError: config.json or another file of the folder has changed since the save.
        """
        for candidate in [step] if step is not None else reversed(self.steps()):
            try:
                record = self._read_record(candidate)
            except DamagedCheckpoint:
                continue
            self._compare(record)
            return record
        return {}

    def _compare(self, record: dict[str, Any]) -> None:
        """Raises UserError where the files of the run's folder differ from the record."""
        place, found = self.folder.parent, identity(self.folder.parent)
        changed = [
            path
            for path in config_lib.differences(record['config'], found['config'], added=False)
            if not config_lib.may_change(path, map(str, record['places']))
        ]
        if found['config'] and record['config'] and changed:
            was, now = (
                config_lib.at(tree, changed[0]) for tree in (record['config'], found['config'])
            )
            raise UserError(
                f'{place / "config.json"} is not the one that step {record["step"]} was trained with: '
                f'{changed[0]} was {json.dumps(was):.60}, now it is {json.dumps(now):.60}'
                f'{f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""}.\n'
                'Put the file back as it was written'
            )
        if found['data'] and found['data'] != record['data']:
            raise UserError(
                f'{place / "run.json"} has other fingerprints of the data than step {record["step"]} '
                'was trained on; put the file back as it was written'
            )
        for name, was in record['files'].items():
            if name != 'config.py' and hash_of(place / name) != was:
                raise UserError(
                    f'{place / name} is not the file that step {record["step"]} was trained with; '
                    'put it back'
                )

    def _name_damage(self, step: int, error: DamagedCheckpoint) -> None:
        place = self.folder / str(step)
        if jax.process_index() == 0:
            print(f'WARNING: checkpoint {place} is damaged: {error}', file=sys.stderr, flush=True)
        if not self.read_only:
            self._set_aside(step)

    def _shapes(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """{path: shape and dtype} of the leaves of a step."""
        found = self._metadata(step)
        try:
            leaves = jax.tree_util.tree_leaves_with_path(found.metadata['state'])
            return {
                path_name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
                for path, leaf in leaves
            }
        except Exception as error:
            raise DamagedCheckpoint(f'its metadata cannot be read ({_first_line(error)})') from None

    def _metadata(self, step: int) -> Any:
        """Orbax's metadata of a step. One bad step would keep Orbax from opening the folder."""
        try:
            found = _orbax().checkpointables_metadata(self.folder / str(step))
        except Exception as error:
            raise DamagedCheckpoint(f'its metadata cannot be read ({_first_line(error)})') from None
        if found.custom_metadata != {'step': step}:
            raise DamagedCheckpoint('its metadata is missing or of another step')
        return found

    def _set_aside(self, step: int) -> None:
        target = self.folder.parent / 'damaged'
        try:
            if jax.process_index() == 0:
                target.mkdir(exist_ok=True)
                place = target / str(step)
                if place.exists():
                    shutil.rmtree(place)
                os.rename(self.folder / str(step), place)
        except OSError:
            pass  # the folder is read-only, and the next save of this step overwrites it
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None  # Orbax still lists the moved step until it opens anew


def _raise_on_all(error: DamagedCheckpoint | None) -> None:
    """Raises DamagedCheckpoint on every process if it happened on one: all must use one step."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        good = np.asarray(multihost_utils.process_allgather(np.asarray(error is None)))
        if error is None and not good.all():
            raise DamagedCheckpoint(f'process {int(np.argmin(good.ravel()))} cannot read it')
    if error is not None:
        raise error


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [''])[0]
    return f'{type(error).__name__}: {text[:120]}'


class _Record:
    """The content of a record, and the digests that are still being computed."""

    def __init__(self, content: str, digest: Digest):
        self.content, self.digest = content, digest

    def text(self) -> bytes:
        # As text it stays what it was when the save began.
        return seal({**json.loads(self.content), 'digests': self.digest.values().tolist()})


class _RecordHandler:
    """Lets Orbax's thread write the record, so that training does not wait for the digests."""

    async def save(self, directory: Any, checkpointable: _Record) -> Any:
        async def write():
            folder = await directory.await_creation()
            text = checkpointable.text()
            if jax.process_index() == 0:
                (folder / 'record.json').write_bytes(text)

        return write()

    async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Any:
        raise NotImplementedError  # `read_record` reads it, without Orbax

    async def metadata(self, directory: Any) -> None:
        return None

    def is_handleable(self, checkpointable: Any) -> bool:
        return isinstance(checkpointable, _Record)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool:
        return abstract_checkpointable is _Record


@functools.cache
def _orbax() -> Any:
    """Orbax, with the handler for records registered; imported late, as that takes seconds."""
    from orbax.checkpoint import v1 as ocp

    # Errors are raised and reported in one line, so Orbax's logged tracebacks are left out.
    logging.getLogger('absl').addFilter(lambda line: f'{os.sep}orbax{os.sep}' not in line.pathname)
    ocp.handlers.register_handler(_RecordHandler)
    return ocp
