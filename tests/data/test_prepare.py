"""Preparation: what ends well can be read, what does not leaves nothing, and the command says why."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from jaxdl.data import prepare, store
from jaxdl.data.images.catalogue import IMAGE_SETS
from jaxdl.data.images.originals import Download
from jaxdl.data.images.tfds import Tfds
from jaxdl.errors import UserError
from tests.data import archives

CIFAR10, MNIST = IMAGE_SETS['cifar10'], IMAGE_SETS['mnist']
FOLDER = 'cifar10/1.0.0'


@pytest.fixture
def originals(tmp_path):
    """A folder with a small CIFAR-10 archive, and what is in it."""
    arrays = archives.random_set((32, 32, 3), 10)
    archives.write_cifar10(tmp_path / 'originals', arrays)
    return tmp_path / 'originals', arrays


def check_content(root, arrays, name='cifar10'):
    data = Tfds(name, data_dir=str(root))
    for split, source in {'train': data.train_source(), **data.eval_sources()}.items():
        for feature, rows in source.in_memory().items():
            np.testing.assert_array_equal(rows, arrays[split][feature])


def leftovers(root):
    return [path for path in root.iterdir() if path.name.startswith('.preparing')]


def command(*arguments, root, **environment):
    """Runs the command; returns (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, '-m', 'jaxdl', 'prepare', *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, 'JAXDL_DATA': str(root), **environment},
    )
    return done.returncode, done.stdout, done.stderr


def test_tfds_reads_what_was_prepared(originals, tmp_path):
    import tensorflow_datasets as tfds

    folder, arrays = originals
    summary = prepare.prepare('cifar10', tmp_path / 'data', folder)
    assert '60 train + 20 test (published: 50,000 train + 10,000 test)' in summary
    assert '0 of 1 files as published, not cifar-10-binary.tar.gz' in summary
    builder = tfds.builder_from_directory(tmp_path / 'data' / FOLDER)
    assert builder.info.features['label'].names == list(CIFAR10.classes['label'])
    for split, rows in arrays.items():
        found = list(builder.as_data_source(split))
        for feature, array in rows.items():
            np.testing.assert_array_equal([row[feature] for row in found], array)
    assert 'tensorflow' not in sys.modules
    check_content(tmp_path / 'data', arrays)


def test_a_second_call_checks_and_repairs(originals, tmp_path):
    folder, _ = originals
    root = tmp_path / 'data'
    prepare.prepare('cifar10', root, folder)
    assert 'prepared before' in prepare.prepare('cifar10', root)
    array = root / FOLDER / 'jaxdl' / 'train.image.npy'
    array.write_bytes(array.read_bytes()[:-1] + b'\0')
    other = archives.random_set((32, 32, 3), 10, seed=1)
    archives.write_cifar10(folder, other)
    prepare.prepare('cifar10', root, folder)  # --from replaces what is there
    check_content(root, other)
    assert not leftovers(root)


def test_digits_builder_equals_the_embedded_set(tmp_path):
    import tensorflow_datasets as tfds

    prepare.prepare('digits', tmp_path)
    source = tfds.builder_from_directory(tmp_path / 'digits/1.0.0').as_data_source('test')
    rows = Tfds('digits').eval_sources()['test'].in_memory()
    np.testing.assert_array_equal([row['image'] for row in source], rows['image'])
    np.testing.assert_array_equal([row['label'] for row in source], rows['label'])


KILLED = """
import os, pathlib, signal, sys
from jaxdl.data import cached, prepare, store

where, folder, root = sys.argv[1:]
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
if where == 'examples':
    from jaxdl.data.images.builders import ImageBuilder
    def generate(self, rows):
        yield 0, {'image': rows['image'][0], 'label': 0}
        die()
    ImageBuilder._generate_examples = generate
elif where == 'arrays':
    kept = cached._checksum
    cached._checksum = lambda array: die() if len(array) == 20 else kept(array)
elif where == 'publish':
    store.publish = die
else:
    kept = pathlib.Path.rename
    def rename(path, target):
        kept(path, target)
        if str(target).endswith('.old'):
            die()
    pathlib.Path.rename = rename
prepare.prepare('cifar10', pathlib.Path(root), pathlib.Path(folder))
"""


@pytest.mark.parametrize('where', ['examples', 'arrays', 'publish', 'replace'])
def test_a_killed_preparation_leaves_nothing(originals, tmp_path, where):
    folder, arrays = originals
    root = tmp_path / 'data'
    if where == 'replace':  # killed between moving the old folder away and the new one in
        prepare.prepare('cifar10', root, folder)
    done = subprocess.run(
        [sys.executable, '-c', KILLED, where, str(folder), str(root)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert leftovers(root) and not (root / FOLDER).exists()
    prepare.prepare('cifar10', root, folder)
    check_content(root, arrays)
    assert not leftovers(root)


def test_two_at_once(originals, tmp_path):
    folder, arrays = originals
    root = tmp_path / 'data'
    words = [sys.executable, '-m', 'jaxdl', 'prepare', 'cifar10', f'--from={folder}']
    environment = {**os.environ, 'JAXDL_DATA': str(root)}
    started = [
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    check_content(root, arrays)
    assert not leftovers(root)


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda path: path.unlink(), 'is missing'),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), 'bytes'),
    ],
)
def test_a_changed_shard_is_named(originals, tmp_path, damage, message):
    folder, _ = originals
    root = tmp_path / 'data'
    prepare.prepare('cifar10', root, folder)
    shard = next((root / FOLDER).glob('*train.array_record*'))
    damage(shard)
    with pytest.raises(UserError, match=message) as caught:
        Tfds('cifar10', data_dir=str(root)).train_source()
    assert str(shard) in str(caught.value)
    assert f'python -m jaxdl prepare cifar10 --data_dir={root}' in str(caught.value)


def test_damaged_arrays_are_read_from_the_records(originals, tmp_path, capsys):
    folder, arrays = originals
    prepare.prepare('cifar10', tmp_path, folder)
    path = tmp_path / FOLDER / 'jaxdl' / 'train.image.npy'
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    check_content(tmp_path, arrays)
    assert 'train.image.npy: its bytes changed' in capsys.readouterr().err
    check_content(tmp_path, arrays)
    assert not capsys.readouterr().err  # the arrays were stored anew


# Downloads, from a server on this machine


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / 'server'
    arrays = archives.random_set((28, 28, 1), 10)
    archives.write_idx(folder, arrays)

    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    downloads = tuple(
        Download(
            f'http://127.0.0.1:{httpd.server_port}/{path.name}',
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.iterdir())
    )
    yield folder, arrays, dataclasses.replace(MNIST, downloads=downloads), requests
    httpd.shutdown()
    httpd.server_close()


def test_download(server, tmp_path):
    _, arrays, spec, _ = server
    root = tmp_path / 'data'
    assert '60 train' in prepare.prepare_image_set(spec, root)
    check_content(root, arrays, 'mnist')


def test_a_download_is_kept_and_checked_again(server, tmp_path):
    _, arrays, spec, requests = server
    root = tmp_path / 'data'
    prepare.prepare_image_set(spec, root)
    kept = sorted((root / 'downloads' / 'mnist').glob('*.gz'))
    assert len(kept) == 4
    next((root / 'mnist/1.0.0').glob('*train.array_record*')).unlink()
    kept[0].write_bytes(kept[0].read_bytes()[:50])  # only this one is downloaded again
    prepare.prepare_image_set(spec, root)
    assert len(requests) == 5
    check_content(root, arrays, 'mnist')


def test_a_wrong_checksum_is_refused(server, tmp_path):
    folder, _, spec, _ = server
    root = tmp_path / 'data'
    path = folder / 't10k-labels-idx1-ubyte.gz'
    good = path.read_bytes()
    path.write_bytes(gzip.compress(archives.idx_bytes(np.zeros(20))))
    with pytest.raises(UserError, match='wrong checksum') as caught:
        prepare.prepare_image_set(spec, root)
    assert 'python -m jaxdl prepare mnist' in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
    assert not (root / 'mnist').exists() and not leftovers(root)
    path.write_bytes(good)
    prepare.prepare_image_set(spec, root)


def test_no_network(tmp_path):
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{taken.getsockname()[1]}/'
        downloads = tuple(dataclasses.replace(d, url=url + d.filename) for d in MNIST.downloads)
        spec = dataclasses.replace(MNIST, downloads=downloads)
        with pytest.raises(UserError, match='cannot be reached') as caught:
            prepare.prepare_image_set(spec, tmp_path)
    expected = f'python -m jaxdl prepare mnist --data_dir={tmp_path} --from=DIR'
    assert expected in str(caught.value)
    assert not leftovers(tmp_path)


def test_the_data_folder_cannot_be_written(tmp_path, originals):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='--data_dir'):
        prepare.prepare('cifar10', tmp_path / 'file' / 'data', originals[0])


# The command


def test_command(originals, tmp_path):
    folder, arrays = originals
    code, out, errors = command('cifar10', f'--from={folder}', root=tmp_path / 'a')
    assert (code, errors) == (0, '')
    assert out.startswith('cifar10 1.0.0: 60 train + 20 test') and out.count('\n') == 1
    code, out, _ = command(
        f'--data_dir={tmp_path / "b"}', 'cifar10', '--from', str(folder), root='/x'
    )
    assert code == 0
    check_content(tmp_path / 'b', arrays)
    code, out, _ = command('--help', root=tmp_path)
    assert code == 0 and '--from' in out and 'fashion_mnist' in out


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['fashion-mnist'], "did you mean 'fashion_mnist'"),
        (['MNIST'], "did you mean 'mnist'"),
        (['cifar 10'], "did you mean 'cifar10'"),
        (['../mnits'], 'no such data set'),
        (['x' * 5000], 'x … x'),
        (['fashion_mnits'], "did you mean 'fashion_mnist'?"),
        (['mnist', '--form=x'], 'no such flag'),
        (['mnist', '--from=/does/not/exist'], 'is no folder'),
        (
            ['mnist', '--from={empty}'],
            'lacks train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz',
        ),
        (['cifar100', '--from={empty}'], 'cifar-100-binary.tar.gz'),
        (['digits', '--from={empty}'], 'leave --from out'),
        (['mnist', '--from={broken}'], 'damaged gzip'),
        (['mnist', '--from={wrong}'], 'not an idx file'),
    ],
)
def test_mistakes_end_with_2(tmp_path, arguments, message):
    places = {name: tmp_path / name for name in ('empty', 'broken', 'wrong')}
    for name, place in places.items():
        place.mkdir()
        if name != 'empty':
            archives.write_idx(place, archives.random_set((28, 28, 1), 10))
    path = places['broken'] / 't10k-images-idx3-ubyte.gz'
    path.write_bytes(path.read_bytes()[:-9])
    (places['wrong'] / 'train-labels-idx1-ubyte.gz').write_bytes(b'<html>not found</html>')
    root = tmp_path / 'data'
    code, out, errors = command(*(word.format(**places) for word in arguments), root=root)
    assert code == 2 and not out
    assert (
        errors.startswith('error: ')
        and message in errors
        and 'Traceback' not in errors
        and 1 <= errors.count('\n') <= 2
    )
    if root.exists():
        assert not leftovers(root) and not (root / 'mnist').exists()


def test_the_data_folder(monkeypatch):
    monkeypatch.delenv('JAXDL_DATA', raising=False)
    assert store.data_dir() == pathlib.Path.home() / '.cache' / 'jaxdl' / 'data'
    monkeypatch.setenv('JAXDL_DATA', '/tmp/x')
    assert store.data_dir() == pathlib.Path('/tmp/x')
    assert store.data_dir('/y') == pathlib.Path('/y')
    assert store.prepare_command('mnist', pathlib.Path('/tmp/x')) == (
        'python -m jaxdl prepare mnist'
    )
