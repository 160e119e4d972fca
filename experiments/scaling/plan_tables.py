"""The tables of docs/scaling.md: python -m experiments.scaling.plan_tables --cache=DIR [--write]

Searches the fastest layout of five configs on 1, 8, 16 and 64 H100s (`python -m jaxdl plan --search`)
and prints the plans of what it chose as Markdown. Nothing is run and no GPU is needed; the compiler is
(requirements-plan.txt). Hours on two cores, so every plan is kept in DIR and a second call goes on.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jaxdl.compiled import cards
from jaxdl.core import flags
from jaxdl.core.flags import CommandLine
from jaxdl.errors import run
from jaxdl.plan import planning, search
from jaxdl.plan.planning import gib
from jaxdl.plan.text import count, duration

CONFIGS = {
    'bert_large': ('--config.data.source.train=FILES',),
    'gpt2_124m': ('--config.data.source.train=FILES',),
    'resnet50': (),
    'wmt_big': (),
    'lm_7b': ('--config.data.source.train=FILES',),
}
DEVICES = ('h100', 'h100x8', 'h100x8x2', 'h100x8x8')
PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'scaling.md'
START, STOP = '<!-- plan tables -->', '<!-- end of plan tables -->'


class Missing(Exception):
    """A plan is not in the cache and may not be made."""


class Kept(search.Asker):
    """Plans are kept as files, by the words of their command line."""

    def __init__(self, words: list[str], folder: pathlib.Path, *, ready: bool):
        super().__init__(words)
        self.folder, self.ready = folder, ready

    def _ask(self, overrides: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps([self.words, {k: str(v) for k, v in sorted(overrides.items())}])
        path = self.folder / f'{hashlib.sha256(key.encode()).hexdigest()[:24]}.json'
        if path.exists():
            return json.loads(path.read_text())
        if self.ready:
            raise Missing(key)
        found = super()._ask(overrides)
        path.write_text(json.dumps(found))
        return found


@dataclasses.dataclass(frozen=True)
class Row:
    """A config on given GPUs: what the search found, the plan of the best and those of all."""

    devices: str
    found: search.Found
    plan: dict[str, Any] | None
    others: list[dict[str, Any]]


def row(name: str, devices: str, folder: pathlib.Path, *, ready: bool, widest: int = 8) -> Row:
    """Searches one cell of the tables."""
    words = [f'--config=configs/{name}.py', f'--devices={devices}', *CONFIGS[name]]
    asker = Kept(words, folder, ready=ready)
    cluster = cards.parse(devices)
    config = flags.apply_overrides(
        flags.load_config(f'configs/{name}.py'), flags.overrides_in(['', *CONFIGS[name]])
    )
    found = search.search(config, cluster, asker, widest=widest)
    best = asker.ask(found.best.overrides) if found.best else None
    return Row(devices, found, best, [asker.ask(one.overrides) for one in found.tried])


def short(overrides: dict[str, Any]) -> str:
    """'data 8, 4 parts, remat dots, written out' for a candidate's overrides."""
    words = []
    for path, value in overrides.items():
        field = path.rsplit('.', 1)[-1]
        if path.startswith('config.mesh.') and not isinstance(value, bool):
            words += [f'{field} {value}'] if value > 1 else []
        elif field == 'accumulate':
            words += [f'{value} parts'] if value > 1 else []
        elif field == 'remat':
            words += [f'remat {value}'] if value != 'none' else []
        elif field == 'scan_layers':
            words.append('layers scanned' if value else 'layers written out')
        elif value:
            words.append(field)
    return ', '.join(words) or 'as it is'


def why(found: search.Found, plans: list[dict[str, Any]]) -> str:
    """One sentence about the others that were tried; `plans` are those of all of them."""
    if found.best is None:
        memory = min((p['memory'] for p in plans if 'memory' in p), key=lambda m: m['arguments'])
        state = memory['parameters'] + memory['gradients'] + memory['optimizer']
        return f'nothing fits: parameters, gradients and optimizer state alone take {gib(state)}'
    told = []
    place = _mesh(found.best)
    # The layouts are compared with layers as in the config; only the best is then varied.
    same = [c for c in found.tried if _mesh(c) == place and c.fits and not _varied(c)]
    base = min(same, key=lambda c: c.seconds or 0)
    others: dict[str, list[search.Candidate]] = {}
    for one in found.tried:
        if _mesh(one) != place:
            others.setdefault(short(dict(_mesh(one))), []).append(one)
    for label, several in others.items():
        fitting = [c for c in several if c.fits]
        known = [c for c in several if c.missing is not None]
        if fitting:
            fastest = min(fitting, key=lambda c: c.seconds or 0)
            parts = {k: v for k, v in fastest.overrides.items() if not k.startswith('config.mesh')}
            inside = '' if short(parts) == 'as it is' else f' ({short(parts)})'
            told.append(f'{label}{inside} {_more(fastest, base)}')
        elif known:
            least = min(known, key=lambda c: c.missing or 0)
            memory = plans[found.tried.index(least)]['memory']
            alone = memory['arguments'] + memory['gradients']
            room = alone + planning.RESERVE <= memory['card']
            said = f'{gib(least.missing or 0)} too much'
            told.append(f'{label}: {said if room else f"state and gradients alone {gib(alone)}"}')
        else:
            told.append(f'{label}: {several[0].error[:60]}')
    for one in found.tried:
        if _mesh(one) == place and one is not found.best and (one.fits or one.error):
            said = _more(one, found.best) if one.fits else f'({one.error[:60]})'
            told.append(f'the same with {_changed(one, found.best)} {said}')
    if found.spared:
        told.append(f'{found.spared} with a wider tensor axis not tried, since {found.reason}')
    return '; '.join(told) or 'the only one'


def _more(one: search.Candidate, base: search.Candidate) -> str:
    return f'{(one.seconds or 0) / (base.seconds or 1) - 1:+.0%}'


def _varied(one: search.Candidate) -> bool:
    return search.SCAN in one.overrides or search.ZERO in one.overrides


def _mesh(one: search.Candidate) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (k, v)
        for k, v in one.overrides.items()
        if k.startswith('config.mesh.') and not isinstance(v, bool)
    )


def _changed(one: search.Candidate, best: search.Candidate) -> str:
    """What `one` has otherwise than the best, in words that also name what is off."""
    changed = {k: v for k, v in one.overrides.items() if best.overrides.get(k) != v}
    words = []
    if changed:
        words.append('no remat' if set(changed.values()) == {'none'} else short(changed))
        if changed.get('config.accumulate') == 1:
            words.append('one part')
    for path in best.overrides:
        if path not in one.overrides:
            field = path.rsplit('.', 1)[-1]
            words.append('layers as in the config' if field == 'scan_layers' else f'no {field}')
    return ' and '.join(word for word in words if word != 'as it is')


def table(name: str, rows: list[Row]) -> str:
    """Markdown of one config."""
    head = (
        'H100s | layout | memory | FLOPs | moved | sent | least step '
        '| compute / memory / waits | MFU ≤ | throughput ≤ | joules ≤'
    ).split(' | ')
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
    reasons = []
    for one in rows:
        gpus = cards.parse(one.devices).devices
        reasons.append(f'* {gpus}: {why(one.found, one.others)}.')
        plan = one.plan
        if plan is None or one.found.best is None:
            lines.append(f'| {gpus} | nothing fits |' + ' |' * (len(head) - 2))
            continue
        time, memory = plan['time'], plan['memory']
        shares = [time[part] / time['seconds'] for part in ('compute', 'memory', 'exposed')]
        sent = sum(exchange['wire_bytes'] for exchange in time['exchanges'])
        cells = (
            f'{gpus}',
            short(one.found.best.overrides),
            gib(memory['peak']),
            count(plan['flops']['model'] / gpus),
            gib(time['bytes']),
            gib(sent),
            duration(time['seconds']),
            ' / '.join(f'{share:.0%}' for share in shares),
            f'{plan["mfu_bound"]:.0%}',
            f'{count(plan["units_per_second"]).strip()} {plan["unit"]}/s',
            count(plan['joules_upper']).strip(),
        )
        lines.append('| ' + ' | '.join(cells) + ' |')
    plan = next((one.plan for one in rows if one.plan), None)
    size = '' if plan is None else f': {count(plan["parameters"])} parameters, '
    size += '' if plan is None else f'{plan["batch_size"]:,} examples a step'
    return f'### {name}{size}\n\n' + '\n'.join(lines) + '\n\n' + '\n'.join(reasons) + '\n'


def _row(name: str, devices: str, folder: pathlib.Path, values: Any) -> Row:
    """The cell; with --ready one that was made with a smaller --widest will do."""
    if not values.ready:
        return row(name, devices, folder, ready=False, widest=values.widest)
    for widest in (8, 4, 2, 1):
        with contextlib.suppress(Missing):
            return row(name, devices, folder, ready=True, widest=min(widest, values.widest))
    raise Missing(f'{name} on {devices}')


def main(argv: Sequence[str]) -> int:
    line = CommandLine(__doc__ or '', example='--cache=plans --ready --write')
    line.string(
        'cache', 'DIR', 'where plans are kept; empty it after a change of the code', required=True
    )
    line.several('only', CONFIGS, 'configs')
    line.several('devices', DEVICES, 'devices')
    line.boolean('ready', 'only what is kept already')
    line.integer(
        'widest',
        'only tensor axes up to this, which saves half of the programs',
        default=8,
        least=1,
    )
    line.boolean('write', 'into docs/scaling.md')
    values = line.parse(argv)
    folder = pathlib.Path(values.cache)
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for name in values.only:
        rows = []
        for devices in values.devices:
            try:
                rows.append(_row(name, devices, folder, values))
            except Missing:
                print(f'{name} on {devices}: not planned yet', file=sys.stderr)
        if rows:
            parts.append(table(name, rows))
    text = '\n'.join(parts)
    if not values.write:
        print(text)
        return 0
    page = PAGE.read_text(encoding='utf-8')
    before, rest = page.split(START)
    PAGE.write_text(f'{before}{START}\n\n{text}\n{STOP}{rest.split(STOP)[1]}', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(run(main))
