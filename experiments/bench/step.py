"""One training step of jaxdl beside the same step in PyTorch, both warm, taking turns.

    python -m experiments.bench.step --model=cnn [--dtype=float32,bfloat16] [--rounds=5]
        [--seconds=3] [--batch=N] [--plain] [--variants='jaxdl,torch compile'] [--out=FILE.json]

Models: cnn, resnet18, resnet20, vit_ti, transformer, transformer_50k, lstm, bert_base, bert_large; and
loader, a batch of images instead of a step. On a GPU batches are larger, PyTorch may use CUDA graphs
too, and memory is the device's. Every variant is a
process of its own that sleeps while the others run; PyTorch gets the same allocator settings.
Speed is PyTorch's best time over ours, per round: the median, least and greatest round are shown.
"""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence

from experiments.bench.cases import CASES, GRAPHS, OURS, TORCH
from jaxdl.core.flags import CommandLine
from jaxdl.errors import UserError, nearest, run
from jaxdl.run import runtime


class Worker:
    """A variant in its process."""

    def __init__(self, variant: str, model: str, batch: int):
        command = [sys.executable, '-m', 'experiments.bench.worker', variant, model, str(batch)]
        self.variant, self.model, self.rounds = variant, model, []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about: dict = {}

    def reply(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f'{self.variant}: the process ended ({self.process.wait()})')
        return json.loads(line)

    def await_ready(self) -> bool:
        """False where it could not be built; then it is left out."""
        try:
            self.about = self.about or self.reply()
        except RuntimeError as error:
            print(f'left out: {error}', file=sys.stderr)
        return bool(self.about)

    def ask(self, command: str) -> dict:
        self.process.stdin.write(command + '\n')
        self.process.stdin.flush()
        return self.reply()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)

    @property
    def medians(self) -> list[float]:
        # Batches come in bursts from a loader's processes: there only the mean is a rate.
        centre = statistics.mean if self.model == 'loader' else statistics.median
        return [centre(one['times']) for one in self.rounds]


def on_gpu() -> bool:
    """Whether the workers will find an NVIDIA GPU."""
    return runtime.has_nvidia() and os.environ.get('JAX_PLATFORMS') != 'cpu'


def ways(kind: str, dtypes: Sequence[str], *, plain: bool, graphs: bool) -> list[str]:
    """The names of the variants of a kind of case."""
    found = []
    for dtype in dtypes:
        suffix = '' if dtype == 'float32' else f' {dtype}'
        found += [f'{name}{suffix}' for name in OURS.get(kind, ('jaxdl',))]
        if plain:
            found.append(f'jaxdl plain{suffix}')
        found += TORCH[kind].get(dtype, ())
        if graphs and kind in GRAPHS:
            found.append(f'{GRAPHS[kind]}{suffix}')
    return found


def measure(
    model: str, variants: list[str], batch: int, rounds: int, seconds: float
) -> tuple[list[Worker], list[float]]:
    """Runs the variants in turn, `rounds` times; the order turns round each time.

    Returns the workers and the rates of a matrix product in GFLOP/s (on a GPU in bfloat16).
    """
    workers = []
    for variant in variants:
        workers.append(Worker(variant, model, batch))
        if (os.cpu_count() or 1) < 8:  # else they compile at the same time
            workers[-1].await_ready()
    probes = [Worker(f'{library} probe', model, batch) for library in ('jaxdl', 'torch')]
    workers = [worker for worker in workers if worker.await_ready()]
    probes = [probe for probe in probes if probe.await_ready()]
    peaks: list[float] = []
    for index in range(rounds):
        for worker in workers[:: 1 if index % 2 else -1]:
            worker.rounds.append(worker.ask(f'run {seconds}'))
        for probe in probes:  # processes of their own: the arrays would count in a variant's memory
            peaks.append(probe.ask('peak')['gflops'])
        print(f'round {index + 1} of {rounds}', file=sys.stderr)
    for worker in (*workers, *probes):
        worker.close()
    return workers, peaks


def summary(workers: list, dtypes: list[str]) -> list[dict]:
    """One row a variant, with its speed relative to PyTorch's best of the same dtype."""
    rows = []
    for dtype in dtypes:
        of_dtype = [w for w in workers if ('bfloat16' in w.variant) == (dtype == 'bfloat16')]
        theirs = [w for w in of_dtype if w.variant.startswith('torch')]
        best = min(theirs, key=lambda w: statistics.median(w.medians), default=None)
        for worker in of_dtype:
            times = worker.medians
            row = {
                'variant': worker.variant,
                'dtype': dtype,
                'ms': statistics.median(times) * 1e3,
                'least_ms': min(min(r['times']) for r in worker.rounds) * 1e3,
                'cpu_ms': statistics.median(r['cpu_s'] for r in worker.rounds) * 1e3,
                'page_faults': statistics.median(r['page_faults'] for r in worker.rounds),
                'peak_mib': worker.rounds[-1]['peak_mib'],
                'parameters': worker.about['parameters'],
                'ready_s': worker.about['ready_s'],
            }
            if best is not None:
                ratios = [b / t for b, t in zip(best.medians, times, strict=True)]
                row['speed'] = statistics.median(ratios)
                row['speed_range'] = [min(ratios), max(ratios)]
                row['best'] = worker is best
            rows.append(row)
    return rows


def table(rows: list[dict], gflop: float, peak: float) -> str:
    """The rows as text."""
    head = f'{"variant":32} {"ms":>8} {"least":>8} {"speed (range)":>22} {"% peak":>7} {"CPU ms":>8} {"faults":>8} {"MiB":>6}'
    lines = [head]
    for row in rows:
        speed = ''
        if 'speed' in row:
            low, high = row['speed_range']
            speed = f'{row["speed"]:.2f} ({low:.2f}–{high:.2f})' + (' *' if row['best'] else '')
        share = f'{gflop / row["ms"] * 1e3 / peak * 100:.0f}' if gflop and peak else ''
        lines.append(
            f'{row["variant"]:32} {row["ms"]:8.1f} {row["least_ms"]:8.1f} {speed:>22} {share:>7} '
            f'{row["cpu_ms"]:8.0f} {row["page_faults"]:8.0f} {row["peak_mib"]:6.0f}'
        )
    return '\n'.join(lines)


def main(argv: Sequence[str]) -> None:
    """Parses the command line, measures, prints and writes."""
    line = CommandLine(__doc__ or '', example='--model=cnn --dtype=float32,bfloat16')
    line.choice('model', list(CASES), 'what is trained; loader: a batch of images instead')
    line.several('dtype', ('float32', 'bfloat16'), 'types of the arithmetic', ['float32'])
    line.integer('rounds', 'turns of each variant', default=5, least=1)
    line.number('seconds', 'how long a turn lasts', default=3.0)
    line.integer('batch', "examples; 0: the case's own", default=0)
    line.boolean('plain', 'also jaxdl with JAXDL_PLAIN=1')
    line.string('variants', "'NAME,…'", 'these alone')
    line.string('out', 'FILE.json', 'what was measured goes there too')
    options = line.parse(argv)
    case, dtypes = CASES[options.model], options.dtype
    variants = ways(case.kind, dtypes, plain=options.plain, graphs=on_gpu())
    if options.variants:
        known = ways(case.kind, ('float32', 'bfloat16'), plain=True, graphs=True)
        variants = [word.strip() for word in options.variants.split(',')]
        for name in variants:
            if name not in known:
                raise UserError(
                    f'--variants: {name!r} is no way to run {case.name}{nearest(name, known)}\n'
                    f'Allowed: {", ".join(known)}'
                )
    batch = options.batch or (case.gpu_batch if on_gpu() else case.batch)
    workers, peaks = measure(case.name, variants, batch, options.rounds, options.seconds)
    gflop = next((w.about['gflop'] for w in workers if 'gflop' in w.about), 0.0)
    rows = summary(workers, dtypes)
    load = os.getloadavg()[0]
    print(
        f'{case.name}, batch {batch}: {gflop:.1f} GFLOP a step; product '
        f'{min(peaks):.0f}–{max(peaks):.0f} GFLOP/s; load {load:.1f}; * is the best of PyTorch'
    )
    print(table(rows, gflop, max(peaks)))
    if options.out:
        report = {
            'model': case.name,
            'batch': batch,
            'sizes': case.sizes,
            'gflop': gflop,
            'peak_gflops': peaks,
            'load': load,
            'cores': os.cpu_count(),
            'machine': platform.processor() or platform.machine(),
            'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'command': f'python -m experiments.bench.step {" ".join(sys.argv[1:])}',
            'rows': rows,
            'rounds': {w.variant: w.medians for w in workers},
        }
        os.makedirs(os.path.dirname(options.out) or '.', exist_ok=True)
        with open(options.out, 'w') as file:
            json.dump(report, file, indent=1)


if __name__ == '__main__':
    sys.exit(run(main))
