"""Runs the experiments of the six claims on what this machine has, and writes one page.

    python -m experiments.run all --workdir=DIR [--quick]
    python -m experiments.run parallelism,energy --workdir=DIR

Each claim is a process of its own that writes DIR/CLAIM.json after each part; the same command goes
on where it was stopped. The page is DIR/index.html. --quick ends within five minutes on two cores.
What cannot be measured here is shown as predicted or as unavailable. The claims are {claims}.
"""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.claims import CLAIMS
from experiments.claims.base import Results, Settings
from jaxdl.core.flags import CommandLine
from jaxdl.errors import UserError, nearest, run

QUICK = 285.0  # seconds of all claims together in quick mode
LAST = 20.0  # seconds that the last part which is begun may take


def chosen(word: str) -> list[str]:
    """The claims that 'all' or 'NAME,…' names, in their order. Raises UserError for another name."""
    names = list(CLAIMS) if word == 'all' else [name.strip() for name in word.split(',')]
    for name in names:
        if name not in CLAIMS:
            raise UserError(
                f'{name!r} is no claim{nearest(name, CLAIMS)}\nAllowed: all, {", ".join(CLAIMS)}'
            )
    return [name for name in CLAIMS if name in names]


def limits(text: str) -> tuple[int, ...]:
    """Watts of '200,250'. Raises UserError for anything else."""
    words = [word.strip() for word in text.split(',') if word.strip()]
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise UserError(
            f'--power_limits={text}: must be watts with commas between, such as 200,250'
        )
    return tuple(map(int, words))


def measure(names: Sequence[str], settings: Settings) -> list[str]:
    """Runs the claims one after the other; returns those whose process failed."""
    failed, begun = [], time.monotonic()
    fields = json.dumps(dataclasses.asdict(settings))
    for name in names:
        Results(
            Path(settings.folder), name, quick=settings.quick
        )  # refuses those of the other mode
    # The list of configs is as long as it is, so it takes what the others leave.
    for name in sorted(names, key=lambda name: name == 'flexibility'):
        print(name, flush=True)
        share: float | None = None
        left: float | None = None
        if settings.quick:
            left = QUICK - (time.monotonic() - begun)
            share = max(5.0, left - LAST) if name == 'flexibility' else min(CLAIMS[name], left)
        words = [
            '-m',
            'experiments.claims.worker',
            name,
            fields,
            str(float('inf') if share is None else share),
        ]
        try:
            done = subprocess.run([sys.executable, *words], check=False, timeout=left)
            if done.returncode:
                failed.append(name)
        except subprocess.TimeoutExpired:
            print(
                f'  the five minutes of quick mode are over: {name} was ended; call again to go on'
            )
    return failed


def main(argv: Sequence[str]) -> int:
    about = (__doc__ or '').format(claims=', '.join(CLAIMS))
    line = CommandLine(about, example='all --workdir=runs/claims --quick', words='CLAIM,…|all')
    line.string('workdir', 'DIR', 'where results, runs and the page go', required=True)
    line.boolean('quick', 'small sizes, the first config of each kind, five minutes')
    line.string('power_limits', 'WATTS,…', 'limits to try on the GPUs, where the driver allows it')
    line.number('grams_per_kwh', 'CO₂ of a kWh where this machine stands; without it none is given')
    given = line.parse(argv)
    names = chosen(given.words[0])
    settings = Settings(given.quick, given.workdir, limits(given.power_limits), given.grams_per_kwh)
    try:
        Path(given.workdir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f'--workdir={given.workdir}: {error.strerror}; give another folder'
        ) from None
    failed = measure(names, settings)
    from experiments.claims import page  # matplotlib takes a second to import

    written, answers = page.write(settings)
    for name, shown in answers.items():
        print(f'{name} [{shown.label}]: {shown.answer}')
    print(f'page: {written}')
    if failed:
        print(f'failed: {", ".join(failed)}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(run(main))
