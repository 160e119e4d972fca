"""The share of its time that each shipped config waits for data, after its first interval.

    python -m experiments.bench.wait --data=DIR [--only=NAMES] [--out=FILE.json]

Each is the beginning of a real run by `train.py`, so it holds the loop, the logs and the data pipeline;
evaluation and checkpoints are left out. Configs on text of one's own read the files in DIR (text-en,
en-de, fashion-mnist). Those whose data set is not there, or whose step takes a CPU minutes, are not in it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from jaxdl import errors
from jaxdl.core.flags import CommandLine

# Steps that take some ten seconds on two cores.
STEPS = {
    'digits_cnn': 900,
    'fashion_cnn': 60,
    'stdlib_lm': 45,
    'char_rnn': 45,
    'char_rnn:gru': 45,
    'char_rnn:files': 45,
    'lm_small': 45,
    'lm_small:bytes': 45,
    'bert_tiny': 90,
    'bert_tiny:files': 90,
    'translate_small': 45,
    'translate_small:full': 30,
}


def words(name: str, data: str, prepared: str) -> list[str]:
    """Where the config finds its data."""
    if name == 'fashion_cnn':
        return [f'--config.data.data_dir={prepared}']
    if name.startswith('translate'):
        part = 'en-de' if name.endswith(':full') else 'en-de.small'
        return [f'--config.data.source.train={data}/{part}.train.tsv.gz']
    if name.startswith('lm_small') or name.endswith(':files'):
        return [f'--config.data.source.train={data}/austen.train.txt.gz']
    return []


def run(name: str, extra: list[str], folder: str) -> list[float]:
    """The data wait of each interval but the first."""
    steps, (base, _, variant) = STEPS[name], name.partition(':')
    config = f'configs/{base}.py' + (f':{variant}' if variant else '')
    limits = [f'--config.steps={steps}', f'--config.log_every={steps // 3}']
    limits += ['--config.eval_every=0', '--config.checkpoint.every=0']
    workdir = f'{folder}/{name.replace(":", "-")}'
    done = subprocess.run(
        [sys.executable, 'train.py', f'--config={config}', f'--workdir={workdir}', *limits, *extra],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f'{name}: {done.stderr[-500:] or done.stdout[-500:]}')
    with open(f'{workdir}/metrics.jsonl') as file:
        rows = [json.loads(line) for line in file]
    return [row['perf/data_wait'] for row in rows[1:] if 'perf/data_wait' in row]


def main(argv: Sequence[str]) -> None:
    """Parses the command line, runs, prints and writes."""
    line = CommandLine(__doc__ or '', example='--data=/data --only=digits_cnn')
    line.string('data', 'DIR', 'the folder of the original data', required=True)
    line.several('only', STEPS, 'configs')
    line.string('out', 'FILE.json', 'what was measured goes there too')
    options = line.parse(argv)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        names = options.only
        if 'fashion_cnn' in names:
            source = f'--from={options.data}/fashion-mnist'
            command = ['jaxdl', 'prepare', 'fashion_mnist', source, f'--data_dir={folder}/sets']
            subprocess.run([sys.executable, '-m', *command], check=True, stdout=subprocess.DEVNULL)
        for name in names:
            found[name] = run(name, words(name, options.data, f'{folder}/sets'), folder)
            print(f'{name}: {", ".join(f"{100 * one:.2f} %" for one in found[name])}', flush=True)
    if options.out:
        os.makedirs(os.path.dirname(options.out) or '.', exist_ok=True)
        with open(options.out, 'w') as file:
            json.dump(found, file, indent=1)


if __name__ == '__main__':
    sys.exit(errors.run(main))
