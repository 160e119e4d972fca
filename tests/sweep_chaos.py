"""Kills a sweep and its trials again and again and compares with a sweep that nobody touched.

    python -m tests.sweep_chaos [--trials=24] [--slots=4] [--kills=5] [--trial_kills=5] [--seed=0]

Real processes and `kill -9`, at random moments. At the end every trial must have finished exactly
once, and parameters, optimizer states, sample ids and metrics must be equal bit for bit to those of
the unbroken sweep. Exit 0: equal.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from jaxdl.sweeps.store import Store
from tests import chaos

ROOT = chaos.ROOT
SWEEP = """
from jaxdl.sweeps import Sweep, sample, log_uniform
def get_sweep():
    return Sweep(
        config='tests/sweep_config.py:faulty',
        metric='eval/test/accuracy',
        points=sample({points}, {{'optimizer.learning_rate': log_uniform(1e-3, 0.3)}}),
        seeds=2,
        overrides={{
            'steps': {steps}, 'data.delay': 0.03, 'checkpoint.every': 10, 'eval_every': 20,
            'record_samples': True,
        }},
        retries=20,
    )
"""


class Broken:
    """A sweep that is killed and started again.

    Args:
        words: its command.
        folder: its folder.
        log: where it prints.
    """

    def __init__(self, words: list[str], folder: Path, log: Path):
        self.words, self.folder, self.log = words, folder, log
        self.done = {'sweep kills': 0, 'trial kills': 0, 'killed before a save': 0}
        self.start()

    def start(self) -> None:
        self.process = chaos.start(self.words, self.log)

    def running(self) -> list[str]:
        """The trials in whose folders a process trains that has written something."""
        store = Store(self.folder)
        names = sorted(p.parent.name for p in self.folder.glob('trials/*/run.json'))
        return [name for name in names if store.is_running(name)]

    def wait_until_running(self) -> list[str]:
        """Some running trials; none if the sweep has ended."""
        while self.process.poll() is None:
            found = self.running()
            if found:
                return found
            time.sleep(0.02)
        return []

    def kill_sweep(self) -> None:
        self.process.kill()
        self.process.wait()
        self.done['sweep kills'] += 1
        self.start()

    def kill_trial(self, name: str) -> None:
        store = Store(self.folder)
        owner = store.owner(name)
        if not store.is_running(name) or not owner:
            return
        self.done['killed before a save'] += store.saved(name) < 0
        try:
            os.kill(owner, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.done['trial kills'] += 1


def break_sweep(
    words: list[str], folder: Path, log: Path, rng: random.Random, *, kills: int, trials: int
) -> dict:
    """Runs `words` to the end through the kills; returns what happened."""
    sweep = Broken(words, folder, log)
    while sweep.done['sweep kills'] < kills or sweep.done['trial kills'] < trials:
        names = sweep.wait_until_running()
        left = kills - sweep.done['sweep kills'], trials - sweep.done['trial kills']
        if not names:
            break
        time.sleep(rng.uniform(0.0, 1.5))
        if rng.random() < left[0] / (left[0] + left[1]):
            sweep.kill_sweep()
        else:
            names = sweep.wait_until_running()
            if names:
                sweep.kill_trial(rng.choice(names))
    code = sweep.process.wait()
    if code:
        raise SystemExit(f'the sweep ended with {code}:\n{log.read_text()[-3000:]}')
    return sweep.done


def results(folder: Path) -> dict:
    return json.loads((folder / 'results.json').read_text())


def compare(unbroken: Path, broken: Path) -> list[str]:
    """The differences between two finished sweeps, in words; [] where they are equal."""
    wrong = []
    first, second = results(unbroken), results(broken)
    ids = [t['id'] for t in first['trials']]
    if ids != [t['id'] for t in second['trials']]:
        return ['not the same trials']
    if second['counts'] != {'finished': len(ids)}:
        wrong.append(f'counts {second["counts"]}')
    for a, b in zip(first['trials'], second['trials'], strict=True):
        name = a['id']
        ended = len(re.findall('^done: ', (broken / 'logs' / f'{name}.txt').read_text(), re.M))
        if ended != 1:
            wrong.append(f'{name} finished {ended} times')
        if a['value'] != b['value']:
            wrong.append(f'{name}: {a["value"]} and {b["value"]}')
        places = unbroken / 'trials' / name, broken / 'trials' / name
        wrong += [f'{name}: {difference}' for difference in chaos.compare(*places)]
    if first['best'] != second['best']:
        wrong.append('the best differs')
    return wrong


def run(
    folder: Path, *, trials: int, slots: int, kills: int, trial_kills: int, steps: int, seed: int
) -> tuple[dict, list[str]]:
    """(what happened, the differences) of an unbroken and a broken sweep under `folder`."""
    file = folder / 'sweep.py'
    file.write_text(SWEEP.format(points=trials // 2, steps=steps))

    def command(name: str) -> list[str]:
        module = [sys.executable, '-m', 'jaxdl', 'sweep', str(file)]
        return [*module, f'--workdir={folder / name}', f'--slots={slots}']

    began = time.monotonic()
    log = folder / 'unbroken.log'
    if chaos.start(command('unbroken'), log).wait():
        raise SystemExit(log.read_text()[-3000:])
    alone = time.monotonic() - began
    done = break_sweep(
        command('broken'),
        folder / 'broken',
        folder / 'broken.log',
        random.Random(seed),
        kills=kills,
        trials=trial_kills,
    )
    done['attempts'] = sum(t['attempts'] for t in results(folder / 'broken')['trials'])
    done['seconds'] = (alone, time.monotonic() - began - alone)
    return done, compare(folder / 'unbroken', folder / 'broken')


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--trials', type=int, default=24)
    parser.add_argument('--slots', type=int, default=4)
    parser.add_argument('--kills', type=int, default=5)
    parser.add_argument('--trial_kills', type=int, default=5)
    parser.add_argument('--steps', type=int, default=80)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--keep', action='store_true', help='keep the two folders')
    values = vars(parser.parse_args())
    keep = values.pop('keep')
    folder = Path(tempfile.mkdtemp(prefix='jaxdl-sweep-chaos-'))
    os.environ['PYTHONPATH'] = str(ROOT)
    try:
        done, wrong = run(folder, **values)
        print(
            f'{values["trials"]} trials on {values["slots"]} slots: the sweep was killed '
            f'{done["sweep kills"]} times, a trial {done["trial kills"]} times; '
            f'{done["attempts"]} attempts; {done["seconds"][0]:.0f} s unbroken, '
            f'{done["seconds"][1]:.0f} s broken'
        )
        missing = (
            done['sweep kills'] < values['kills'] or done['trial kills'] < values['trial_kills']
        )
        if missing:
            wrong.append('it finished before it could be killed that often; give more --steps')
        print('equal' if not wrong else 'DIFFERENT: ' + '; '.join(wrong[:10]))
        return 1 if wrong else 0
    finally:
        if keep:
            print(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    sys.exit(main())
