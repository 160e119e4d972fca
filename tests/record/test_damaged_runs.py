"""Run folders that were swapped, copied, renamed, edited and cut: nothing of it goes unsaid.

Each damage of a folder is made by a seed. Afterwards a resume and an evaluation either refuse with
a teaching line, or use a state that is bit for bit one that the run had at that very step, under the
config that it was trained with; an older step than the newest only after a word on stderr.
"""

import json
import random
import shutil

import jax
import numpy as np
import pytest

from jaxdl.core import config as config_lib
from jaxdl.core.config import Checkpoint
from jaxdl.core.optim import path_name
from jaxdl.errors import UserError
from jaxdl.record.checkpoints import Checkpoints
from jaxdl.record.folder import Workdir
from jaxdl.run import open_run as opening
from tests import small

STEPS = (4, 8, 12)


def arrays(state) -> dict:
    return {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state)}


class Runs:
    """Three runs: `own`; `twin`, a run of the same config; `other`, of another seed."""

    def __init__(self, folder):
        self.folder = folder
        self.config = small.config(mesh=config_lib.Mesh(data=1))
        self.program, feed, order = small.program(self.config)
        fresh = self.program.init(feed.source.fetch(order.batch(0)[:8]))
        self.states: dict[int, dict] = {}
        for shift, name in enumerate(('own', 'twin', 'other')):
            place = Workdir(folder / name)
            config = small.config(mesh=config_lib.Mesh(data=1), seed=int(name == 'other'))
            info = place.begin(config, from_step=0)
            store = Checkpoints(place.checkpoints, Checkpoint(keep=5))
            for step in STEPS:
                state = fresh.replace(
                    step=fresh.step + step,
                    params=jax.tree.map(lambda x, a=step + shift / 8: x + a, fresh.params),
                )
                assert store.save(step, state, extra={'n': step}) and store.wait()
                if name == 'own':
                    self.states[step] = arrays(state)
            store.close()
            info.end('finished', 'step 12', step=12, saved=12)
            place.metrics.write_text('{"step": 4, "a": 1.5}\n{"step": 12, "a": 2.5}\n')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp('runs'))


# ---- the damages --------------------------------------------------------------------------------


def edit(path, rng: random.Random) -> str:
    """Changes, removes or adds one value of a JSON file."""
    tree = json.loads(path.read_bytes())
    spots = []

    def walk(node):
        for key in sorted(node) if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(tree)
    node, key = rng.choice(spots)
    value = node[key]
    new = rng.choice([None, [], {}, 'x', -1, 10**400, True, 2.5, {'type': 'os:system'}])
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.7:
        new = value + 1 if rng.random() < 0.5 else value / 2
    action = rng.choice(['change', 'change', 'change', 'remove', 'add'])
    if action == 'remove':
        del node[key]
    elif action == 'add' and isinstance(node, dict):
        node['surplus'] = new
    else:
        node[key] = new
    path.write_text(json.dumps(tree))
    return f'{action} {key!r} of {path.name} to {new!r:.20}'


def exchange(first, second) -> None:
    aside = first.with_name('aside')
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def replace(target, source) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    elif target.exists():
        target.unlink()
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def damage(place, others, rng: random.Random) -> str:
    """Does one thing to the folder `place`; returns what."""
    saved = place / 'checkpoints'
    step, second = (saved / str(s) for s in rng.sample(STEPS, 2))
    foreign = rng.choice(others)
    number = str(rng.choice([1, 6, 12, 13, 200]))
    files = [p for p in sorted(place.rglob('*')) if p.is_file() and p.stat().st_size]
    by_hand = [place / 'config.json', place / 'run.json', place / 'metrics.jsonl']
    by_hand += [step / 'record' / 'record.json']
    kind = rng.choice(
        'swap copy rename item item foreign foreign file edit edit edit edit cut delete nested garbage'
        ' remove link all'.split()
    )
    path = rng.choice(by_hand if rng.random() < 0.6 else files)
    what = f'{kind} {path.relative_to(place)}'
    if kind == 'swap':
        exchange(step, second)
        what = f'swap {step.name} {second.name}'
    elif kind in ('copy', 'rename'):
        source = rng.choice([step, foreign / 'checkpoints' / step.name])
        replace(saved / number, source) if source != saved / number else None
        if kind == 'rename' and source == step and step.name != number:
            shutil.rmtree(step)
        what = f'{kind} {"/".join(source.parts[-3:])} to {number}'
    elif kind == 'item':
        source = rng.choice([second, foreign / 'checkpoints' / step.name])
        items = rng.sample(sorted(p.name for p in step.iterdir()), rng.randint(1, 2))
        for item in items:
            replace(step / item, source / item)
        what = f'items {items} of {"/".join(source.parts[-3:])} in {step.name}'
    elif kind == 'foreign':
        replace(saved / step.name, foreign / 'checkpoints' / step.name)
        what = f'{foreign.name} {step.name} in its place'
    elif kind == 'file':
        name = rng.choice(['config.json', 'run.json', 'checkpoints'])
        replace(place / name, foreign / name)
        what = f'{name} of {foreign.name}'
    elif kind == 'edit':
        what = edit(rng.choice([place / 'config.json', place / 'run.json', by_hand[3]]), rng)
    elif kind == 'cut':
        data = path.read_bytes()
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == 'nested':
        path.write_text('[' * 500 + ']' * 500)
    elif kind == 'garbage':
        path.write_bytes(rng.randbytes(30))
    elif kind == 'delete':
        path.unlink()
    elif kind == 'remove':
        shutil.rmtree(rng.choice([step, saved]))
    elif kind == 'link':
        shutil.rmtree(step)
        step.symlink_to(rng.choice([second, foreign / 'checkpoints' / second.name]))
    elif kind == 'all':  # but for config.json; with that it would be a copy of the other run
        shutil.rmtree(saved)
        shutil.copytree(others[1] / 'checkpoints', saved)
        shutil.copy(others[1] / 'run.json', place / 'run.json')
        what = f'all of {others[1].name} but its config.json'
    return what


# ---- what a resume and an evaluation make of it -------------------------------------------------


def teaches(error: UserError) -> bool:
    return 10 < len(str(error)) and len(str(error).splitlines()) <= 3 and 'Error:' not in str(error)


def judge(runs: Runs, step: int, state, said: str, newest: int, what: str) -> None:
    """The state is right, and an older one than the newest was taken only after a word."""
    found, expected = arrays(state), runs.states[step]
    assert found.keys() == expected.keys(), what
    wrong = [name for name in expected if found[name].tobytes() != expected[name].tobytes()]
    assert not wrong, f'{what}: step {step} has other values in {wrong[:3]}, and nobody said so'
    assert step == newest or 'is damaged' in said, f'{what}: step {step} without a word'


def survive(runs: Runs, seed: int, scratch, capsys, monkeypatch) -> str:
    rng, place = random.Random(seed), scratch / str(seed)
    shutil.copytree(runs.folder / 'own', place)
    what = f'seed {seed}: {damage(place, (runs.folder / "twin", runs.folder / "other"), rng)}'
    # Whoever looks into the folder sees this as the newest step; a link counts as what it shows.
    newest = max(
        (int(p.name) for p in (place / 'checkpoints').glob('*') if p.name.isdigit()), default=0
    )
    outcome = []
    # The program of an unchanged config is built once: only its shapes matter here.
    monkeypatch.setattr(
        opening, 'Program', lambda *a: runs.program if a[0] == runs.config else Program(*a)
    )
    capsys.readouterr()
    try:
        run = opening.open_run(str(place))
        judge(runs, run.step, run.state, capsys.readouterr().err, newest, f'{what} (evaluate)')
        changed = [
            p
            for p in config_lib.differences(
                config_lib.to_json(runs.config), config_lib.to_json(run.config)
            )
            if not config_lib.may_change(p)
        ]
        assert not changed, f'{what}: evaluated under another config, {changed}'
        outcome.append('used')
    except UserError as error:
        assert teaches(error), (what, error)
        outcome.append('refused')
    workdir = Workdir(place)
    store = Checkpoints(workdir.checkpoints, Checkpoint(keep=5))
    try:
        workdir.check_config(runs.config)
        saved = workdir.saved_step()
        workdir.status()
        if store.steps():
            step, state, extra = store.restore(runs.program.abstract)
            judge(runs, step, state, capsys.readouterr().err, newest, f'{what} (resume)')
            assert extra == {'n': step}, what
            workdir.begin(runs.config, from_step=step).end('failed', 'only a test')
            # The run goes on: what is saved from here on is there, and is found again.
            if seed % 4 == 0:
                later = state.replace(step=state.step + 1)
                assert store.save(step + 1, later, extra={'n': step + 1}) and store.wait(), what
                assert store.restore(runs.program.abstract)[0] == step + 1, what
        else:
            assert saved is not None, f'{what}: a fresh start without a word'
        outcome.append('used' if step_of(store) else 'refused')
    except UserError as error:
        assert teaches(error), (what, error)
        outcome.append('refused')
    finally:
        store.close()
    shutil.rmtree(place)
    return '/'.join(outcome)


def step_of(store: Checkpoints) -> int:
    return max(store.steps(), default=0)


Program = opening.Program


@pytest.mark.parametrize('tries', [16, pytest.param(200, marks=pytest.mark.slow)])
def test_no_damage_of_a_run_folder_is_silent(tries, runs, tmp_path, capsys, monkeypatch):
    outcomes: dict[str, int] = {}
    for seed in range(tries):
        outcome = survive(runs, seed, tmp_path, capsys, monkeypatch)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    print(outcomes)
    assert outcomes.get('refused/refused', 0) > tries // 8 and outcomes['used/used'] > tries // 4
