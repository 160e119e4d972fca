"""Kills a run again and again and compares what is left with a run that nobody touched.

    python -m tests.chaos --config=configs/digits_cnn.py --kills=20 --seed=0 [--config.FIELD=VALUE …]

Real subprocesses, `kill -9`, in turn at a random moment of the start-up, at a random step, in the
middle of a save and in the middle of an evaluation. At the end parameters, optimizer state, averages
and statistics must be equal bit for bit, the sample ids of every step the same, and every line of
metrics.jsonl too (but for times). Exit 0: equal, after as many kills as were asked for.
"""

import argparse
import hashlib
import json
import logging
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
    path = workdir / 'checkpoints' / str(step)
    logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax does not know what else is there
    # All of it on one device, also what several processes saved.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        ocp.checkpointables_metadata(path).metadata['state'],
    )
    tree = ocp.load_checkpointables(path, {'state': wanted})['state']
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
    kept = [
        {k: v for k, v in row.items() if k != 'time' and not k.startswith(('perf/', 'energy/'))}
        for row in rows
    ]
    return [row for row in kept if len(row) > 1]


def samples(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / 'samples.jsonl').read_text().splitlines()]


def last_sample(workdir: Path) -> int:
    """The step whose batch was sent to the device last."""
    try:
        with open(workdir / 'samples.jsonl', 'rb') as file:
            file.seek(max(0, file.seek(0, 2) - 2**16))
            whole = file.read().split(b'\n')[:-1]
        return json.loads(whole[-1])['step'] if whole else 0
    except (OSError, ValueError):
        return 0


def touched(workdir: Path) -> int:
    """When samples.jsonl was written last."""
    try:
        return (workdir / 'samples.jsonl').stat().st_mtime_ns
    except OSError:
        return 0


def evaluated(workdir: Path, step: int) -> bool:
    """Whether metrics.jsonl holds an evaluation of `step`."""
    try:
        rows = (workdir / 'metrics.jsonl').read_bytes().splitlines()
    except OSError:
        return False
    found = [json.loads(row) for row in rows if row.startswith(b'{"step": %d,' % step)]
    return any(name.startswith('eval/') for row in found for name in row)


def complete(workdir: Path) -> int:
    """The newest complete checkpoint."""
    names = [p.name for p in (workdir / 'checkpoints').glob('*')]
    return max((int(name) for name in names if name.isdigit()), default=0)


def kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def unfinished(workdir: Path) -> set:
    """The saves that are under way or were broken off."""
    try:
        return {
            (p.name, p.stat().st_ino)
            for p in (workdir / 'checkpoints').iterdir()
            if 'tmp' in p.name
        }
    except OSError:
        return set()


KINDS = ('start-up', 'step', 'save', 'evaluation')


def break_run(words: list[str], workdir: Path, kills: int, rng: random.Random, like: Path) -> dict:
    """Runs `words` to the end through `kills` kills; returns what happened.

    `like` is the folder of the unbroken run, which says how many steps there are.
    """
    config = json.loads((like / 'config.json').read_text())
    steps, every = config['steps'], config['eval_every']
    log = workdir.parent / 'broken.log'
    done = {**dict.fromkeys(KINDS, 0), 'resumes': 0, 'redone': 0}
    startup = 10.0
    for index in range(kills):
        kind = KINDS[index % 4]
        old, resumed, began = unfinished(workdir), complete(workdir), time.monotonic()
        before = touched(workdir)  # lines of the call before this one are no steps of this one
        process = start(words, log)
        done['resumes'] += index > 0
        # Kill by kill a little further, so that the run does not end before the last one.
        target = rng.randint(resumed + 1, max(resumed + 1, steps * (index + 1) // (kills + 1)))
        moment = began + rng.uniform(0.1, 1.0) * startup
        while process.poll() is None:
            step = last_sample(workdir) if touched(workdir) != before else resumed
            if kind == 'start-up' and time.monotonic() > moment:
                break
            if kind == 'step' and step >= target and step > resumed:
                break
            if kind == 'save' and unfinished(workdir) - old:
                break
            if kind == 'evaluation' and step > resumed and every and step % every == 0:
                if not evaluated(workdir, step):
                    break
            if kind == 'start-up' and step > resumed:
                startup = time.monotonic() - began
                break  # over sooner than it was thought to be
            time.sleep(0.001 if step > resumed else 0.01)
        if process.poll() is not None:
            raise SystemExit(
                f'the run ended with {process.returncode} after {index} kills, while waiting for '
                f'kill {index + 1} ({kind}); raise --config.steps:\n{log.read_text()[-2000:]}'
            )
        kill(process)
        step = last_sample(workdir) if touched(workdir) != before else resumed
        if kind == 'start-up' and step > resumed:
            kind = 'step'
        if kind == 'save' and not unfinished(workdir) - old:
            kind = 'step'  # it was complete before the kill arrived
        if kind == 'evaluation' and (step % every or evaluated(workdir, step)):
            kind = 'step'
        done[kind] += 1
        done['redone'] += max(0, step - complete(workdir))
    process = start(words, log)
    done['resumes'] += 1
    if process.wait():
        raise SystemExit(f'the run ended with {process.returncode}:\n{log.read_text()[-2000:]}')
    return done


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
        words = command(arguments.config, broken, overrides)
        done = break_run(words, broken, arguments.kills, rng, unbroken)
        wrong = compare(unbroken, broken)
        print(
            f'{arguments.kills} kills ({", ".join(f"{done[kind]} in {kind}" for kind in KINDS)}), '
            f'{done["resumes"]} resumes, {done["redone"]} steps redone, '
            f'{len(samples(broken))} steps'
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
