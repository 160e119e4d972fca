"""Searches over plans: the fastest layout that fits, or the largest model.

Every candidate is planned by its own process, because a compiler that meets a program it cannot
handle may abort.
"""

import concurrent.futures
import dataclasses
import itertools
import os
import signal
import subprocess
import sys
from typing import Any

from jaxdl.compiled.cards import Cluster
from jaxdl.core import config as config_lib
from jaxdl.core.config import Config
from jaxdl.errors import UserError
from jaxdl.files import parse_object
from jaxdl.plan.planning import RESERVE, gib, has_field
from jaxdl.plan.text import count, duration, table

REMAT = 'config.model.remat'
SCAN = 'config.model.scan_layers'
ZERO = 'config.mesh.zero'
LAYERS = ('config.model.layers', 'config.model.depth', 'config.model.num_layers')
_PARTS = (2, 4, 8, 16, 32, 64, 128)
# The tensor axis splits the same products in other ways, so it can save what a layout waits and what
# it repeats to fit: where that is less than this share of the step, it is not tried.
IDLE = 0.02
LONGEST = 1800  # seconds that one plan may take
LIMIT = 4096  # the largest value that is tried


class Asker:
    """Plans the same config again and again with other fields.

    Args:
        words: the command line without --json, --search and --largest.

    Attributes:
        workers: processes at a time.
    """

    def __init__(self, words: list[str]):
        self.words = words
        self.workers = max(1, (os.cpu_count() or 2) // 2)

    def ask(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """The plan as JSON, or {'error': why there is none}; says on stderr how it went."""
        found = self._ask(overrides)
        label = ' '.join(
            f'{path.removeprefix("config.")}={value}' for path, value in overrides.items()
        )
        if 'error' in found:
            state = found['error']
        else:
            missing = found['memory']['missing']
            state = f'{duration(found["time"]["seconds"])}, {gib(abs(missing))} '
            state += 'too much' if missing > 0 else 'left'
        print(f'planned {label}: {state}', file=sys.stderr, flush=True)
        return found

    def _ask(self, overrides: dict[str, Any]) -> dict[str, Any]:
        words = [f'--{path}={value}' for path, value in overrides.items()]
        # Fields that the search sets replace those of the command line.
        kept = [word for word in self.words if word.lstrip('-').split('=')[0] not in overrides]
        command = [sys.executable, '-m', 'jaxdl', 'plan', *kept, *words, '--json']
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
        except subprocess.TimeoutExpired:
            return {'error': f'not compiled after {LONGEST} s'}
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0 and lines:
            return parse_object(lines[-1])
        reasons = done.stderr.strip().splitlines() or [f'exit code {done.returncode}']
        if done.returncode < 0:
            return {'error': f'the compiler aborted ({signal.Signals(-done.returncode).name})'}
        first = next((line for line in reasons if line.startswith('error: ')), reasons[-1])
        return {'error': first.removeprefix('error: ')}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One combination that was planned.

    Attributes:
        overrides: {path: value} to paste.
        seconds: the bound on its step, None where it has no plan.
        missing: bytes that are too many; negative: that are left.
        mfu_bound: see Plan.
        exposed: the share of the step that waits for collectives.
        error: why there is no plan.
    """

    overrides: dict[str, Any]
    seconds: float | None = None
    missing: float | None = None
    mfu_bound: float | None = None
    exposed: float | None = None
    error: str = ''

    @property
    def fits(self) -> bool:
        return self.missing is not None and self.missing <= 0

    def flags(self) -> str:
        """The overrides as on a command line."""
        return ' '.join(f'--{path}={value}' for path, value in self.overrides.items())


@dataclasses.dataclass(frozen=True)
class Found:
    """What --search found.

    Attributes:
        best: the fastest candidate that fits, or None.
        tried: all of them.
        spared: layouts with a wider tensor axis that were not tried.
        reason: why not.
    """

    best: Candidate | None
    tried: tuple[Candidate, ...]
    spared: int = 0
    reason: str = ''

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def text(self) -> str:
        rows = [('layout', 'least time', 'MFU at most', 'waits', 'memory')]
        order = sorted(self.tried, key=lambda c: (not c.fits, c.seconds or float('inf')))
        for one in order:
            if one.missing is None:
                rows.append((one.flags(), '', '', '', one.error[:80]))
                continue
            left = f'{gib(abs(one.missing))} {"left" if one.fits else "too much"}'
            waits = f'{one.exposed or 0:.1%}'
            rows.append(
                (one.flags(), duration(one.seconds or 0), f'{one.mfu_bound or 0:.1%}', waits, left)
            )
        if self.best is None:
            end = 'Nothing fits: use more GPUs, larger ones, a smaller batch or a smaller model.'
        else:
            end = f'The fastest that fits, by its bound:\n  {self.best.flags()}'
            if self.spared:
                end += f'\nNot tried: {self.spared} with a wider tensor axis, since {self.reason}.'
        return f'{table(rows)}\n\n{end}'


def layouts(cluster: Cluster) -> list[dict[str, int]]:
    """Meshes of data, fsdp and tensor axes that fill the GPUs; tensor stays within a host."""
    found = []
    for tensor in (1, 2, 4, 8):
        if tensor > cluster.gpus_per_host or cluster.gpus_per_host % tensor:
            continue
        rest = cluster.devices // tensor
        # Splitting the state within a host alone, or over everything, are the two that pay.
        inside = cluster.gpus_per_host // tensor
        for fsdp in sorted({1, inside, rest}):
            if rest % fsdp == 0:
                found.append({'data': rest // fsdp, 'fsdp': fsdp, 'tensor': tensor})
    return found


def search(config: Config, cluster: Cluster, asker: Asker, *, widest: int = 8) -> Found:
    """Plans layouts with as little rematerialisation and accumulation as fits.

    Tensor axes go up to `widest`.

    The global batch stays as it is. For each layout: first neither; if that does not fit,
    rematerialisation by degrees, and accumulation in ever more parts. The fastest is then planned
    again with the optimizer's state split, with layers scanned or written out, and, where they are
    scanned, with more rematerialisation, which may also move fewer bytes.
    """
    meshes = layouts(cluster)
    tried: list[Candidate] = []
    done, reason = 0, ''
    with concurrent.futures.ThreadPoolExecutor(asker.workers) as pool:
        for tensor, several in itertools.groupby(meshes, lambda mesh: mesh['tensor']):
            if tensor > widest:
                reason = f'only up to {widest} was asked for'
                break
            group: list[Candidate] = []
            for found in pool.map(lambda mesh: _layout(config, mesh, asker), several):
                group += found
                done += 1
            before, tried = _fastest(tried), tried + group
            reason = _enough(before, _fastest(group), tensor)
            if reason:
                break
    tried += _variants(config, _fastest(tried), tried, asker)
    return Found(_fastest(tried), tuple(tried), len(meshes) - done, reason)


def _fastest(tried: list[Candidate]) -> Candidate | None:
    fitting = [one for one in tried if one.fits]
    return min(fitting, key=lambda one: one.seconds or float('inf'), default=None)


def _enough(before: Candidate | None, here: Candidate | None, tensor: int) -> str:
    """Why a wider tensor axis than `tensor` is not worth a plan; '' where it may be.

    Args:
        before: the fastest with a narrower one.
        here: the fastest with this one.
        tensor: its devices.
    """
    if before is not None and (here is None or (here.seconds or 0) >= (before.seconds or 0)):
        slower = 'nothing fitted' if here is None else 'all were slower'
        return f'{slower} with mesh.tensor={tensor}'
    best = here or before
    if best is not None and _hardly_waits(best):
        return f'the best waits {best.exposed or 0:.1%} for collectives, all that could be saved'
    return ''


def _hardly_waits(one: Candidate) -> bool:
    """Whether it waits for next to nothing and computes nothing twice."""
    return (one.exposed or 0.0) <= IDLE and one.overrides.get(REMAT, 'none') == 'none'


def _variants(
    config: Config, best: Candidate | None, tried: list[Candidate], asker: Asker
) -> list[Candidate]:
    """The same layout with other ways to run the layers."""
    if best is None:
        return []
    found: list[Candidate] = []
    scanned = has_field(config, SCAN) and config.model.scan_layers
    changes: list[dict[str, Any]] = []
    if has_field(config, ZERO) and best.overrides['config.mesh.data'] > 1:
        changes.append({ZERO: not config.mesh.zero})
    if has_field(config, SCAN):
        changes.append({SCAN: not scanned})
    if has_field(config, REMAT):
        changes += [{REMAT: remat} for remat in ('none', 'dots', 'full')]
    known = [one.overrides for one in tried]
    for change in changes:
        fastest = _fastest([best, *found]) or best
        if REMAT in change and not fastest.overrides.get(SCAN, scanned):
            continue  # only stacks, which scanned layers copy what they keep into, make it pay
        overrides = {**fastest.overrides, **change}
        if overrides not in known:
            known.append(overrides)
            found.append(_candidate(overrides, asker.ask(overrides)))
    return found


def _layout(config: Config, mesh: dict[str, int], asker: Asker) -> list[Candidate]:
    base = {f'config.mesh.{axis}': size for axis, size in mesh.items()}
    others = ('pipe', 'context')
    base |= {f'config.mesh.{axis}': 1 for axis in others if getattr(config.mesh, axis) != 1}
    remats = ['none', 'dots', 'full'] if has_field(config, REMAT) else [None]
    shards = mesh['data'] * mesh['fsdp']
    parts = [p for p in _PARTS if config.batch_size % (shards * p) == 0]
    tried: list[Candidate] = []

    def attempt(remat: str | None, accumulate: int) -> dict[str, Any]:
        overrides: dict[str, Any] = {**base, 'config.accumulate': accumulate}
        if remat is not None:
            overrides[REMAT] = remat
        found = asker.ask(overrides)
        tried.append(_candidate(overrides, found))
        return found

    def reachable(found: dict[str, Any], divisor: int) -> bool:
        # Only activations shrink with the parts; what does not fit then need not be compiled.
        memory = found['memory']
        least = memory['peak'] - memory['activations'] * (1 - 1 / divisor)
        return least + RESERVE <= memory['card']

    for remat in remats:
        found = attempt(remat, 1)
        if 'error' in found or tried[-1].fits:
            break
        if found['memory']['arguments'] + RESERVE > found['memory']['card']:
            break  # the state alone is too large for this layout
        for accumulate in parts:
            if reachable(found, accumulate):
                if 'error' in attempt(remat, accumulate) or tried[-1].fits:
                    break
    return tried


def _candidate(overrides: dict[str, Any], found: dict[str, Any]) -> Candidate:
    if 'error' in found:
        return Candidate(overrides, error=found['error'])
    seconds = found['time']['seconds']
    return Candidate(
        overrides,
        seconds,
        found['memory']['missing'],
        found['mfu_bound'],
        found['time']['exposed'] / seconds,
    )


@dataclasses.dataclass(frozen=True)
class Largest:
    """What --largest found.

    Attributes:
        field: what was varied.
        value: the largest that fits, None where not even 1 does.
        plan: the plan of that value as JSON.
        tried: {value: bytes missing}, negative where it fits; None where there was no plan.
    """

    field: str
    value: int | None
    plan: dict[str, Any] | None
    tried: dict[int, float | None]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def text(self) -> str:
        rows = [(self.field, 'memory')]
        for value, missing in sorted(self.tried.items()):
            state = 'no plan'
            if missing is not None:
                state = f'{gib(abs(missing))} {"too much" if missing > 0 else "left"}'
            rows.append((str(value), state))
        if self.plan is None:
            return f'{table(rows)}\n\nNo value fits.'
        return (
            f'{table(rows)}\n\nThe largest that fits: --{self.field}={self.value}, '
            f'{count(self.plan["parameters"])} parameters, {self.plan["devices"]}'
        )


def largest(config: Config, field: str, asker: Asker) -> Largest:
    """The largest whole number of `field` (a path, or 'auto') with which the step fits.

    Raises UserError where the field does not exist or is no whole number.
    """
    if field == 'auto':
        field = next((path for path in LAYERS if has_field(config, path)), '')
        if not field:
            raise UserError(
                '--largest: this model has none of the fields '
                f'{", ".join(LAYERS)}; name the field to enlarge: --largest=config.model.FIELD'
            )
    if not field.startswith('config.'):
        field = f'config.{field}'
    start = _value(config, field)
    plans: dict[int, dict[str, Any]] = {}

    def fits(value: int) -> bool:
        if value not in plans:
            plans[value] = asker.ask({field: value})
        return 'error' not in plans[value] and plans[value]['memory']['fits']

    low, high = 0, max(1, start)
    while high <= LIMIT and fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if not low and all('error' in plan for plan in plans.values()):
        raise UserError(f'--largest={field}: {next(iter(plans.values()))["error"]}')
    tried = {v: None if 'error' in p else p['memory']['missing'] for v, p in plans.items()}
    return Largest(field, low or None, plans.get(low), tried)


def _value(config: Config, field: str) -> int:
    for path, node in config_lib.nodes(config):
        for one in config_lib.fields(node):
            if f'{path}.{one.name}' == field:
                value = getattr(node, one.name)
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
                raise UserError(f'--largest={field}: is {value!r}; it must be a whole number')
    raise UserError(f'--largest={field}: the config has no such field; --help lists them')
