"""Lets Optuna choose which points a sweep tries next, and which trials are stopped early.

Optuna's journal in the sweep's folder holds all proposals and results, so a search that was killed
continues. Optuna is imported only for sweeps that use it.
"""

import itertools
import warnings
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError
from jaxdl.sweeps.algebra import Choices, Point, Range
from jaxdl.sweeps.results import number_of
from jaxdl.sweeps.spec import Halving, Hyperband, Median, Search, Sweep, Trial

_DUPLICATE = 'duplicate'  # user attribute of a proposal that repeats an earlier one
_TRIAL = 'trial'  # user attribute: the id of the trial of a plain list


class Study:
    """The Optuna study of one sweep.

    A trial of Optuna is a point of a search here, or a trial of a plain list.

    Args:
        journal: the file of Optuna's journal.
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
        self._live: dict[int, Any] = {}
        pruner = _pruner(optuna, sweep.stopping)
        try:
            self._study = optuna.create_study(
                storage=JournalStorage(backend),
                study_name='sweep',
                load_if_exists=True,
                direction='maximize' if sweep.mode == 'max' else 'minimize',
                pruner=pruner,
                sampler=self._sampler(0),
            )
            self.points()
        except Exception as error:  # Optuna may raise anything for a damaged journal
            raise UserError(
                f'{journal} is damaged ({type(error).__name__}: {error}); put it back from a copy, or '
                'give another --workdir'
            ) from None

    def _asked(self) -> list[Any]:
        """Optuna's trials, without repeated proposals."""
        trials = self._study.get_trials(deepcopy=False)
        return [t for t in trials if _DUPLICATE not in t.user_attrs]

    # ---- points of a search ----

    def points(self) -> list[Point]:
        """The points that the search has proposed so far, in order."""
        return [self._point(t.params) for t in self._asked()] if self.search else []

    def ask(self) -> Point | None:
        """The next point; None if the search is complete."""
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
            if point not in known:
                self._live[asked.number] = asked
                return point
            asked.set_user_attr(_DUPLICATE, True)
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        return None  # after 50 repeated proposals the space is taken to be exhausted

    def _enqueue(self, number: int) -> bool:
        """Makes point `number` of the grid the next proposal; False past the end of the grid."""
        assert self.search is not None
        columns = {field: range(len(kind.values)) for field, kind in self.search.space.items()}
        rows = itertools.product(*columns.values())
        row = next(itertools.islice(rows, number, None), None)
        if row is None:
            return False
        self._study.enqueue_trial(dict(zip(columns, row, strict=True)))
        return True

    def _sampler(self, number: int) -> Any:
        if self.search is None:
            return None
        # Each proposal has its own seed, so that an interrupted search makes the same proposals.
        # Sobol points need none, as Optuna counts them in the journal.
        seed = (self.search.seed * 1_000_003 + number) % 2**32
        samplers, name = self._optuna.samplers, self.search.sampler
        if name == 'tpe':
            return samplers.TPESampler(seed=seed, n_startup_trials=self.search.startup)
        if name == 'gp':
            return samplers.GPSampler(seed=seed, n_startup_trials=self.search.startup)
        if name == 'quasi_random':
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # Optuna warns that this sampler is experimental
                return samplers.QMCSampler(seed=self.search.seed, scramble=True)
        return samplers.RandomSampler(seed=seed)

    def _distributions(self) -> dict[str, Any]:
        assert self.search is not None
        kinds, found = self._optuna.distributions, {}
        for field, kind in self.search.space.items():
            if isinstance(kind, Range):
                make = kinds.IntDistribution if kind.whole else kinds.FloatDistribution
                found[field] = make(kind.low, kind.high, log=kind.log)
            else:  # Optuna cannot store tuples, so it gets the index of a value
                found[field] = kinds.CategoricalDistribution(range(len(kind.values)))
        return found

    def _point(self, params: dict[str, Any]) -> Point:
        assert self.search is not None
        return {
            field: kind.values[params[field]] if isinstance(kind, Choices) else params[field]
            for field, kind in self.search.space.items()
        }

    # ---- results ----

    def entry_of(self, trial: Trial) -> Any:
        """Optuna's trial for `trial`; in a plain list it is created at the first call."""
        asked = self._asked()
        if self.search is not None:
            return asked[trial.point]
        for frozen in asked:
            if frozen.user_attrs.get(_TRIAL) == trial.id:
                return frozen
        live = self._study.ask()
        live.set_user_attr(_TRIAL, trial.id)
        self._live[live.number] = live
        return self._asked()[-1]

    def report(self, trial: Trial, rows: list[dict[str, Any]]) -> bool:
        """Reports the metric in new rows of a running trial; True if the trial should stop."""
        frozen = self.entry_of(trial)
        if self.sweep.stopping is None or frozen.state.is_finished():
            return False
        if frozen.number not in self._live:  # created by an earlier call of the sweep
            live = self._optuna.trial.Trial(self._study, frozen._trial_id)
            self._live[frozen.number] = live
        live = self._live[frozen.number]
        last = max(frozen.intermediate_values, default=-1)
        for row in rows:
            value = number_of(row.get(self.sweep.metric))
            if row['step'] > last and value is not None:
                live.report(value, row['step'])
                if live.should_prune():
                    return True
        return False

    def tell(self, trial: Trial, value: float | None) -> None:
        """Tells Optuna the value of an ended trial; None: it was pruned, diverged or failed."""
        frozen = self.entry_of(trial)
        if value is None:
            pruned = self._optuna.trial.TrialState.PRUNED
            self._study.tell(frozen.number, state=pruned, skip_if_finished=True)
        else:
            self._study.tell(frozen.number, value, skip_if_finished=True)


class _NoLock:
    """Replaces Optuna's lock file, which a kill would leave behind; the sweep has its own lock."""

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
