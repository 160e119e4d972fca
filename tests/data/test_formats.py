"""The original formats: what is read is what was written; damage is named."""

import gzip
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from jaxdl.data.images import digits
from jaxdl.data.images.catalogue import IMAGE_SETS
from jaxdl.data.images.idx import read_idx
from jaxdl.data.images.originals import check_arrays
from jaxdl.errors import UserError
from tests.data import archives

MNIST, CIFAR10, CIFAR100 = (IMAGE_SETS[n] for n in ('mnist', 'cifar10', 'cifar100'))


def same(found, expected):
    for split, rows in expected.items():
        assert set(found[split]) == set(rows)
        for name, array in rows.items():
            np.testing.assert_array_equal(found[split][name], array)
            assert found[split][name].dtype == array.dtype


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, max_side=6)), st.booleans())
def test_idx_round_trip(tmp_path_factory, array, compress):
    path = tmp_path_factory.mktemp('idx') / 'file'
    data = archives.idx_bytes(array)
    path.write_bytes(gzip.compress(data) if compress else data)
    found, _ = read_idx(path)
    np.testing.assert_array_equal(found, array)


@settings(max_examples=15, deadline=None)
@given(
    train=st.integers(5, 40),
    test=st.integers(1, 9),
    seed=st.integers(0, 99),
    binary=st.booleans(),
    fine=st.booleans(),
    packed=st.booleans(),
)
def test_cifar_round_trip(tmp_path_factory, train, test, seed, binary, fine, packed):
    folder = tmp_path_factory.mktemp('cifar')
    coarse = 20 if fine else 0
    expected = archives.random_set((32, 32, 3), 100 if fine else 10, train, test, seed, coarse)
    members = archives.cifar_members(expected, binary)
    if packed:
        name = f'cifar-{100 if fine else 10}-{"binary" if binary else "python"}.tar.gz'
        archives.write_tar(folder / name, 'any-folder', members)
    else:
        for name, data in members.items():
            (folder / name).write_bytes(data)
    spec = CIFAR100 if fine else CIFAR10
    found, checks = spec.read(spec.find(folder))
    same(found, expected)
    check_arrays(spec, found)
    assert checks and not any(check.published for check in checks)


@pytest.mark.parametrize('compress', [True, False])
def test_mnist_files(tmp_path, compress):
    expected = archives.random_set((28, 28, 1), 10)
    archives.write_idx(tmp_path, expected, compress)
    found, checks = MNIST.read(MNIST.find(tmp_path))
    same(found, expected)
    assert len(checks) == 4


def test_missing_files_are_named(tmp_path):
    archives.write_idx(tmp_path, archives.random_set((28, 28, 1), 10))
    (tmp_path / 'train-labels-idx1-ubyte.gz').unlink()
    with pytest.raises(UserError, match=r'lacks train-labels-idx1-ubyte.gz\n'):
        MNIST.find(tmp_path)
    with pytest.raises(UserError, match=r'lacks cifar-10-binary.tar.gz or cifar-10-python.tar.gz'):
        CIFAR10.find(tmp_path)
    members = archives.cifar_members(archives.random_set((32, 32, 3), 10))
    (tmp_path / 'cifar-10-batches-bin').mkdir()
    for name in ('data_batch_1.bin', 'test_batch.bin'):
        (tmp_path / 'cifar-10-batches-bin' / name).write_bytes(members[name])
    with pytest.raises(UserError, match=r'bin lacks data_batch_2.bin, .*data_batch_5.bin\n'):
        CIFAR10.find(tmp_path)


def broken_gzip(data):
    return gzip.compress(data)[:-20]


@pytest.mark.parametrize(
    'damage, message',
    [
        (broken_gzip, 'damaged gzip'),
        (lambda data: b'\x1f\x8b' + bytes(30), 'damaged gzip'),
        (lambda data: b'', 'starts with nothing'),
        (lambda data: b'<htm' + data[4:], 'starts with 3c68746d'),
        (lambda data: data[:-1], 'copy or download it again'),
        (lambda data: data + b'x', 'copy or download it again'),
        (lambda data: data[:6], 'copy or download it again'),
    ],
)
def test_damaged_idx(tmp_path, damage, message):
    path = tmp_path / 'train-images-idx3-ubyte.gz'
    path.write_bytes(damage(archives.idx_bytes(np.zeros((5, 28, 28)))))
    with pytest.raises(UserError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_contents_that_do_not_fit(tmp_path):
    def read(**change):
        arrays = archives.random_set((28, 28, 1), 10)
        arrays['train'].update(change)
        archives.write_idx(tmp_path, arrays)
        found, _ = MNIST.read(MNIST.find(tmp_path))
        check_arrays(MNIST, found)

    with pytest.raises(UserError, match='60 images but 59'):
        read(label=np.zeros(59))
    with pytest.raises(UserError, match='allowed are 0 to 9'):
        read(label=np.full(60, 10))
    with pytest.raises(UserError, match=r'uint8 \[60, 27, 28, 1\]'):
        read(image=np.zeros((60, 27, 28, 1), np.uint8))
    archives.write_idx(tmp_path, archives.random_set((28, 28, 1), 10))
    (tmp_path / 'train-images-idx3-ubyte.gz').replace(tmp_path / 'train-labels-idx1-ubyte.gz')
    archives.write_idx(tmp_path / 'x', archives.random_set((28, 28, 1), 10))
    (tmp_path / 'x' / 'train-images-idx3-ubyte.gz').replace(tmp_path / 'train-images-idx3-ubyte.gz')
    with pytest.raises(UserError, match='exchanged'):
        MNIST.read(MNIST.find(tmp_path))


@pytest.mark.parametrize('cut', [0, 10, 100, 5000, -30])
def test_cut_archive(tmp_path, cut):
    archives.write_cifar10(tmp_path, archives.random_set((32, 32, 3), 10))
    path = tmp_path / 'cifar-10-binary.tar.gz'
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r'cifar-10-binary.tar.gz: (damaged|lacks)'):
        CIFAR10.read(CIFAR10.find(tmp_path))


def test_damaged_records(tmp_path):
    members = archives.cifar_members(archives.random_set((32, 32, 3), 10))
    members['data_batch_3.bin'] = members['data_batch_3.bin'][:-1]
    archives.write_tar(tmp_path / 'cifar-10-binary.tar.gz', 'x', members)
    with pytest.raises(UserError, match=r'data_batch_3.bin: .* records of 3073 bytes'):
        CIFAR10.read(CIFAR10.find(tmp_path))


class Evil:
    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


def test_a_pickle_cannot_run_code(tmp_path):
    members = archives.cifar_members(archives.random_set((32, 32, 3), 10), binary=False)
    evil = Evil()
    evil.path = str(tmp_path / 'made')
    members['data_batch_2'] = pickle.dumps({b'data': evil}, protocol=2)
    archives.write_tar(tmp_path / 'cifar-10-python.tar.gz', 'x', members)
    with pytest.raises(UserError, match=r'data_batch_2: not a CIFAR batch .*not allowed'):
        CIFAR10.read(CIFAR10.find(tmp_path))
    assert not (tmp_path / 'made').exists()


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    expected = load_digits()
    found = digits.load()
    test = np.arange(1797) % 5 == 4
    for split, rows in (('train', ~test), ('test', test)):
        image = found[split]['image']
        assert image.dtype == np.uint8 and image.shape[1:] == (8, 8, 1)
        np.testing.assert_array_equal(np.rint(image[..., 0] / (255 / 16)), expected.images[rows])
        np.testing.assert_array_equal(found[split]['label'], expected.target[rows])
    assert len(found['train']['label']) == 1438 and len(found['test']['label']) == 359
    assert found['train']['image'].max() == 255
