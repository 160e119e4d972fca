"""Tfds: the same rows from memory, from records, from TFDS's own builders and from mocked data."""

import io
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxdl.data import prepare
from jaxdl.data.images.tfds import Tfds
from jaxdl.data.records import fitted
from jaxdl.data.synthetic import SyntheticImages
from jaxdl.errors import UserError
from tests.data import archives


class JaxdlTestPhotos(tfds.core.GeneratorBasedBuilder):
    """An "official" builder: PNG files of varying size, text, and a second label."""

    VERSION = tfds.core.Version('1.2.0')

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(None, None, 3)),
                    'small': tfds.features.Image(shape=(6, 6, 1)),
                    'label': tfds.features.ClassLabel(names=['cat', 'dog']),
                    'weight': tfds.features.Scalar(np.float32),
                    'caption': tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(30, 0), 'test': self._generate_examples(8, 1)}

    def _generate_examples(self, count, seed):
        for index, example in enumerate(photos(count, seed)):
            yield (
                index,
                {
                    **example,
                    'image': png(example['image']),
                    'small': png(example['small'][..., 0]),
                },
            )


def photos(count, seed):
    generator = np.random.default_rng(seed)
    return [
        {
            'image': generator.integers(0, 256, (*generator.integers(9, 20, 2), 3), np.uint8),
            'small': generator.integers(0, 256, (6, 6, 1), np.uint8),
            'label': int(generator.integers(2)),
            'weight': np.float32(index),
            'caption': f'number {index}',
        }
        for index in range(count)
    ]


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, 'PNG')
    stream.seek(0)
    return stream


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A data folder with a prepared CIFAR-10 of 60 and 20 images, and what is in it."""
    base = tmp_path_factory.mktemp('tfds')
    arrays = archives.random_set((32, 32, 3), 10)
    archives.write_cifar10(base / 'originals', arrays)
    prepare.prepare('cifar10', base / 'data', base / 'originals')
    return base / 'data', arrays


def rows(source, ids=None):
    return source.fetch(np.arange(len(source)) if ids is None else np.asarray(ids))


def test_digits():
    data = Tfds()
    train, test = data.train_source(), data.eval_sources()['test']
    assert (len(train), len(test)) == (1438, 359)
    batch = rows(train, [5, 5, 0])
    assert batch['image'].shape == (3, 8, 8, 1) and batch['image'].dtype == np.uint8
    assert batch['label'].shape == (3,) and batch['label'].dtype == np.int32
    np.testing.assert_array_equal(batch['image'][0], train.in_memory()['image'][5])
    assert train.nbytes == 1438 * (64 + 4)
    assert data.class_names() == tuple('0123456789')
    batch['image'][:] = 0  # a copy
    assert rows(train, [5])['image'].any()
    with pytest.raises(ValueError, match='read-only'):
        train.in_memory()['image'][0] = 0


@pytest.mark.parametrize('expression', ['train', 'train[:90%]', 'test[-3:]+train[10:20]', 'all'])
def test_memory_equals_records(folder, expression):
    root, _ = folder
    memory = Tfds('cifar10', expression, data_dir=str(root)).train_source()
    records = Tfds('cifar10', expression, data_dir=str(root), in_memory_bytes=0).train_source()
    assert memory.in_memory() is not None and records.in_memory() is None
    assert len(memory) == len(records) and memory.nbytes == records.nbytes
    ids = np.random.default_rng(0).permutation(len(memory))
    for name, array in rows(memory, ids).items():
        np.testing.assert_array_equal(array, rows(records, ids)[name])
        assert array.dtype == rows(records, ids)[name].dtype


def test_splits_and_names_of_evaluation_sets(folder):
    root, arrays = folder
    data = Tfds(
        'cifar10',
        'train[:50]',
        evals=('valid=train[50:]', 'test'),
        data_dir=str(root),
        features=('label',),
    )
    data.check()
    sources = data.eval_sources()
    assert list(sources) == ['valid', 'test']
    np.testing.assert_array_equal(rows(sources['valid'])['label'], arrays['train']['label'][50:])
    assert list(rows(data.train_source())) == ['label']


def test_damaged_record_is_named(folder, tmp_path):
    root = tmp_path / 'data'
    shutil.copytree(folder[0], root)
    shard = next(root.glob('cifar10/1.0.0/*train.array_record*'))
    data = bytearray(shard.read_bytes())
    data[70_000] ^= 255  # same size: only reading it shows the damage
    shard.write_bytes(data)
    source = Tfds('cifar10', data_dir=str(root), in_memory_bytes=0).train_source()
    with pytest.raises(UserError, match='cannot be read') as caught:
        rows(source)
    assert str(shard) in str(caught.value)


def test_a_reader_that_raises_becomes_a_clear_error(folder):
    source = Tfds('cifar10', data_dir=str(folder[0]), in_memory_bytes=0).train_source()

    class Failing:
        def __init__(self, inner):
            self.inner, self.dataset_info, self.split = inner, inner.dataset_info, inner.split

        def __len__(self):
            return len(self.inner)

        def __getitem__(self, row):
            if row == 7:
                raise OSError('disk on fire')
            return self.inner[row]

        def __getitems__(self, ids):
            return [self[row] for row in ids]

    source._records = Failing(source._records)
    rows(source, [1, 2])
    with pytest.raises(UserError, match=r'example 7 in .*train.array_record.*: disk on fire'):
        rows(source, np.arange(12))  # several in a piece, of which only one is broken


# TFDS's own builders


def photo_data(root, **fields):
    return Tfds('jaxdl_test_photos', data_dir=str(root), **fields)


def test_official_builder(tmp_path):
    data = photo_data(tmp_path, image_size=8)
    source = data.train_source()  # prepares it
    assert data.class_names() == ('cat', 'dog')
    found = source.in_memory()
    assert {n: (a.shape, a.dtype.name) for n, a in found.items()} == {
        'image': ((30, 8, 8, 3), 'uint8'),
        'small': ((30, 6, 6, 1), 'uint8'),
        'label': ((30,), 'int32'),
        'weight': ((30,), 'float32'),
    }
    expected = photos(30, 0)
    order = found['weight'].astype(int)  # TFDS shuffles when it writes
    assert sorted(order) == list(range(30))
    for place, index in enumerate(order):
        np.testing.assert_array_equal(found['small'][place], expected[index]['small'])
        np.testing.assert_array_equal(
            found['image'][place],
            fitted(Image.fromarray(expected[index]['image']), (8, 8, 3)),
        )
    # The second time it comes from the stored arrays, and is the same; from the records too.
    place = tmp_path / 'jaxdl_test_photos/1.2.0'
    assert (place / 'jaxdl' / 'train-pictures-8px.image.npy').exists()
    for again in (data, photo_data(tmp_path, image_size=8, in_memory_bytes=0)):
        for name, array in rows(again.train_source()).items():
            np.testing.assert_array_equal(array, found[name])
    assert len(photo_data(tmp_path, image_size=8, train='train[:20%]').train_source()) == 6
    # Other sizes do not meet the arrays of this one.
    assert rows(photo_data(tmp_path, image_size=5).train_source())['image'].shape == (30, 5, 5, 3)
    shard = next(place.glob('*train.array_record*'))
    whole = shard.read_bytes()
    shutil.copy(next(place.glob('*test.array_record*')), shard)  # whole, and of another count
    with pytest.raises(UserError, match='has 8 records, not 30'):
        data.train_source()
    shard.write_bytes(whole[:-70_000])
    with pytest.raises(UserError) as caught:
        data.train_source()
    assert str(shard) in str(caught.value)


@pytest.mark.parametrize(
    'fields, message',
    [
        ({}, "'image' varies in size .*--config.data.image_size=224"),
        ({'features': ('small',), 'image_size': 8}, 'leave it at 0'),
        ({'features': ('smal',)}, "no feature 'smal'.*did you mean 'small'"),
        ({'features': ('caption',)}, "'caption' is text"),
        ({'features': ('small',), 'train': 'valid'}, "no split 'valid', it has test, train"),
        ({'version': '9.9.9'}, '9.9.9'),
    ],
)
def test_official_builder_mistakes(tmp_path_factory, fields, message):
    root = tmp_path_factory.getbasetemp() / 'photos'
    with pytest.raises(UserError, match=message):
        photo_data(root, **fields).train_source()


class JaxdlTestNeedsTensorflow(JaxdlTestPhotos):
    def _generate_examples(self, count, seed):
        import tensorflow

        yield 0, tensorflow.zeros(1)


def test_tensorflow_is_asked_for_in_one_line(tmp_path):
    with pytest.raises(UserError, match='pip install tensorflow') as caught:
        Tfds('jaxdl_test_needs_tensorflow', data_dir=str(tmp_path), image_size=8).train_source()
    assert 'python -m jaxdl prepare jaxdl_test_needs_tensorflow' in str(caught.value)
    assert '\n' not in str(caught.value)
    assert not list(tmp_path.glob('jaxdl*')) and not list(tmp_path.glob('.preparing*'))


def test_mocked_official_set(tmp_path):
    with tfds.testing.mock_data(num_examples=7):
        for limit in (0, 2**30):
            data = Tfds('svhn_cropped', data_dir=str(tmp_path), in_memory_bytes=limit)
            source = data.train_source()
            batch = rows(source, [6, 0, 0])
            assert len(source) == 7 and batch['image'].shape == (3, 32, 32, 3)
            assert batch['label'].dtype == np.int32
            np.testing.assert_array_equal(batch['image'][1], batch['image'][2])
            assert (source.in_memory() is None) == (limit == 0)
        assert set(data.eval_sources()) == {'test'}
        photos = Tfds('imagenet2012', data_dir=str(tmp_path), image_size=16, evals=('validation',))
        assert rows(photos.eval_sources()['validation'])['image'].shape == (7, 16, 16, 3)


def test_unknown_names(tmp_path):
    for name, message in (
        ('fashion_mnits', "did you mean 'fashion_mnist'"),
        ('imagenet2013', "did you mean 'imagenet2012'"),
        ('emnist/leters', 'TFDS knows the name but not the rest'),
    ):
        with pytest.raises(UserError, match=message):
            Tfds(name, data_dir=str(tmp_path)).train_source()


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'name': ''}, 'give a data set'),
        ({'image_size': -1}, 'image_size=-1'),
        ({'in_memory_bytes': -1}, 'at least 0'),
        ({'evals': ('a=test', 'a=train')}, 'the same name'),
    ],
)
def test_check(fields, message):
    with pytest.raises(ValueError, match=message):
        Tfds(**fields).check()


def test_unused_fields_are_errors(folder):
    with pytest.raises(UserError, match='those of cifar10 are 32x32'):
        Tfds('cifar10', data_dir=str(folder[0]), image_size=8).train_source()
    with pytest.raises(UserError, match=r"no feature 'lable'.*did you mean 'label'"):
        Tfds('cifar10', data_dir=str(folder[0]), features=('lable',)).train_source()


def test_pictures_are_scaled_and_cut_to_the_middle():
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, 5:15] = 200  # the middle square
    assert (fitted(Image.fromarray(image), (5, 5, 3)) == 200).all()
    assert (fitted(Image.fromarray(image.transpose(1, 0, 2)), (5, 5, 3)) == 200).all()
    assert fitted(Image.fromarray(image[..., 0]), (5, 5, 1)).shape == (5, 5, 1)


@pytest.mark.parametrize('name', ['digits', 'cifar10'])
def test_start_imports_neither_jax_nor_tfds(folder, name):
    code = f"""
import sys
from jaxdl.data.images.tfds import Tfds
data = Tfds({name!r})
assert len(data.train_source()) > len(data.eval_sources()['test'])
heavy = {{'jax', 'sklearn', 'tensorflow_datasets', 'tensorflow', 'grain'}} & set(sys.modules)
assert not heavy, heavy
"""
    environment = {**os.environ, 'JAXDL_DATA': str(folder[0])}
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, '-c', code], env=environment, cwd=root, check=True, timeout=60)


# Synthetic images


def test_synthetic_images():
    data = SyntheticImages(num_examples=200, shape=(8, 8, 3), num_classes=4, num_eval_examples=80)
    data.check()
    train, test = data.train_source(), data.eval_sources()['test']
    assert (len(train), len(test)) == (200, 80)
    again = SyntheticImages(200, (8, 8, 3), 4, num_eval_examples=80).train_source()
    for name, array in rows(train).items():
        np.testing.assert_array_equal(array, rows(again)[name])
    twin = SyntheticImages(200, (8, 8, 3), 4, num_eval_examples=200).eval_sources()['test']
    assert not np.array_equal(rows(twin)['label'], rows(train)['label']), 'other examples'
    # The nearest class mean of the training set is right on the other one: there is something to learn.
    image, label = (rows(train)[n] for n in ('image', 'label'))
    assert np.bincount(label).tolist() == [50] * 4
    means = np.stack([image[label == c].mean(0) for c in range(4)])
    held_out = rows(test)
    distance = ((held_out['image'][:, None] - means) ** 2).sum((2, 3, 4))
    assert (distance.argmin(1) == held_out['label']).mean() > 0.95
    with pytest.raises(ValueError, match='shape'):
        SyntheticImages(shape=(8, 8)).check()
