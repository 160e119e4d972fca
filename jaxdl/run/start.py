"""Where a run's state comes from: its newest good checkpoint, another run, or initialisation."""

import sys
from collections.abc import Callable

import jax
import numpy as np

from jaxdl.core import mesh as mesh_lib
from jaxdl.core.program import Program
from jaxdl.core.step import TrainState
from jaxdl.errors import UserError
from jaxdl.run import warm_start
from jaxdl.run.lane import Lane

# Training examples that are given to a model when it is initialised.
INIT_ROWS = 512

Fetch = Callable[[np.ndarray], dict[str, np.ndarray]]


def start(lane: Lane, program: Program, fetch: Fetch) -> TrainState:
    """The state that a run starts from: restored, or fresh.

    Args:
        lane: the run; its step and its records are set to those of the state.
        program: the compiled functions of the run.
        fetch: gives training rows by their ids.

    Raises:
        UserError: the run was saved before, but the folder holds no good checkpoint.
    """
    state, extra = _restored(lane, program)
    if state is None:
        if lane.saved_before is not None:
            raise UserError(
                f'--workdir={lane.place.path} holds a run that was saved at step {lane.saved_before}, '
                f'but {lane.place.checkpoints} holds no good checkpoint.\n'
                'Put one back (damaged ones are kept in damaged/), or give another --workdir to start anew'
            )
        state = _fresh(lane, program, fetch)
    else:
        _say(f'resuming from step {int(state.step)} in {lane.place.path}')
    lane.recall(state, extra)
    lane.account.begin((extra or {}).get('account'))
    return state


def go_back(lane: Lane, program: Program, fetch: Fetch) -> TrainState:
    """The state of the last checkpoint, or a fresh one, with the data order past the bad step."""
    bad, lane.rollback = lane.rollback, None
    assert bad is not None
    lane.account.undo()
    lane.checkpoints.wait()
    state, extra = _restored(lane, program)
    if state is None:
        state = _fresh(lane, program, fetch)
    step, count = int(state.step), lane.rollbacks + 1
    moved, most = bad.step - step, lane.config.divergence.max_rollbacks
    _say(
        f'WARNING: {bad.message}; back to step {step}, data moved on by {moved} batches '
        f'(roll-back {count} of {most})',
        error=True,
    )
    everywhere = mesh_lib.replicated(program.mesh)
    health = state.health.replace(
        data_offset=mesh_lib.put(np.int32(lane.offset + moved), everywhere),
        rollbacks=mesh_lib.put(np.int32(count), everywhere),
    )
    state = state.replace(health=health)
    lane.recall(state, extra)
    lane.unevaluated = False  # this step was evaluated before the run went on from it
    lane.record.truncate(step)
    return state


def _restored(lane: Lane, program: Program) -> tuple[TrainState | None, dict | None]:
    with lane.clock('checkpoint'):
        if not lane.checkpoints.steps():
            return None, None
        _, state, extra = lane.checkpoints.restore(program.abstract)
        return state, extra


def _fresh(lane: Lane, program: Program, fetch: Fetch) -> TrainState:
    """A newly initialised state, or with init_from one with the weights of another run."""
    with lane.clock('init'):
        state = program.init(fetch(lane.order.batch(0)[:INIT_ROWS]), lane.hyper)
        options = lane.config.init_from
        if options.path:
            state, table = warm_start.load(options, program, state, lane.hyper)
            _say(table)
        return state


def _say(text: str, *, error: bool = False) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
