"""Claim 2, throughput: where each second of a run goes, and what helps a run that waits for its data."""

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims import base
from experiments.claims.base import MEASURED, Part, Settings, Shown
from jaxdl.api import DataSet, Source
from jaxdl.data.arrays import ArraySource

QUESTION = 'Where does each second of a training run go, and what keeps the device from waiting?'
CLAIM = 'A GPU delivers high throughput, if the data comes fast enough.'
BATCH = 64
DELAY = 2e-4  # seconds that the slowed source takes for an example
# What is changed about the run whose source is slow: fields of the config.
REMEDIES: dict[str, dict[str, Any]] = {
    'slow source': {},
    'prefetch 2 → 16': {'prefetch': 16},
    'two worker processes': {'workers': 2},
    'set in host memory': {'placement': 'host'},
    'set on the device': {'placement': 'device'},
    'on the device, 4 steps a call': {'placement': 'device', 'steps_per_call': 4},
}
# The parts of an account, summed up for people.
BUCKETS = {
    'data': ('data_wait', 'data_setup'),
    'transfer': ('transfer',),
    'dispatch': ('dispatch',),
    'compute': ('device',),
    'log': ('log',),
    'evaluation': ('evaluation',),
    'checkpoint': ('checkpoint',),
    'compile and init': ('compile', 'init'),
}


class SlowSource(Source):
    """Rows of arrays that come one after the other, `delay` seconds each, as from one slow disk.

    `in_memory` reads all of them, which takes as long once.
    """

    def __init__(self, source: ArraySource, delay: float):
        self._source, self._delay, self._lock = source, delay, threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        with self._lock:  # one reader in a process
            time.sleep(self._delay * len(ids))
        return self._source.fetch(ids)

    def in_memory(self) -> dict[str, np.ndarray]:
        with self._lock:
            time.sleep(self._delay * len(self))
        return self._source.in_memory()

    def __reduce__(self):  # in a worker process it has a lock of its own
        return SlowSource, (self._source, self._delay)


@dataclasses.dataclass
class SlowDigits(DataSet):
    """The digits, read slowly on purpose.

    Attributes:
        delay: seconds an example.
    """

    delay: float = DELAY

    def train_source(self) -> Source:
        from jaxdl.data.images.tfds import Tfds

        arrays = Tfds('digits').train_source().in_memory()
        assert arrays is not None  # 1,438 pictures of 8 × 8
        return SlowSource(ArraySource(arrays), self.delay)


def parts(settings: Settings) -> list[Part]:
    steps = 60 if settings.quick else 400
    found: list[Part] = [('account', lambda: account(settings))]
    for name, fields in REMEDIES.items():
        found.append((name, lambda n=name, f=fields: remedy(settings, n, steps, f)))
    return found


def account(settings: Settings) -> dict[str, Any]:
    """digits_cnn with log, evaluation and checkpoints: its own account, and a clock beside it."""
    from jaxdl.core import flags
    from jaxdl.core.config import Checkpoint

    config = flags.load_config('digits_cnn')
    config.steps = 240 if settings.quick else 1200
    config.log_every, config.eval_every = config.steps // 12, config.steps // 3
    config.checkpoint = Checkpoint(every=config.steps // 3)
    return _run(config, settings, 'account')


def remedy(settings: Settings, name: str, steps: int, fields: dict[str, Any]) -> dict[str, Any]:
    """The same step from the slowed source, with some fields of the config changed."""
    from jaxdl.core import flags
    from jaxdl.models.cnn import Cnn

    config = flags.load_config('digits_cnn')
    # A step that is shorter than its batch takes to read.
    model = Cnn(channels=(16, 32), convs=1, pools=2, dense=64)
    changes = {'placement': 'stream', 'prefetch': 2, **fields}
    config = dataclasses.replace(
        config, model=model, data=SlowDigits(), steps=steps, log_every=steps // 3, eval_every=0, ema=0.0,
        batch_size=BATCH, **changes,
    )  # fmt: skip
    return _run(config, settings, name)


def _run(config: Any, settings: Settings, name: str) -> dict[str, Any]:
    import contextlib
    import io
    import shutil

    from jaxdl.account.account import advice
    from jaxdl.record.metrics_file import read_metrics
    from jaxdl.run import loop as trainer

    folder = Path(settings.folder) / 'runs' / f'throughput-{"-".join(name.split())}'
    shutil.rmtree(folder, ignore_errors=True)  # a part is measured whole
    begun = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(config, str(folder))
    wall = time.monotonic() - begun
    rows = read_metrics(folder / 'metrics.jsonl')
    prefix = 'perf/time_'
    seconds = {k[len(prefix) : -2]: v for k, v in rows[-1].items() if k.startswith(prefix)}
    later = [row for row in rows[1:] if 'perf/examples_per_s' in row]
    return {
        'wall': wall,
        'seconds': seconds,
        'examples_per_s': float(np.median([row['perf/examples_per_s'] for row in later])),
        'data_wait': float(np.median([row.get('perf/data_wait', 0.0) for row in later])),
        'verdict': advice(seconds, placement=config.placement),
    }


def buckets(seconds: dict[str, float]) -> dict[str, float]:
    """The account's seconds in the words of BUCKETS; what is left is 'other'. The sum stays."""
    found = {name: sum(seconds.get(k, 0.0) for k in keys) for name, keys in BUCKETS.items()}
    known = {key for keys in BUCKETS.values() for key in keys}
    found['other'] = sum(value for key, value in seconds.items() if key not in known)
    return {name: value for name, value in found.items() if value > 0}


def gap(wall: float, seconds: dict[str, float]) -> float:
    """By which share of the wall time the sum of the buckets is off."""
    return abs(wall - sum(seconds.values())) / wall


def present(values: dict[str, Any]) -> Shown:
    from experiments.claims.draw import bars
    from jaxdl.report import plots

    run = values['account']
    off = gap(run['wall'], run['seconds'])
    told = buckets(run['seconds'])
    compute = told.get('compute', 0.0) / sum(told.values())
    done = {name: values[name] for name in REMEDIES if name in values}
    shown = Shown('', MEASURED)
    shown.figures.append(
        ('Where the wall time of a run went', plots.time_figure([('digits_cnn', told)]))
    )
    answer = (
        f'Of {run["wall"]:.1f} s of a short run {base.share(compute)} were compute, and the buckets add up '
        f'to the wall time within {100 * off:.2f} %'
    )
    if 'slow source' in done and len(done) > 1:
        slow = done['slow source']
        best = max(done, key=lambda name: done[name]['examples_per_s'])
        gain = done[best]['examples_per_s'] / slow['examples_per_s']
        answer += (
            f'; a source slowed on purpose left the step waiting {base.share(slow["data_wait"])} of the '
            f'time, and the best remedy ({best}) made it {gain:.1f} times as fast'
        )
        shown.figures.append(
            (
                f'Remedies for a source that takes {1e3 * DELAY:g} ms an example',
                bars(
                    [(n, v['examples_per_s'], f'{v["examples_per_s"]:,.0f}') for n, v in done.items()],
                    label='examples/s',
                ),
            )
        )  # fmt: skip
    shown.answer = answer + '.'
    shown.tables.append(
        (
            'The account', ['bucket', 'seconds', 'share'],
            [[n, f'{s:.2f}', f'{base.share(s / sum(told.values()), 1)}'] for n, s in told.items()]
            + [['sum', f'{sum(told.values()):.2f}', '100.0 %'],
               ['a clock beside it', f'{run["wall"]:.2f}', f'{base.share(run["wall"] / sum(told.values()), 1)}']],
        )
    )  # fmt: skip
    if done:
        shown.tables.append(
            (
                'The slowed source', ['run', 'examples/s', 'waiting for data', 'what the run says of itself'],
                [[n, f'{v["examples_per_s"]:,.0f}', f'{base.share(v["data_wait"])}', v['verdict']]
                 for n, v in done.items()],
            )
        )  # fmt: skip
    shown.notes.append(
        'The clock beside it also sees the end of the run after its last line was written. Prefetching '
        'hides the time of a batch behind the step before; it cannot help where the source is slower '
        'than the step all the time. Each worker process is a reader of its own. Several steps a call save '
        'dispatch on a GPU; on a CPU convolutions inside a loop are slow (docs/performance.md).'
    )
    return shown
