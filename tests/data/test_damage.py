"""Original files and prepared sets that were damaged in any way: right rows, or one teaching line."""

import gzip
import random
import shutil

import numpy as np
import pytest

from jaxdl.data import prepare
from jaxdl.data.images.catalogue import IMAGE_SETS
from jaxdl.data.images.originals import check_arrays
from jaxdl.data.images.tfds import Tfds
from jaxdl.errors import UserError
from tests.data import archives

SMALL = {'train': 10, 'test': 3}


def write(kind: str, folder) -> str:
    """Writes the files of a small set in one of the original forms; returns the set's name."""
    if kind.startswith('idx'):
        rows = archives.random_set((28, 28, 1), 10, **SMALL)
        archives.write_idx(folder, rows, compress=kind == 'idx.gz')
        return 'mnist'
    fine = '100' in kind
    rows = archives.random_set((32, 32, 3), 100 if fine else 10, **SMALL, coarse=20 if fine else 0)
    members = archives.cifar_members(rows, binary='binary' in kind)
    if kind.endswith('gz'):
        archives.write_tar(folder / kind, 'any', members)
    else:
        folder.mkdir()
        for name, data in members.items():
            (folder / name).write_bytes(data)
    return 'cifar100' if fine else 'cifar10'


KINDS = ['idx', 'idx.gz', 'cifar10 binary', 'cifar100 python']
KINDS += ['cifar-10-binary.tar.gz', 'cifar-100-python.tar.gz', 'cifar-10-python.tar.gz']


def damage(folder, rng: random.Random) -> None:
    """Does something to a file under `folder`; headers are hit as often as the rest together."""
    paths = sorted(path for path in folder.rglob('*') if path.is_file())
    path = rng.choice(paths)
    data = path.read_bytes()
    packed = data[:2] == b'\x1f\x8b' and rng.random() < 0.7
    if packed:  # what is inside, with a checksum that is right
        data = gzip.decompress(data)
    action = rng.choice(['flip', 'flip', 'flip', 'cut', 'grow', 'empty', 'garbage', 'gone', 'swap'])
    if action == 'gone':
        path.unlink()
        return
    if action == 'swap':
        other = rng.choice(paths)
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
        return
    if action == 'flip':
        changed = bytearray(data)
        place = rng.randrange(min(len(data), 16) if rng.random() < 0.5 else len(data))
        changed[place] = rng.choice([0, 255, changed[place] ^ 1 << rng.randrange(8)])
        data = bytes(changed)
    else:
        data = {
            'cut': data[: rng.randrange(len(data))],
            'grow': data + rng.randbytes(rng.choice([1, 785, 3073])),
            'empty': b'',
            'garbage': rng.randbytes(len(data)),
        }[action]
    path.write_bytes(gzip.compress(data) if packed else data)


def teaches(error: UserError) -> bool:
    return 1 <= len(str(error).splitlines()) <= 2 and 'Traceback' not in str(error)


@pytest.mark.parametrize('kind', KINDS)
def test_original_files(kind, tmp_path):
    """What is read of damaged files has the form of the set."""
    name = write(kind, tmp_path / 'good')
    spec, outcomes = IMAGE_SETS[name], {'read': 0, 'error': 0}
    for seed in range(60):
        folder = tmp_path / str(seed)
        shutil.copytree(tmp_path / 'good', folder)
        damage(folder, random.Random(f'{kind} {seed}'))
        try:
            found, checks = spec.read(spec.find(folder))
            check_arrays(spec, found)
        except UserError as error:
            assert teaches(error), f'seed {seed}: {error}'
            outcomes['error'] += 1
        else:
            assert not all(check.published for check in checks)
            outcomes['read'] += 1
        shutil.rmtree(folder)
    assert min(outcomes.values()) > 5, outcomes


def content(name: str, root) -> dict:
    data = Tfds(name, data_dir=str(root))
    sources = {'train': data.train_source(), **data.eval_sources()}
    return {split: source.in_memory() for split, source in sources.items()}


def same(found: dict, expected: dict) -> bool:
    return all(
        np.array_equal(found[split][feature], array)
        for split, rows in expected.items()
        for feature, array in rows.items()
    )


def test_what_cannot_be_prepared_leaves_nothing(tmp_path):
    """The whole of `prepare --from`: a set that can be read as it was given, or no set at all."""
    outcomes = {'prepared': 0, 'error': 0}
    for seed in range(12):
        folder, root = tmp_path / f'files{seed}', tmp_path / f'data{seed}'
        name = write('idx', folder)
        damage(folder, random.Random(f'prepare {seed}'))
        try:
            prepare.prepare(name, root, folder)
        except UserError as error:
            assert teaches(error), error
            assert not (root / name).exists()
            with pytest.raises(UserError, match='prepare mnist'):
                content(name, root)
            outcomes['error'] += 1
        else:
            spec = IMAGE_SETS[name]
            assert same(content(name, root), spec.read(spec.find(folder))[0])
            outcomes['prepared'] += 1
        assert not root.exists() or not list(root.glob('.preparing*'))
    assert min(outcomes.values()) > 0, outcomes


def test_a_damaged_index_is_made_anew_from_the_shards(tmp_path, capsys):
    """Without the original files and without the network."""
    name = write('idx', tmp_path / 'files')
    prepare.prepare(name, tmp_path, tmp_path / 'files')
    expected = content(name, tmp_path)
    for path in sorted(tmp_path.glob(f'{name}/*/jaxdl/*.json')):
        whole = path.read_bytes()
        for damaged in (b'', b'[]', whole.replace(b'crc32', b'crc33', 1), b'{' * 9999):
            path.write_bytes(damaged)
            assert same(content(name, tmp_path), expected)
            assert 'reading the records instead' in capsys.readouterr().err
            assert same(content(name, tmp_path), expected)
            assert not capsys.readouterr().err


def test_prepared_sets(tmp_path, capsys):
    """Damage after the preparation: the right rows, or an error, and `prepare --from` mends it."""
    name = write('idx', tmp_path / 'files')
    prepare.prepare(name, tmp_path / 'good', tmp_path / 'files')
    expected, outcomes = content(name, tmp_path / 'good'), {'right': 0, 'error': 0}
    for seed in range(40):
        root = tmp_path / str(seed)
        shutil.copytree(tmp_path / 'good', root)
        damage(root / name, random.Random(f'prepared {seed}'))
        try:
            assert same(content(name, root), expected), f'seed {seed}'
            outcomes['right'] += 1
        except UserError as error:
            assert teaches(error), f'seed {seed}: {error}'
            if not outcomes['error']:
                prepare.prepare(name, root, tmp_path / 'files')
                assert same(content(name, root), expected)
            outcomes['error'] += 1
        shutil.rmtree(root)
    assert outcomes['right'] > 5 and outcomes['error'], outcomes
