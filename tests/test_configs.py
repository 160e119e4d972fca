"""Every shipped config resolves to what its golden file says; those of images train two steps."""

import dataclasses
import json

import pytest

from jaxdl.core import config as config_lib
from jaxdl.core.config import Checkpoint
from jaxdl.data import prepare
from jaxdl.data.images.catalogue import IMAGE_SETS
from jaxdl.data.images.tfds import Tfds
from jaxdl.data.text.sources import TextFiles
from jaxdl.run import loop as trainer
from tests import golden
from tests.data import archives


@pytest.mark.parametrize('name', golden.names())
def test_resolved_config(name):
    kept = json.loads(golden.path(name).read_text())
    found = config_lib.differences(kept, golden.resolved(name))
    assert not found, f'{name} changed at {found}; if it was meant: python -m tests.golden'


def test_no_golden_file_is_left_over():
    assert {golden.path(name) for name in golden.names()} == set(golden.FOLDER.glob('*.json'))


@pytest.mark.parametrize('name', golden.names())
def test_every_config_is_right_in_itself_and_survives_json(name):
    config = golden.load(name)
    # What the user has to give, and what then comes from the data.
    if isinstance(source := getattr(config.data, 'source', None), TextFiles):
        source.train = 'text.txt'
    for field in ('folder', 'train'):
        if getattr(config.data, field, None) == '':
            setattr(config.data, field, 'data.csv')
    if getattr(config.task, 'num_classes', 1) == 0:
        config.model, config.task.num_classes = config.model.clone(num_classes=2), 2
    config_lib.check(config)
    again = config_lib.from_json(golden.resolved(name))
    assert config_lib.differences(golden.resolved(name), config_lib.to_json(again)) == []


@pytest.mark.parametrize('name', golden.names())
def test_every_field_has_a_meaning(name):
    missing = [
        path for path, _, _, meaning in config_lib.describe(golden.load(name)) if not meaning
    ]
    assert not missing, f'undocumented fields: {missing}'


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A data folder with small sets in the original formats, prepared by the real builders."""
    folder = tmp_path_factory.mktemp('images')
    data = folder / 'data'
    for name, write in (
        ('fashion_mnist', archives.write_idx),
        ('cifar10', archives.write_cifar10),
    ):
        arrays = archives.random_set(IMAGE_SETS[name].shape, 10, train=40, test=24)
        write(folder / name, arrays)
        prepare.prepare(name, data, folder / name)
    return data


SHRUNK = {
    'channels': (4, 8),
    'pools': 2,
    'dense': 8,
    'depth': 8,
    'widths': (4, 4, 4),
    'width': 4,
    'layers': 1,
    'heads': 2,
    'dtype': 'float32',
}
# The same parts are in the others, or train in tests of their own.
BIG = (
    *('cifar_cnn:96', 'cifar_cnn:resnet18', 'cifar_vit', 'cifar_dit', 'digits_flow', 'digits_vae'),
    *('fashion_gan', 'fashion_pgd:pgd'),
)
# Too large, or as others but for a field; their parts have tests of their own.
LEFT_OUT = (
    *('cifar_edm', 'fashion_gan:hinge', 'fashion_diffusion', 'fashion_vae', 'fashion_vae:grid'),
    *(f'fashion_pgd:{variant}' for variant in ('fgsm', 'trades', 'plain')),
)
IMAGE_CONFIGS = [
    name
    for name in golden.names()
    if isinstance(data := golden.load(name).data, Tfds)
    and data.name in IMAGE_SETS
    and name not in LEFT_OUT
    and not golden.load(name).init_from.path  # there is no such run
]


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=pytest.mark.slow) if name in BIG else name for name in IMAGE_CONFIGS],
)
def test_image_configs_train_two_steps(name, images, tmp_path):
    config = golden.load(name)
    fields = {f.name for f in config_lib.fields(config.model)}
    small = {k: v for k, v in SHRUNK.items() if k in fields}
    result = trainer.train(
        dataclasses.replace(
            config,
            model=config.model.clone(**small),
            data=dataclasses.replace(config.data, data_dir=str(images)),
            steps=2,
            batch_size=16,
            eval_batch_size=8,
            log_every=1,
            eval_every=1,
            accumulate=1,
            checkpoint=Checkpoint(every=1, best=config.checkpoint.best),
        ),
        str(tmp_path),
    )
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert result.steps == 2 and [row['step'] for row in rows] == [1, 2]
    assert all(row['eval/test/examples'] == len_of_test(config) for row in rows)
    assert {p.name for p in (tmp_path / 'checkpoints').iterdir()} == {'1', '2'}


def len_of_test(config) -> int:
    return 359 if config.data.name == 'digits' else 24
