"""One run as the host sees it: its folder, its logs, its checkpoints, and where it stands.

The loop trains a list of lanes by one program. An ordinary training has one; several trials of a
sweep may share a program, each with its own order of examples, log, checkpoints and end.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxdl.account.account import Account
from jaxdl.account.clock import Clock
from jaxdl.account.energy import Meter, local_gpus
from jaxdl.core.config import Config
from jaxdl.core.pipeline import Order
from jaxdl.core.step import FINITE, TrainState, hyper_parameters
from jaxdl.errors import Diverged, NotSaved
from jaxdl.metrics import MetricPacking
from jaxdl.record import metrics_file as logs
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.record.folder import Workdir
from jaxdl.record.writer import Record
from jaxdl.run import nonfinite

# Time in these is no training: the speed leaves it out.
ASIDE = ('evaluation', 'checkpoint', 'log', 'compile', 'profile')


class Lane:
    """One run.

    Args:
        config: its config.
        place: its folder.
        examples: size of the training set.
        clock: of the process.

    Attributes:
        step: completed steps that were started; their metrics may still be under way.
        metrics: the newest value of each name.
        over: 'finished' or 'diverged' once it is trained no further.
        diverged: why, for a run that diverged.
        rollback: a step that was not finite and sends this run back to its last checkpoint.
        saved_step: what was saved or restored last.
        unevaluated: a signal broke the evaluation of the newest step off.
        sums: float64 [size], the packed metrics of the finite steps since the last line of metrics.
        counted: how many steps those are.
    """

    def __init__(self, config: Config, place: Workdir, examples: int, clock: Clock):
        self.config, self.place, self.clock = config, place, clock
        self.chief = jax.process_index() == 0
        self.record = Record(place, chief=self.chief, sample_ids=config.record_samples)
        self.hyper = hyper_parameters(config)
        self.order = Order(examples, config.batch_size, config.seed)
        self.checkpoints = Checkpoints(place.checkpoints, config.checkpoint)
        self.account = Account(
            clock,
            Meter(local_devices=local_gpus()),
            batch_size=config.batch_size,
            run=place.read_run(),
            last_row=self.last_row(),
        )
        self.saved_before = place.saved_step()
        self.metrics: dict[str, float] = {}
        self.recalled: dict[str, Any] = {}
        self.over = ''
        self.diverged: Diverged | None = None
        self.rollback: nonfinite.Rollback | None = None
        self.saved_step: int | None = None
        self.unevaluated = False
        self.evaluated = -1  # the newest step that was evaluated
        self.sums, self.counted = np.zeros(0, np.float64), 0

    def last_row(self) -> dict[str, Any]:
        """The newest line of metrics.jsonl, {} where there is none."""
        return (logs.read_metrics(self.place.metrics) or [{}])[-1]

    @property
    def sound(self) -> bool:
        """Whether its state is that of its step: it is neither over nor about to go back."""
        return not self.over and self.rollback is None

    # ---- where it starts ----

    def recall(self, state: TrainState, extra: dict | None) -> None:
        """Stands where `state` does; `extra` is what the checkpoint held beside it, if there was one."""
        self.step = int(state.step)
        health = jax.device_get(state.health)
        self.skipped, self.in_a_row = int(health.skipped), int(health.in_a_row)
        self.rollbacks, self.offset = int(health.rollbacks), int(health.data_offset)
        self.saved_step = None if extra is None else self.step
        self.recalled = extra or {}
        self.unevaluated = bool(self.recalled.get('unevaluated'))
        self.metrics = dict(self.recalled.get('metrics', self.metrics))

    def begin(self, **facts: Any) -> None:
        """Writes config.json and run.json: from here on the folder holds this run."""
        self.record.begin(
            self.config,
            from_step=self.step,
            saved=self.saved_before if self.saved_step is None else self.saved_step,
            **self.account.facts(),
            **facts,
        )

    def ids(self, step: int) -> np.ndarray:
        """The ids of the examples that `step` (from 1) is trained on, int64 [batch]."""
        return self.order.batch(step - 1 + self.offset)

    # ---- the metrics of steps ----

    def begin_training(self, packing: MetricPacking, suspects: Sequence[str]) -> None:
        """Before the first step, with the sums of an interval that a checkpoint broke off.

        `packing` says where each metric stands in a step's vector, `suspects` what
        `Steps.suspects` gives.
        """
        self.packing, self.suspects = packing, suspects
        self._begin_interval(self.step)
        saved = np.asarray(self.recalled.get('sums') or [], np.float64)
        if len(saved) == packing.size:
            self.sums, self.counted = saved, int(self.recalled['counted'])

    def _begin_interval(self, step: int) -> None:
        self.sums, self.counted = np.zeros(self.packing.size, np.float64), 0
        self._since = step, self._seconds_of_training()

    def _seconds_of_training(self) -> float:
        seconds = self.clock.read()
        return self.clock.total() - sum(seconds.get(name, 0.0) for name in ASIDE)

    def count(self, step: int, vector: np.ndarray) -> str:
        """Takes in the packed metrics of a step; returns a warning, '' where all is well.

        Where the policy sends the run back or ends it, `rollback` or `diverged` say so.
        """
        metrics = self.packing.unpack(vector)
        if metrics[FINITE][0] == 1:
            self.in_a_row = 0
            self.sums += vector
            self.counted += 1
            return ''
        self.in_a_row += 1
        self.skipped += 1
        message = nonfinite.describe(step, metrics, self.suspects, self.ids(step))
        try:
            return nonfinite.judge(
                self.config.divergence,
                step,
                message,
                in_a_row=self.in_a_row,
                rollbacks=self.rollbacks,
            )
        except nonfinite.Rollback as back:
            self.rollback = back
        except Diverged as error:
            self.diverged, self.over = error, 'diverged'
            self.write(step, {'train/skipped': float(self.skipped)})
            self.record.end('failed', str(error), exit=error.exit_code)
        return ''

    def log(self, step: int) -> dict[str, float]:
        """Ends the interval: its means and its speed are the row of `step`."""
        means = self.packing.means(self.sums) if self.counted else {}
        scalars = {name: value for name, value in means.items() if isinstance(value, float)}
        if scalars:
            scalars |= self.config.task.derived(scalars)
        row = {f'train/{name}': value for name, value in scalars.items()}
        if self.skipped:
            row['train/skipped'] = float(self.skipped)
        if self.rollbacks:
            row['train/rollbacks'] = float(self.rollbacks)
        first, before = self._since
        seconds = (self._seconds_of_training() - before) / (step - first) if step > first else 0.0
        row |= self.account.speed(step, seconds)
        size = self.config.batch_size
        row['perf/epoch'] = (step + self.offset) * size / self.order.examples
        self._begin_interval(step)
        return row

    def write(self, step: int, row: dict[str, float]) -> None:
        self.metrics |= row
        with self.clock('log'):
            self.record.write(step, row)

    # ---- saving and ending ----

    def due(self, every: int) -> bool:
        """Whether something that happens each `every` steps (0: never) happens now, before the end."""
        return bool(every) and self.step % every == 0 and self.step < self.config.steps

    def save(self, state: TrainState) -> bool:
        """Starts to save a state whose steps' metrics were taken in and are finite."""
        step = self.step
        # The value of an older step would let a later, worse state count as the best.
        best = self.metrics.get(self.config.checkpoint.best) if self.evaluated == step else None
        extra = {
            'sums': self.sums.tolist() if self.counted else [],
            'counted': self.counted,
            'metrics': self.metrics,
            'unevaluated': self.unevaluated,
            'account': self.account.extra(),
        }
        if step < self.config.steps:
            self.write(step, self.account.metrics())
        with self.clock('log'):
            self.record.flush()
        with self.clock('checkpoint'):
            if step == self.saved_step:
                return True
            saved = self.checkpoints.save(step, state, extra=extra, best=best)
            self.saved_step = step if saved else self.saved_step
        if saved:
            self.account.keep()
            # Orbax ends the save before this one first, so a step noted here was once complete.
            self.record.note(step=step, saved=max(self.checkpoints.steps(), default=None))
        return saved

    def finish(self, state: TrainState) -> None:
        """Saves the last state and says that the run is done.

        Raises:
            NotSaved: it could not be saved.
        """
        saved = self.save(state)
        with self.clock('checkpoint'):
            saved = self.checkpoints.wait() and saved
        if not saved:
            raise NotSaved(f'the run reached step {self.step}, but {self.checkpoints.failed}')
        self.record.note(step=self.step, saved=self.step)
        self.write(self.step, self.account.metrics())
        self.record.end('finished', f'step {self.step}')
        self.over = 'finished'

    def close(self) -> None:
        self.account.close()
        self.record.close()
        self.checkpoints.close()
