"""Labels and token ids outside what the task allows end a run, wherever the data set lives."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
import pytest

from jaxdl.api import DataSet, Source
from jaxdl.core.ranges import check_ranges
from jaxdl.data.arrays import ArraySource
from jaxdl.errors import Diverged, UserError
from jaxdl.models.rnn import RnnClassifier, RnnLM
from jaxdl.run import loop
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.language_model import LanguageModel
from jaxdl.tasks.sequence_classification import SequenceClassification
from tests import small


class Streamed(ArraySource):
    def in_memory(self):
        return None


@dataclasses.dataclass
class Rows(DataSet):
    """Arrays of one's own, which a config cannot hold; the evaluation set may hold other ones."""

    train: ClassVar[Source]
    test: ClassVar[Source]

    def train_source(self) -> Source:
        return self.train

    def eval_sources(self) -> dict[str, Source]:
        return {'test': self.test}


def data_of(arrays, *, test=None, source=ArraySource) -> Rows:
    Rows.train, Rows.test = source(arrays), source(arrays if test is None else test)
    return Rows()


def digits(label, count=64):
    label = np.asarray(label)
    return {'image': np.zeros((count, 8, 8, 1), np.uint8), 'label': np.resize(label, count)}


def config(data, **changes):
    values = dict(steps=2, batch_size=16, log_every=1, eval_every=0, ema=0.0, placement='host')
    return small.config(data=data, **{**values, **changes})


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    from jaxdl.core import mesh as mesh_lib

    make_mesh = mesh_lib.make_mesh
    monkeypatch.setattr(mesh_lib, 'make_mesh', lambda sizes: make_mesh(sizes, jax.devices()[:1]))


@pytest.mark.parametrize(
    ('source', 'changes'),
    [
        (ArraySource, {'placement': 'device'}),
        (ArraySource, {'placement': 'host'}),
        (ArraySource, {'placement': 'stream'}),
        (Streamed, {'placement': 'auto'}),
        (Streamed, {'placement': 'auto', 'workers': 1}),
    ],
)
@pytest.mark.parametrize('wrong', [-1, 10])
def test_a_label_outside_the_classes_ends_a_run(source, changes, wrong, tmp_path):
    arrays = digits(np.arange(10))
    arrays['label'][37] = wrong
    data = data_of(arrays, test=digits(np.arange(10)), source=source)
    with pytest.raises(
        UserError, match=rf"label {wrong} of example 37 in the set 'train': allowed"
    ):
        loop.train(config(data, steps=8, **changes), str(tmp_path / 'run'))


@pytest.mark.parametrize('placement', ['device', 'host', 'stream'])
def test_evaluation_sets_are_checked_too(placement, tmp_path):
    data = data_of(digits(np.arange(10)), test=digits([3, 4, -100]))
    with pytest.raises(UserError, match="label -100 of example 2 in the set 'test': allowed"):
        loop.train(config(data, placement=placement), str(tmp_path / 'run'))


@pytest.mark.parametrize('dtype', [np.uint8, np.int64, np.uint32, np.int16])
def test_integers_of_every_kind_are_labels(dtype, tmp_path):
    data = data_of(digits(np.arange(10, dtype=dtype)))
    loop.train(config(data), str(tmp_path / 'run'))


@pytest.mark.parametrize('dtype', [np.float32, bool, np.float64])
def test_labels_that_are_no_integers_are_named(dtype, tmp_path):
    data = data_of(digits(np.arange(10).astype(dtype)))
    with pytest.raises(
        UserError, match=f"'label' of the set 'train' is {np.dtype(dtype)}, it must"
    ):
        loop.train(config(data), str(tmp_path / 'run'))


def test_labels_of_another_shape_are_named(tmp_path):
    arrays = digits(np.arange(10))
    arrays['label'] = np.eye(10, dtype=np.int32)[arrays['label']]
    with pytest.raises(UserError, match=r'labels are \[16, 10\].* must be \[16\]'):
        loop.train(config(data_of(arrays)), str(tmp_path / 'run'))


@dataclasses.dataclass
class Relabelled(Classification):
    """An augmentation that makes labels only the device sees."""

    def augment(self, batch, rng):
        return {**super().augment(batch, rng), 'label': batch['label'] - 1}


def test_a_label_that_only_the_device_sees_is_no_finite_loss(tmp_path):
    run = config(data_of(digits(np.arange(10))), task=Relabelled())
    with pytest.raises(Diverged, match='loss'):
        loop.train(run, str(tmp_path / 'run'))


def text(tokens):
    tokens = np.resize(np.asarray(tokens, np.int32), (32, 6))
    ones = np.ones_like(tokens)
    return {
        'tokens': tokens, 'targets': tokens, 'segments': ones, 'positions': np.cumsum(ones, 1) - 1,
        'target_mask': ones > 0, 'lengths': np.full(32, 6, np.int32),
        'label': (np.arange(32) % 2).astype(np.int32),
    }  # fmt: skip


@pytest.mark.parametrize('name', ['tokens', 'targets', 'label'])
def test_token_ids_and_labels_of_texts(name, tmp_path):
    arrays = text(np.arange(9))
    arrays[name] = arrays[name].copy()
    arrays[name].flat[17] = 9
    example = 17 if name == 'label' else 2
    model, task = RnnLM(vocab=9, width=8, layers=1), LanguageModel()
    if name == 'label':
        model = RnnClassifier(vocab=9, embed_width=4, width=4, num_classes=2)
        task = SequenceClassification()
    run = config(data_of(arrays, test=text(np.arange(9)), source=Streamed), model=model, task=task)
    run.placement, run.steps = 'stream', 4
    with pytest.raises(UserError, match=f"{name} 9 of example {example} in the set 'train'"):
        loop.train(run, str(tmp_path / 'run'))


def test_what_check_ranges_lets_through_is_what_it_says():
    rng = np.random.default_rng(0)
    for _ in range(300):
        dtype = rng.choice([np.int8, np.uint8, np.int32, np.int64, np.uint64])
        info = np.iinfo(dtype)
        shape = tuple(rng.integers(0, 4, rng.integers(1, 4)))
        values = rng.integers(max(-3, info.min), 12, shape).astype(dtype)
        bound, ids = int(rng.integers(1, 14)), rng.permutation(1000)[: shape[0]]
        wrong = [
            i for i, row in zip(ids, values, strict=True) if ((row < 0) | (row >= bound)).any()
        ]
        if not wrong:
            check_ranges({'x': values}, ids, {'x': bound, 'absent': 1}, 'some')
            continue
        with pytest.raises(UserError, match=f"of example {wrong[0]} in the set 'some': allowed"):
            check_ranges({'x': values}, ids, {'x': bound}, 'some')
