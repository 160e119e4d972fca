"""Where a run's state comes from: its newest good checkpoint, another run's weights, or nothing."""

import sys
from collections.abc import Callable

import jax
import numpy as np

from jaxdl.account.clock import Clock
from jaxdl.core import mesh as mesh_lib
from jaxdl.core.program import Program
from jaxdl.core.step import TrainState
from jaxdl.errors import UserError
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.record.folder import Workdir
from jaxdl.run import warm_start
from jaxdl.run.nonfinite import Rollback


class States:
    """The states that a run starts from and goes back to.

    Args:
        program: of the run.
        checkpoints: of the run.
        place: its folder.
        rows: fetches the real rows that a fresh model may look at.
        clock: seconds go to 'checkpoint' and 'init'.
    """

    def __init__(
        self,
        program: Program,
        checkpoints: Checkpoints,
        place: Workdir,
        rows: Callable[[], dict[str, np.ndarray]],
        clock: Clock,
    ):
        self.program, self.checkpoints, self.place = program, checkpoints, place
        self.rows, self.clock = rows, clock
        self.saved_before = place.saved_step()

    def first(self) -> tuple[TrainState, dict | None]:
        """(state, what the checkpoint held beside it; None for a fresh state).

        Raises:
            UserError: the folder holds a run that was saved, but no good checkpoint.
        """
        with self.clock('checkpoint'):
            if self.checkpoints.steps():
                step, state, extra = self.checkpoints.restore(self.program.abstract)
                _say(f'resuming from step {step} in {self.place.path}')
                return state, extra
        if self.saved_before is not None:
            raise UserError(
                f'--workdir={self.place.path} holds a run that was saved at step {self.saved_before}, '
                f'but {self.place.checkpoints} holds no good checkpoint.\n'
                'Put one back (damaged ones are kept in damaged/), or give another --workdir to start anew'
            )
        return self.fresh(), None

    def fresh(self) -> TrainState:
        """A new state; with init_from it has the weights of another run."""
        with self.clock('init'):
            state = self.program.init(self.rows())
            options = self.program.config.init_from
            if options.path:
                state, table = warm_start.load(options, self.program, state)
                _say(table)
            return state

    def back(self, bad: Rollback, *, offset: int, count: int) -> tuple[TrainState, dict | None]:
        """The same as `first` for a roll-back: the data order moves past the bad step.

        Args:
            bad: what was not finite.
            offset: batches that the order was moved on by so far.
            count: number of this roll-back, from 1.
        """
        self.checkpoints.wait()
        step, extra = 0, None
        with self.clock('checkpoint'):
            if self.checkpoints.steps():
                step, state, extra = self.checkpoints.restore(self.program.abstract)
            else:
                state = self.fresh()
        moved, most = bad.step - step, self.program.config.divergence.max_rollbacks
        _say(
            f'WARNING: {bad.message}; back to step {step}, data moved on by {moved} batches '
            f'(roll-back {count} of {most})',
            error=True,
        )
        everywhere = mesh_lib.replicated(self.program.mesh)
        health = state.health.replace(
            data_offset=mesh_lib.put(np.int32(offset + moved), everywhere),
            rollbacks=mesh_lib.put(np.int32(count), everywhere),
        )
        return state.replace(health=health), extra


def _say(text: str, *, error: bool = False) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
