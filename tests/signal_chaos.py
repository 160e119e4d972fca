"""Sends stop signals at random moments to every command, and looks at how each ends.

    python -m tests.signal_chaos [--signals=50] [--seed=0] [--only=train,evaluate,…]

TERM, INT and USR1, one or two, from 50 ms after the start to after the end. Every exit code must be
one that is documented, nothing may print a traceback, and the run and the sweep, called again until
they finish, must be equal to ones that nobody interrupted. Exit 0: all that holds.
"""

import collections
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jaxdl.core.flags import CommandLine
from jaxdl.errors import run
from jaxdl.run.signals import STOP_SIGNALS
from tests import chaos

TRAIN = (
    'train', '--config=digits_cnn', '--config.steps=40', '--config.log_every=10',
    '--config.eval_every=20', '--config.checkpoint.every=20', '--config.model.channels=(4,)',
    '--config.model.pools=1', '--config.record_samples=True', '--config.placement=stream',
)  # fmt: skip
SWEEP = """
from jaxdl.sweeps import Sweep, grid
def get_sweep():
    return Sweep(
        config='configs/digits_cnn.py',
        metric='eval/test/accuracy',
        points=grid({'seed': (0, 1)}),
        overrides={'steps': 10, 'eval_every': 0, 'model.channels': (4,), 'model.pools': 1},
    )
"""
COMMANDS = ('train', 'evaluate', 'report', 'prepare', 'sweep', 'plan', 'sample')


class Chaos:
    """The commands in one folder, with an unbroken run of each.

    Args:
        folder: where everything goes.
        rng: chooses moments and signals.
    """

    def __init__(self, folder: Path, rng: random.Random):
        self.folder, self.rng = folder, rng
        self.sweep = folder / 'sweep.py'
        self.sweep.write_text(SWEEP)
        self.seconds: dict[str, float] = {}
        self.natural: dict[str, int] = {}
        self.codes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        self.wrong: list[str] = []

    def words(self, name: str, place: str) -> list[str]:
        there, finished = self.folder / f'{name}-{place}', self.folder / 'train-unbroken'
        words = {
            'train': (*TRAIN, f'--workdir={there}'),
            'evaluate': ('evaluate', f'--workdir={finished}', '--json'),
            'report': ('report', str(finished), f'--output={there}'),
            'prepare': ('prepare', 'digits', f'--data_dir={there}'),
            'sweep': ('sweep', str(self.sweep), f'--workdir={there}', '--slots=2'),
            'plan': ('plan', '--config=digits_cnn', '--devices=h100', '--estimate'),
            # A classifier writes no text: the command ends with 2, after it has opened the run.
            'sample': ('sample', f'--workdir={finished}', '--prompt=x'),
        }[name]
        return [sys.executable, '-m', 'jaxdl', *words]

    def unbroken(self, name: str) -> None:
        """Runs a command to its end, and notes how long it takes and how it ends."""
        began = time.monotonic()
        process = chaos.start(self.words(name, 'unbroken'), self.folder / f'{name}-unbroken.txt')
        self.natural[name] = process.wait()
        self.seconds[name] = time.monotonic() - began
        if self.natural[name] not in (0, 2):
            raise SystemExit((self.folder / f'{name}-unbroken.txt').read_text())

    def signalled(self, name: str, place: str) -> int:
        """Starts a command, sends it one or two signals, and returns its exit code."""
        log = self.folder / 'log.txt'
        log.unlink(missing_ok=True)
        process = chaos.start(self.words(name, place), log)
        moment = self.rng.uniform(0.05, 1.1 * self.seconds[name])
        numbers = self.rng.choices(STOP_SIGNALS, k=self.rng.choice((1, 1, 2)))
        time.sleep(moment)
        for number in numbers:
            process.send_signal(number)
            time.sleep(self.rng.uniform(0, 0.2))
        code = process.wait()
        said = log.read_text(errors='replace')
        self.codes[name][code] += 1
        # Two signals may cost what was not saved, and a first one may come when all is done.
        words = 'killed before saving' if name == 'sweep' else 'second signal'
        second = code == 1 and len(numbers) == 2 and words in said
        story = f'{name}: {[n.name for n in numbers]} after {moment:.2f} s: {code}\n{said[-3000:]}'
        # What was trained is saved, or all of it was.
        lost = name == 'train' and code == 75 and '/40' in said and 'nothing to save' in said
        lost = lost and 'done: ' not in said
        if lost or 'Traceback' in said or not (code in (75, self.natural[name]) or second):
            self.wrong.append(story)
        return code

    def broken(self, name: str, count: int) -> None:
        """Sends `count` signals to a command; what it leaves behind must not show it."""
        place = 0
        for _ in range(count):
            if self.signalled(name, str(place)) == self.natural[name]:
                self.compare(name, str(place))
                place += 1
        process = chaos.start(self.words(name, str(place)), self.folder / 'last.txt')
        if process.wait() != self.natural[name]:
            self.wrong.append(f'{name} at last: {(self.folder / "last.txt").read_text()[-3000:]}')
        self.compare(name, str(place))

    def compare(self, name: str, place: str) -> None:
        one, other = self.folder / f'{name}-unbroken', self.folder / f'{name}-{place}'
        if name == 'train':
            self.wrong += [f'train: {text}' for text in chaos.compare(one, other)]
        if name == 'sweep':
            values = [
                {t['id']: t['value'] for t in json.loads(text)['trials']}
                for text in ((path / 'results.json').read_text() for path in (one, other))
            ]
            if values[0] != values[1]:
                self.wrong.append(f'sweep: {values}')
        if name == 'report' and not (other / 'index.html').read_text().rstrip().endswith('</html>'):
            self.wrong.append('report: the page is not whole')


def main(argv: Sequence[str]) -> int:
    line = CommandLine(__doc__ or '', example='--signals=500 --seed=1')
    line.integer('signals', 'how often, over all commands', default=50, least=1)
    line.integer('seed', 'of moments and signals', default=0)
    line.several('only', COMMANDS, 'commands')
    given = line.parse(argv)
    folder = Path(tempfile.mkdtemp(prefix='jaxdl-signals-'))
    try:
        every = Chaos(folder, random.Random(given.seed))
        for name in dict.fromkeys(['train', *given.only]):
            every.unbroken(name)
        for index, name in enumerate(given.only):
            every.broken(
                name, given.signals // len(given.only) + (index < given.signals % len(given.only))
            )
            codes = ', '.join(f'{n} × {code}' for code, n in sorted(every.codes[name].items()))
            print(f'{name}: {codes}', flush=True)
        print('\n\n'.join(every.wrong) or 'all as documented, all equal')
        return 1 if every.wrong else 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    sys.exit(run(main))
