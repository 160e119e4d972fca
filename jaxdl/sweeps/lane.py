"""One run among several that are trained by one program: its folder, logs and checkpoints.

It writes what jaxdl.run.loop writes, so each run can be resumed, evaluated and reported alone.
"""

import json
import shutil
import time
from typing import Any

import numpy as np

from jaxdl.core.config import Config
from jaxdl.core.pipeline import Order
from jaxdl.core.step import FINITE, Packing, TrainState, hyper_parameters
from jaxdl.errors import UserError
from jaxdl.record import metrics_file as logs
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.record.folder import Workdir


class Lane:
    """One run.

    Args:
        config: its config.
        workdir: its folder, which is locked.
        examples: size of the training set.

    Attributes:
        over: why it is trained no further: '', 'finished' or 'diverged'.
    """

    def __init__(self, config: Config, workdir: str, examples: int):
        self.config = config
        self.place = Workdir(workdir)
        self.place.create()
        self.place.check_config(config)
        self.hyper = hyper_parameters(config)
        self.order = Order(examples, config.batch_size, config.seed)
        self.checkpoints = Checkpoints(self.place.checkpoints, config.checkpoint)
        self.metrics: dict[str, float] = {}
        self.sums = np.zeros(0)
        self.counted = 0
        self.in_a_row = self.skipped = 0
        self.over = ''
        self.offset = 0
        self.earlier: dict[str, float] = {}
        self.info: logs.RunInfo | None = None
        self._logs: list[Any] = []

    # ---- beginning ----

    def has_finished(self) -> bool:
        """Whether the last row of the run is written and its last state saved."""
        try:
            info = json.loads(self.place.run.read_text())
        except (OSError, ValueError):
            return False
        return info.get('status') == 'finished' and info.get('step', 0) >= self.config.steps

    def restore(self, step: int, abstract: TrainState) -> TrainState | None:
        """The state of `step`, or None if its checkpoint is damaged; later steps are dropped."""
        try:
            _, state, extra = self.checkpoints.restore(abstract, step=step)
        except UserError:
            return None
        for later in self.checkpoints.steps():
            if later > step:
                shutil.rmtree(self.place.checkpoints / str(later), ignore_errors=True)
        self.sums = np.asarray(extra.get('sums') or [], np.float64)
        self.counted = int(extra.get('counted', 0))
        self.metrics = dict(extra.get('metrics', {}))
        self.earlier = dict((extra.get('account') or {}).get('seconds', {}))
        self.offset = int(state.health.data_offset)
        self.in_a_row, self.skipped = int(state.health.in_a_row), int(state.health.skipped)
        return state

    def begin(self, step: int, packing: Packing, **facts: Any) -> None:
        """Writes config.json and run.json and opens the logs."""
        self.info = self.place.begin(self.config, from_step=step, **facts)
        self.file = logs.MetricsFile(self.place.metrics, last_step=step)
        self.tensorboard = logs.TensorBoard(self.place.tensorboard, last_step=step)
        self._logs = [self.file, self.tensorboard]
        self.packing = packing
        if len(self.sums) != packing.size:
            self._restart()

    def _restart(self) -> None:
        self.sums, self.counted = np.zeros(self.packing.size, np.float64), 0

    # ---- training ----

    def count(self, vector: np.ndarray) -> bool:
        """Takes in the packed metrics of one step; False: the run has diverged."""
        if self.packing.unpack(vector)[FINITE][0] == 1:
            self.in_a_row = 0
            self.sums += vector
            self.counted += 1
            return True
        self.in_a_row += 1
        self.skipped += 1
        policy = self.config.divergence
        return policy.policy == 'skip' and self.in_a_row <= policy.max_skips

    def log(self, step: int, seconds_per_step: float) -> dict[str, float]:
        """Ends the interval: its means become the row of `step`."""
        means = self.packing.means(self.sums) if self.counted else {}
        if means:
            means |= self.config.task.derived(
                {k: v for k, v in means.items() if isinstance(v, float)}
            )
        row = {f'train/{name}': v for name, v in means.items() if isinstance(v, float)}
        if self.skipped:
            row['train/skipped'] = float(self.skipped)
        size = self.config.batch_size
        if seconds_per_step > 0:
            row['perf/examples_per_s'] = size / seconds_per_step
            row['perf/step_time_ms'] = 1000 * seconds_per_step
        row['perf/epoch'] = (step + self.offset) * size / self.order.examples
        self.write(step, row)
        self._restart()
        return row

    def write(self, step: int, row: dict[str, float]) -> None:
        self.metrics |= row
        self.file.write(step, row)
        self.tensorboard.scalars(step, row)

    def seconds(self, share: dict[str, float]) -> dict[str, float]:
        """This run's account of the time: what earlier sessions took, and its share of this one."""
        found = dict(self.earlier)
        for name, value in share.items():
            found[name] = found.get(name, 0.0) + value
        return found

    def write_time(self, step: int, share: dict[str, float]) -> None:
        """The row of the account, as jaxdl.account.account makes it."""
        seconds = self.seconds(share)
        row = {f'perf/time_{name}_s': value for name, value in sorted(seconds.items())}
        self.write(step, {**row, 'perf/wall_s': sum(seconds.values())})

    def save(self, step: int, state: TrainState, share: dict[str, float]) -> bool:
        """Starts to save a state whose steps' metrics were taken in."""
        best = (
            self.metrics.get(self.config.checkpoint.best) if self.config.checkpoint.best else None
        )
        extra = {
            'sums': list(map(float, self.sums)) if self.counted else [],
            'counted': self.counted,
            'metrics': self.metrics,
            'account': {'seconds': self.seconds(share), 'time': time.time()},
        }
        if step < self.config.steps:
            self.write_time(step, share)
        for log in self._logs:
            log.flush()
        if step in self.checkpoints.steps():
            return True
        saved = self.checkpoints.save(step, state, extra=extra, best=best)
        if saved and self.info is not None:
            self.info.update(step=step, saved=max(self.checkpoints.steps(), default=None))
        return saved

    # ---- ending ----

    def finish(self, step: int) -> None:
        """The last state is being saved; waits for it.

        Raises:
            OSError: it could not be saved.
        """
        if not self.checkpoints.wait():
            raise OSError(f'the run reached step {step}, but {self.checkpoints.failed}')
        self.over = 'finished'
        self.end('finished', f'step {step}', step=step, saved=step)

    def end(self, status: str, reason: str, **fields: Any) -> None:
        if self.info is not None:
            self.info.end(status, reason, **fields)

    def close(self) -> None:
        for log in self._logs:
            log.close()
        self.checkpoints.close()
        self.place.release()
