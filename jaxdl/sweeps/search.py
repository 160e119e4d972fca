"""Optuna behind the sweep: which points are tried next, and which trials are stopped early.

The journal in the sweep's folder is the truth about what was asked, reported and told, so a search
that was killed goes on where it was. Optuna is imported only for sweeps that use it.
"""

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.sweeps.algebra import Choices, Point, Range
from jaxdl.sweeps.spec import Halving, Hyperband, Median, Search, Sweep, text

_DUPLICATE = 'duplicate'  # user attribute of a proposal that was made before
_TRIAL = 'trial'  # user attribute: the id of the trial of a plain list


class Study:
    """The Optuna study of one sweep.

    A unit is what Optuna calls a trial: a point of a search, or one trial of a plain list. With
    several seeds the first seed of a point decides whether all of them are stopped early.

    Args:
        journal: its file.
        sweep: the sweep.
    """

    def __init__(self, journal: Path, sweep: Sweep):
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self.sweep = sweep
        self.search = sweep.points if isinstance(sweep.points, Search) else None
        if self.search is not None and self.search.sampler == 'gp':
            _needs_torch()
        lock: Any = _NoLock()
        backend = JournalFileBackend(str(journal), lock_obj=lock)
        self._study = optuna.create_study(
            storage=JournalStorage(backend),
            study_name='sweep',
            load_if_exists=True,
            direction='maximize' if sweep.mode == 'max' else 'minimize',
            pruner=_pruner(optuna, sweep.stopping),
            sampler=self._sampler(0),
        )
        self._live: dict[int, Any] = {}
        self._reported: dict[int, int] = {}
        self._by_trial: dict[str, int] = {
            t.user_attrs[_TRIAL]: t.number
            for t in self._study.get_trials(deepcopy=False)
            if _TRIAL in t.user_attrs
        }

    # ---- points of a search ----

    def points(self) -> list[tuple[int, Point]]:
        """(unit, point) of everything asked so far, in order."""
        return [
            (t.number, self._point(t.params))
            for t in self._study.get_trials(deepcopy=False)
            if t.params and _DUPLICATE not in t.user_attrs
        ]

    def ask(self) -> tuple[int, Point] | None:
        """The next (unit, point); None if the search has asked for all its points."""
        assert self.search is not None
        known = self.points()
        if len(known) >= self.search.points:
            return None
        for _ in range(50):
            number = len(self._study.get_trials(deepcopy=False))
            self._study.sampler = self._sampler(number)
            if self.search.sampler == 'grid' and not self._enqueue(len(known)):
                return None
            asked = self._study.ask(self._distributions())
            point = self._point(asked.params)
            if all(point != earlier for _, earlier in known):
                self._live[asked.number] = asked
                return asked.number, point
            asked.set_user_attr(_DUPLICATE, True)
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        return None  # 50 proposals in a row were known: the space holds nothing new

    def _enqueue(self, number: int) -> bool:
        """Makes point `number` of the grid the next one; False past its end."""
        assert self.search is not None
        columns = {field: self._labels(kind) for field, kind in self.search.space.items()}
        rows = itertools.product(*columns.values())
        row = next(itertools.islice(rows, number, None), None)
        if row is None:
            return False
        self._study.enqueue_trial(dict(zip(columns, row, strict=True)))
        return True

    def _sampler(self, number: int) -> Any:
        if self.search is None:
            return None
        # A fresh seed for each proposal, so that what is proposed does not depend on whether the
        # search was interrupted. Sobol points are counted in the journal.
        seed = (self.search.seed * 1_000_003 + number) % 2**32
        samplers, name = self._optuna.samplers, self.search.sampler
        if name == 'tpe':
            return samplers.TPESampler(seed=seed, n_startup_trials=self.search.startup)
        if name == 'gp':
            return samplers.GPSampler(seed=seed, n_startup_trials=self.search.startup)
        if name == 'quasi_random':
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # it is marked experimental since 2022
                return samplers.QMCSampler(seed=self.search.seed, scramble=True)
        return samplers.RandomSampler(seed=seed)

    def _distributions(self) -> dict[str, Any]:
        assert self.search is not None
        kinds, found = self._optuna.distributions, {}
        for field, kind in self.search.space.items():
            if isinstance(kind, Range):
                make = kinds.IntDistribution if kind.whole else kinds.FloatDistribution
                found[field] = make(kind.low, kind.high, log=kind.log)
            else:
                found[field] = kinds.CategoricalDistribution(self._labels(kind))
        return found

    def _labels(self, kind: Choices) -> tuple:
        """The values as Optuna can store them: tuples become text."""
        plain = (str, int, float, bool, type(None))
        return tuple(v if isinstance(v, plain) else text(v) for v in kind.values)

    def _point(self, params: dict[str, Any]) -> Point:
        assert self.search is not None
        point = {}
        for field, kind in self.search.space.items():
            value = params[field]
            if isinstance(kind, Choices):
                labels = self._labels(kind)
                value = kind.values[labels.index(value)] if value in labels else value
            point[field] = value
        return point

    # ---- results ----

    def unit_of(self, trial: str) -> int:
        """The unit of a trial of a plain list; made at its first mention."""
        if trial not in self._by_trial:
            asked = self._study.ask()
            asked.set_user_attr(_TRIAL, trial)
            self._live[asked.number] = asked
            self._by_trial[trial] = asked.number
        return self._by_trial[trial]

    def report(self, unit: int, rows: list[dict[str, Any]]) -> bool:
        """Tells the metric's values in new rows of a running unit; True: it should stop."""
        if self.sweep.stopping is None:
            return False
        live = self._live.get(unit)
        if live is None:
            frozen = self._study.get_trials(deepcopy=False)[unit]
            live = self._live[unit] = self._optuna.trial.Trial(self._study, frozen._trial_id)
            self._reported[unit] = max(frozen.intermediate_values, default=-1)
        if self._over(unit):
            return False
        for row in rows:
            value, step = row.get(self.sweep.metric), row['step']
            if step <= self._reported.get(unit, -1) or not isinstance(value, int | float):
                continue
            if math.isfinite(value):
                live.report(float(value), step)
                self._reported[unit] = step
                if live.should_prune():
                    return True
        return False

    def tell(self, unit: int, value: float | None) -> None:
        """How a unit ended; None: stopped early, diverged or broken, which a search takes as bad."""
        states = self._optuna.trial.TrialState
        if self._over(unit):
            return
        if value is None:
            self._study.tell(unit, state=states.PRUNED, skip_if_finished=True)
        else:
            self._study.tell(unit, value, skip_if_finished=True)

    def _over(self, unit: int) -> bool:
        return self._study.get_trials(deepcopy=False)[unit].state.is_finished()


class _NoLock:
    """The sweep's own lock already lets one process in; Optuna's lock file would outlive a kill."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _pruner(optuna: Any, stopping: Any) -> Any:
    pruners = optuna.pruners
    if isinstance(stopping, Median):
        return pruners.MedianPruner(
            n_startup_trials=stopping.trials, n_warmup_steps=stopping.warmup
        )
    if isinstance(stopping, Halving):
        return pruners.SuccessiveHalvingPruner(
            min_resource=stopping.first, reduction_factor=stopping.factor
        )
    if isinstance(stopping, Hyperband):
        return pruners.HyperbandPruner(
            min_resource=stopping.first,
            max_resource=stopping.last,
            reduction_factor=stopping.factor,
        )
    return pruners.NopPruner()


def _needs_torch() -> None:
    import importlib.util

    if importlib.util.find_spec('torch') is None:
        raise UserError(
            "sampler='gp': Optuna's Gaussian process needs PyTorch; pip install torch, or use 'tpe'"
        )
