"""The original formats: what is read is what was written; damage is named."""

import codecs
import gzip
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from jaxdl.data.images import digits, idx, originals
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
    for path in list(tmp_path.iterdir()):  # as some mirrors name them
        path.rename(tmp_path / path.name.replace('-idx', '.idx'))
    same(MNIST.read(MNIST.find(tmp_path))[0], expected)


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
        (lambda data: b'\0\0\x08\x04' + 4 * b'\0\1\0\0', r'\[65536, .*download it again'),
        (lambda data: b'\0\0\x08\x04' + 16 * b'\xff', r'\[4294967295, .*download it again'),
        (lambda data: b'\0\0\x08\x04' + bytes(4) + 12 * b'\xff', r'\[0, 42.*download it again'),
        (lambda data: gzip.compress(data + bytes(9999)), 'more than 9,999 bytes'),
    ],
)
def test_damaged_idx(tmp_path, monkeypatch, damage, message):
    monkeypatch.setattr(originals, 'LARGEST', 9999)
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

    with pytest.raises(UserError, match=r'60 images but \[59\]'):
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


def test_files_of_another_set_are_recognised(tmp_path, monkeypatch):
    """Fashion-MNIST's files have the names of MNIST's; only what is in them tells."""
    published = [md5 for md5, file in idx.PUBLISHED.items() if file.startswith('fashion_mnist: ')]
    assert len(published) == 4 and len(idx.PUBLISHED) == 8
    archives.write_idx(tmp_path, archives.random_set((28, 28, 1), 10))
    labels = tmp_path / 't10k-labels-idx1-ubyte.gz'
    for file in ('fashion_mnist: t10k-labels-idx1-ubyte', 'mnist: train-labels-idx1-ubyte'):
        monkeypatch.setitem(idx.PUBLISHED, read_idx(labels)[1], file)
        with pytest.raises(UserError, match=f'{labels}: this is {file}, not mnist: t10k-labels'):
            MNIST.read(MNIST.find(tmp_path))
    monkeypatch.setitem(idx.PUBLISHED, read_idx(labels)[1], 'mnist: t10k-labels-idx1-ubyte')
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


def encoded_by(codec):
    class Encoded:
        def __reduce__(self):
            return codecs.encode, ('text', codec)

    return Encoded()


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        ([1.7] * 12, r'labels are float64 \[12\], must be integers \[12\]'),
        ([[1]] * 12, r'labels are int64 \[12, 1\]'),
        ([1] * 11, r'labels are int64 \[11\]'),
        ([True] * 12, 'labels are bool'),
        (['1'] * 12, 'labels are <U1'),
        ([2**32 + 1] * 12, "'label' of train reaches from"),
        ([-1] * 12, "'label' of train reaches from -1"),
        (encoded_by('zlib_codec'), r'labels are \|?[SO]'),
    ],
)
def test_labels_of_a_pickle(tmp_path, labels, message):
    members = archives.cifar_members(archives.random_set((32, 32, 3), 10), binary=False)
    batch = {b'data': np.zeros((12, 3072), np.uint8), b'labels': labels}
    members['data_batch_2'] = pickle.dumps(batch, protocol=2)
    archives.write_tar(tmp_path / 'cifar-10-python.tar.gz', 'x', members)
    with pytest.raises(UserError, match=message):
        found, _ = CIFAR10.read(CIFAR10.find(tmp_path))
        check_arrays(CIFAR10, found)


def test_a_member_that_claims_any_size_is_not_unpacked(tmp_path):
    with tarfile.open(tmp_path / 'cifar-10-binary.tar.gz', 'w:gz') as tar:
        entry = tarfile.TarInfo('x/data_batch_1.bin')
        entry.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(entry)
    with pytest.raises(UserError, match=r'(damaged|lacks) .*'):
        CIFAR10.read(CIFAR10.find(tmp_path))


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
