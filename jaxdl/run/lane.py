"""The host's side of one run: its folder, logs, checkpoints, step counter and end.

The loop trains a list of lanes with one program. An ordinary training is one lane. Several trials
of a sweep may share a program; each then has its own order of examples, log, checkpoints and end.
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
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.record.folder import Workdir
from jaxdl.record.metrics_file import read_metrics
from jaxdl.record.writer import Record
from jaxdl.run import nonfinite

# The buckets of the clock that do not count as training when the speed is computed.
ASIDE = ('evaluation', 'checkpoint', 'log', 'compile', 'profile')


class Lane:
    """One run.

    Args:
        config: the run's config.
        place: the run's folder.
        examples: size of the training set.
        clock: the clock of the process.

    Attributes:
        step: steps that were started; the metrics of the newest may not have arrived yet.
        metrics: the newest value of each metric.
        over: 'finished' or 'diverged' once the run is not trained any further.
        diverged: the reason, if the run diverged.
        rollback: set by a non-finite step after which the run must return to its last checkpoint.
        saved_step: the step that was saved or restored last.
        steps: the last step: that of the config, or an earlier one at which config.early_stop ended the run.
        unevaluated: whether a signal interrupted the evaluation of the newest step.
        sums: float64 [size], sum of the packed metrics of finite steps since the last logged line.
        counted: the number of these steps.
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
        self.evaluated = -1  # the newest evaluated step
        self.steps = config.steps
        self.early: dict[str, Any] = {}  # of early_stop: metric, best, evaluations since
        self.sums, self.counted = np.zeros(0, np.float64), 0

    def last_row(self) -> dict[str, Any]:
        """The newest line of metrics.jsonl, or {}."""
        return (read_metrics(self.place.metrics) or [{}])[-1]

    @property
    def sound(self) -> bool:
        """Whether its state may be evaluated and saved: it is not over nor to be rolled back."""
        return not self.over and self.rollback is None

    # ---- the start ----

    def recall(self, state: TrainState, extra: dict | None) -> None:
        """Continues from `state`; `extra` is what its checkpoint held beside it, or None."""
        self.step = int(state.step)
        health = jax.device_get(state.health)
        self.skipped, self.in_a_row = int(health.skipped), int(health.in_a_row)
        self.rollbacks, self.offset = int(health.rollbacks), int(health.data_offset)
        self.saved_step = None if extra is None else self.step
        self.recalled = extra or {}
        self.unevaluated = bool(self.recalled.get('unevaluated'))
        self.metrics = dict(self.recalled.get('metrics', self.metrics))
        self.early, self.steps = dict(self.recalled.get('early') or {}), self.config.steps
        self._decide()

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
        """Called before the first step; continues the sums of an unfinished interval.

        `packing` names the entries of a step's vector of metrics, `suspects` is the result of
        `Steps.suspects`.
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
        """Adds the packed metrics of a step and returns a warning, or ''.

        If the step was not finite, `rollback` or `diverged` may be set, as the policy says.
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
        """Ends the interval and returns the row of `step`: its means and its speed."""
        means = self.packing.means(self.sums) if self.counted else {}
        # What counted nothing, such as the return of episodes when none has ended, has no mean.
        weights = {name: weight for name, (_, weight) in self.packing.unpack(self.sums).items()}
        scalars = {
            name: value
            for name, value in means.items()
            if isinstance(value, float) and weights[name]
        }
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

    def judge(self) -> str:
        """Counts the evaluation of this step for early_stop; says why the run ends here, or ''."""
        rule = self.config.early_stop
        if not rule.metric:
            return ''
        if self.early.get('metric') != rule.metric:
            self.early = {'metric': rule.metric, 'best': None, 'since': 0}
        value, best = self.metrics[rule.metric], self.early['best']
        better = rule.better(value, best)
        self.early |= {'best': value, 'since': 0} if better else {'since': self.early['since'] + 1}
        self._decide()
        return f'ends at step {self.step}: {self.reason}' if self.step == self.steps else ''

    def _decide(self) -> None:
        """Makes this step the last one if early_stop says so."""
        rule = self.config.early_stop
        if self.early.get('metric') == rule.metric and self.early.get('since', 0) >= rule.patience:
            self.steps = min(self.step, self.steps)

    @property
    def reason(self) -> str:
        """Why the run ends at its last step."""
        if self.steps == self.config.steps:
            return f'step {self.step}'
        best, since = self.early['best'], self.early['since']
        found = 'was no number' if best is None else f'was not better than {best:.6g}'
        more = f'{since} evaluations' if since > 1 else '1 evaluation'
        return f'{self.early["metric"]} {found} in {more}'

    def write(self, step: int, row: dict[str, float]) -> None:
        self.metrics |= row
        with self.clock('log'):
            self.record.write(step, row)

    # ---- saving and ending ----

    def due(self, every: int) -> bool:
        """Whether `step` is a multiple of `every` (0: never) before the last step."""
        return bool(every) and self.step % every == 0 and self.step < self.steps

    def save(self, state: TrainState) -> bool:
        """Starts saving `state`; the metrics of all its steps must have been counted and finite."""
        step = self.step
        # Only the value of this very step: an older one would rank this state by another state.
        best = self.metrics.get(self.config.checkpoint.best) if self.evaluated == step else None
        extra = {
            'sums': self.sums.tolist() if self.counted else [],
            'counted': self.counted,
            'metrics': self.metrics,
            'unevaluated': self.unevaluated,
            'early': self.early,
            'account': self.account.extra(),
        }
        if step < self.steps:
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
            # Orbax completes the previous save before it starts this one, so these are complete.
            self.record.note(step=step, saved=max(self.checkpoints.steps(), default=None))
        return saved

    def finish(self, state: TrainState) -> None:
        """Saves the last state and records in run.json that the run is finished.

        Raises:
            NotSaved: the state could not be saved.
        """
        saved = self.save(state)
        with self.clock('checkpoint'):
            saved = self.checkpoints.wait() and saved
        if not saved:
            raise NotSaved(f'the run reached step {self.step}, but {self.checkpoints.failed}')
        self.record.note(step=self.step, saved=self.step)
        self.write(self.step, self.account.metrics())
        self.record.end('finished', self.reason)
        self.over = 'finished'

    def close(self) -> None:
        self.account.close()
        self.record.close()
        self.checkpoints.close()
