"""The description of a sweep: base config, trials, metric, search and early stopping.

A sweep file defines `get_sweep() -> Sweep`. This module and the algebra do not import jax, so the
process that runs the sweep starts at once and never opens a device.
"""

import dataclasses
import glob
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxdl.errors import UserError, at_least, nearest, one_of
from jaxdl.sweeps.algebra import Choices, Point, Range, plain, plain_point

# Least values of the fields of a rule that stops trials; 1 for all others.
LEAST = {'factor': 2, 'warmup': 0}
SAMPLERS = ('tpe', 'random', 'quasi_random', 'gp', 'grid')


@dataclasses.dataclass
class Search:
    """Points that Optuna proposes one after the other, from the results so far.

    Attributes:
        space: {field: uniform, log_uniform, integers or choices}.
        points: the number of points; with 'grid' at most the size of the grid.
        sampler: 'tpe' (tree of Parzen estimators), 'random', 'quasi_random' (Sobol), 'gp' (Gaussian process) or 'grid'.
        seed: the sampler's seed.
        startup: points drawn at random before 'tpe' and 'gp' use results.
    """

    space: Mapping[str, Any]
    points: int
    sampler: str = 'tpe'
    seed: int = 0
    startup: int = 10

    def check(self):
        if not self.space:
            raise ValueError('Search: space is empty')
        for name, least in (('points', 1), ('seed', 0), ('startup', 0)):
            value = plain(getattr(self, name))
            if type(value) is not int or value < least:
                raise ValueError(
                    f'Search: {name}={value!r}: must be a whole number from {least} on'
                )
            setattr(self, name, value)
        one_of(self, sampler=SAMPLERS)
        for field, kind in self.space.items():
            if not isinstance(kind, Range | Choices):
                raise ValueError(
                    f'Search: {field!r} is {kind!r}; it must be uniform, log_uniform, integers or choices'
                )
            if self.sampler == 'grid' and not isinstance(kind, Choices):
                raise ValueError(f"Search: sampler='grid' needs choices for {field!r}, not a range")


@dataclasses.dataclass
class Median:
    """Stops a trial that is worse than the median of earlier trials at the same step.

    Attributes:
        trials: the number of trials that must have finished before any is stopped.
        warmup: the step before which no trial is stopped.
    """

    trials: int = 5
    warmup: int = 0


@dataclasses.dataclass
class Halving:
    """Asynchronous successive halving (arXiv:1810.05934): at each rung only the best go on.

    Attributes:
        first: step of the first rung.
        factor: one of this many trials goes on, and the next rung is this many times later.
    """

    first: int
    factor: int = 3


@dataclasses.dataclass
class Hyperband:
    """Successive halving with several first rungs side by side (arXiv:1603.06560).

    Attributes:
        first: step of the earliest first rung.
        last: steps of a full trial.
        factor: one of this many trials goes on at each rung.
    """

    first: int
    last: int
    factor: int = 3


@dataclasses.dataclass
class Sweep:
    """Many runs that answer one question.

    Attributes:
        config: 'configs/NAME.py[:variant]', the base of every trial.
        metric: the metric that is compared, such as 'eval/test/accuracy'.
        mode: whether the best value is the 'max' or the 'min'.
        points: a list of override dicts, or a Search.
        seeds: the seeds of each point: a number n for 0 … n-1, a tuple of seeds, or () for the config's own.
        overrides: overrides of every trial; those of a point take precedence.
        value: whether a trial's value is the 'last' or the 'best' value of the metric.
        stopping: Median, Halving, Hyperband or None.
        retries: how often a failed trial is started again without having saved anything in between.
        hang_timeout: seconds without a sign of life after which a trial is ended as failed.
        grace: seconds that a trial gets to save when it is told to stop.
    """

    config: str
    metric: str
    mode: str = 'max'
    points: Sequence[Mapping[str, Any]] | Search = ({},)
    seeds: int | Sequence[int] = ()
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    value: str = 'last'
    stopping: Median | Halving | Hyperband | None = None
    retries: int = 2
    hang_timeout: float = 1800.0
    grace: float = 120.0

    def check(self):
        """Turns numpy's numbers into Python's. Raises ValueError where a field is wrong."""
        one_of(self, mode=('max', 'min'), value=('last', 'best'))
        self.overrides = plain_point(self.overrides)
        if not isinstance(self.points, Search):
            self.points = [plain_point(point) for point in self.points]
        self.seeds = plain(tuple(self.seeds) if isinstance(self.seeds, Iterable) else self.seeds)
        seeds = (self.seeds,) if not isinstance(self.seeds, tuple) else self.seeds
        if any(type(seed) is not int or seed < 0 for seed in seeds):
            raise ValueError(f'seeds={self.seeds!r}: must be whole numbers from 0 on')
        if not re.match(r'(train|eval|perf|energy)/.', self.metric):
            raise ValueError(
                f"metric={self.metric!r}: metrics are named 'train/…', 'eval/<set>/…', 'perf/…' or 'energy/…'"
            )
        at_least(self, retries=0, hang_timeout=0, grace=0)
        if isinstance(self.points, Search):
            self.points.check()
        elif not self.points:
            raise ValueError('points is empty: no trials')
        seeds = self.seed_list()
        if len(set(seeds)) < len(seeds):
            raise ValueError(f'seeds={self.seeds}: a seed occurs twice')
        points = [self.points.space] if isinstance(self.points, Search) else self.points
        fields = {field for point in (*points, self.overrides) for field in point}
        if seeds != (None,) and 'seed' in fields:
            raise ValueError("give the seeds in `seeds` or as the override 'seed', not both")
        for name in ('workdir', ''):
            if name in fields:
                raise ValueError(
                    f'{name!r} is no field of a config; every trial has its own workdir'
                )
        if self.stopping is not None:
            for field in dataclasses.fields(self.stopping):
                at_least(self.stopping, **{field.name: LEAST.get(field.name, 1)})

    def seed_list(self) -> tuple[int | None, ...]:
        """The seeds of each point; (None,): the config's own."""
        if isinstance(self.seeds, int):
            return tuple(range(self.seeds)) or (None,)
        return tuple(self.seeds) or (None,)

    def trials_of(self, point: Mapping[str, Any], number: int, first: int) -> list['Trial']:
        """The trials of point `number`, one per seed; their ids start at `first`."""
        found = []
        for offset, seed in enumerate(self.seed_list()):
            overrides = {**self.overrides, **point}
            config = overrides.pop('config', self.config)
            if seed is not None:
                overrides['seed'] = seed
            found.append(
                Trial(f'{first + offset:04d}', number, dict(point), seed, str(config), overrides)
            )
        return found

    def trials(self) -> list['Trial']:
        """All trials in the order in which they are started; none for a Search."""
        found: list[Trial] = []
        if not isinstance(self.points, Search):
            for number, point in enumerate(self.points):
                found += self.trials_of(point, number, len(found))
        return found


@dataclasses.dataclass
class Trial:
    """One run of a sweep.

    Attributes:
        id: the name of its folder under trials/.
        point: the number of its point.
        varied: the point's own overrides, without those of the sweep.
        seed: its seed, or None for the config's own.
        config: the config file.
        overrides: everything set on the command line, seed included.
        group: trials with the same group share a compiled program.
        identity: trials with the same identity are the same run.
        steps: steps of the whole run.
        deterministic: whether its config says so; its process must then be a fresh one.
        alone: why it cannot share a program with other trials, or ''.

    jaxdl.sweeps.local.Checks sets the fields from `group` on, as the config says.
    """

    id: str
    point: int
    varied: Point
    seed: int | None
    config: str
    overrides: Point
    group: str = ''
    identity: str = ''
    steps: int = 0
    deterministic: bool = False
    alone: str = ''

    def words(self) -> list[str]:
        """The overrides as words of a command line."""
        return [f'--config.{field}={text(value)}' for field, value in self.overrides.items()]

    def key(self) -> tuple:
        """The values that distinguish this trial from all others."""
        return (self.config, tuple(sorted(self.words())))

    def label(self) -> str:
        """The trial's overrides and seed as a short text."""
        parts = [f'{short(field)}={shown(field, value)}' for field, value in self.varied.items()]
        return (
            ', '.join([*parts, *([f'seed={self.seed}'] if self.seed is not None else [])]) or 'base'
        )


def short(field: str) -> str:
    """The last part of a field's path."""
    return field.rpartition('.')[2]


def shown(field: str, value: Any) -> str:
    """A value as shown to a reader; a config is shortened to its name and variant."""
    words = text(value)
    return re.sub(r'^.*/|\.py(?=:|$)', '', words) if field == 'config' else words


def text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, list):  # JSON's tuple
        value = tuple(value)
    return value if isinstance(value, str) else repr(value)


def load_sweep(path: str) -> Sweep:
    """The sweep of a Python file.

    Raises:
        UserError: there is no such file, it has no get_sweep, or a field is wrong.
    """
    if not os.path.isfile(path):
        known = sorted(glob.glob(os.path.join(os.path.dirname(path) or '.', '*.py')))
        known = known or sorted(glob.glob('experiments/sweeps/*.py'))
        raise UserError(
            f'{path}: there is no such sweep file{nearest(path, known)}.\n'
            f'Sweeps: {", ".join(known) or "none here; call it from the root of the project"}'
        )
    name = re.sub(r'\W', '_', os.path.splitext(os.path.basename(path))[0])
    spec = importlib.util.spec_from_file_location(f'sweep_{name}', path)
    if spec is None or spec.loader is None:
        raise UserError(f'{path} is no Python file')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, 'get_sweep', None)):
            raise UserError(f'{path} has no function get_sweep()')
        sweep = module.get_sweep()
        if not isinstance(sweep, Sweep):
            raise UserError(
                f'{path}: get_sweep returned {type(sweep).__name__}, not a jaxdl.sweeps.Sweep'
            )
        sweep.check()
    except UserError as error:
        raise UserError(f'{path}: {str(error).removeprefix(f"{path}: ")}') from None
    except ValueError as error:
        raise UserError(f'{path}: {error}') from None
    except Exception as error:
        raise UserError(f'{path} cannot be loaded, {type(error).__name__}: {error}') from None
    return sweep
