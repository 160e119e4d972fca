"""Kills a run again and again and compares what is left with a run that nobody touched.

    python -m tests.chaos --config=configs/digits_cnn.py --kills=20 --seed=0 [--config.FIELD=VALUE …]

Real subprocesses, `kill -9`, at random moments and, every third time, in the middle of a save. At
the end parameters, optimizer state, averages and statistics must be equal bit for bit, the sample
ids of every step the same, and every line of metrics.jsonl too (but for times). Exit 0: equal.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def command(config: str, workdir: Path, overrides: list[str]) -> list[str]:
    return [
        sys.executable,
        'train.py',
        f'--config={config}',
        f'--workdir={workdir}',
        '--config.record_samples=True',
        *overrides,
    ]


def start(words: list[str], log: Path) -> subprocess.Popen:
    with open(log, 'ab') as out:
        return subprocess.Popen(
            words, cwd=ROOT, stdout=out, stderr=out, start_new_session=True, env=os.environ
        )


def newest_state(workdir: Path) -> tuple[int, dict[str, np.ndarray]]:
    """The newest checkpoint's arrays, read by Orbax alone: {path: array}."""
    import jax
    from orbax.checkpoint import v1 as ocp

    step = max(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit())
    tree = ocp.load_checkpointables(workdir / 'checkpoints' / str(step))['state']
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def fingerprint(arrays: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + arrays[name].tobytes())
    return found.hexdigest()


def lines(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k != 'time' and not k.startswith(('perf/', 'energy/'))}
        for row in rows
    ]


def samples(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / 'samples.jsonl').read_text().splitlines()]


def last_sample(workdir: Path) -> int:
    try:
        rows = (workdir / 'samples.jsonl').read_bytes().splitlines()
        return json.loads(rows[-1])['step'] if rows else 0
    except (OSError, ValueError):
        return 0


def kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def saving(workdir: Path) -> bool:
    try:
        return any('tmp' in p.name for p in (workdir / 'checkpoints').iterdir())
    except OSError:
        return False


def break_run(words: list[str], workdir: Path, kills: int, rng: random.Random) -> dict:
    """Runs `words` to the end through `kills` kills; returns what happened."""
    log = workdir.parent / 'broken.log'
    done = {'kills': 0, 'resumes': 0, 'in_a_save': 0, 'redone': 0}
    began = time.monotonic()
    process = start(words, log)
    while not (workdir / 'metrics.jsonl').exists() and process.poll() is None:
        time.sleep(0.02)
    startup = time.monotonic() - began
    while True:
        if done['kills'] >= kills:
            code = process.wait()
            if code:
                raise SystemExit(f'the run ended with {code}:\n{log.read_text()[-2000:]}')
            return done
        aim_at_save = done['kills'] % 3 == 2
        deadline = time.monotonic() + rng.uniform(0.2, 2.0) * startup
        while process.poll() is None and time.monotonic() < deadline + 10 * aim_at_save:
            if aim_at_save and saving(workdir):
                done['in_a_save'] += 1
                break
            time.sleep(0.002 if aim_at_save else 0.01)
        if process.poll() is not None:
            if process.returncode:
                raise SystemExit(
                    f'the run ended with {process.returncode}:\n{log.read_text()[-2000:]}'
                )
            return done  # finished before it could be killed often enough
        before = last_sample(workdir)
        kill(process)
        done['kills'] += 1
        steps = [int(p.name) for p in (workdir / 'checkpoints').glob('*') if p.name.isdigit()]
        done['redone'] += max(0, before - max(steps, default=0))
        process = start(words, log)
        done['resumes'] += 1


def compare(unbroken: Path, broken: Path) -> list[str]:
    """The differences between two finished runs, in words; [] where they are equal."""
    (step, first), (other, second) = newest_state(unbroken), newest_state(broken)
    wrong = [] if step == other else [f'steps {step} and {other}']
    wrong += [f'leaf {name} is in one only' for name in sorted(set(first) ^ set(second))]
    wrong += [
        f'leaf {name} differs'
        for name in sorted(set(first) & set(second))
        if first[name].tobytes() != second[name].tobytes()
    ]
    if samples(unbroken) != samples(broken):
        wrong.append('sample ids differ')
    if lines(unbroken) != lines(broken):
        pairs = zip(lines(unbroken), lines(broken), strict=False)
        row = next((pair for pair in pairs if pair[0] != pair[1]), None)
        wrong.append(f'metrics.jsonl differs: {row}')
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--config', required=True)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--keep', action='store_true', help='keep the two run folders')
    arguments, overrides = parser.parse_known_args()
    folder = Path(tempfile.mkdtemp(prefix='jaxdl-chaos-'))
    unbroken, broken = folder / 'unbroken', folder / 'broken'
    try:
        process = start(command(arguments.config, unbroken, overrides), folder / 'unbroken.log')
        if process.wait():
            print((folder / 'unbroken.log').read_text()[-3000:])
            return 1
        rng = random.Random(arguments.seed)
        done = break_run(command(arguments.config, broken, overrides), broken, arguments.kills, rng)
        wrong = compare(unbroken, broken)
        print(
            f'{done["kills"]} kills ({done["in_a_save"]} in a save), {done["resumes"]} resumes, '
            f'{done["redone"]} steps redone, {len(samples(broken))} steps'
        )
        for name, place in (('unbroken', unbroken), ('broken', broken)):
            print(f'{name:9} {fingerprint(newest_state(place)[1])}')
        print('equal' if not wrong else 'DIFFERENT: ' + '; '.join(wrong[:10]))
        return 1 if wrong else 0
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    sys.exit(main())
