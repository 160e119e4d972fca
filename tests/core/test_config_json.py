"""config.json: what is written comes back; what is imported is what the user trusts."""

import dataclasses
import json
import sys

import flax.linen as nn
import jax
import pytest

from jaxdl.core import config as config_lib
from jaxdl.core import flags as cli
from jaxdl.errors import UserError
from tests import small

NET = """
import dataclasses
import flax.linen as nn
from jaxdl.api import DataSet
from tests import small
{note}

class Net(nn.Module):
    width: int = 4
    act: object = nn.relu

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(len(images), -1) / 255
        return nn.Dense(10)(self.act(nn.Dense(self.width)(x)))


def get_config(variant=''):
    return small.config(model=Net(width=int(variant or 4)), ema=0.0)
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / 'elsewhere' / 'mine.py'
    path.parent.mkdir()
    path.write_text(NET.format(note=''))
    return path


def test_only_trusted_modules_are_imported(tmp_path, monkeypatch):
    """A module beside the folder is importable, and is not imported; nor is one of Python's own."""
    (tmp_path / 'payload.py').write_text(
        'import dataclasses\nopen("ran", "w")\n@dataclasses.dataclass\nclass Cnn: pass\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ('payload:Cnn', 'os:system', 'jaxdlx:Cnn', 'tests.small:config', ':', 'x'):
        tree = config_lib.to_json(small.config())
        tree['model']['type'] = name
        with pytest.raises(UserError, match='--config=FILE') as caught:
            config_lib.from_json(tree)
        assert name in str(caught.value)
    assert 'payload' not in sys.modules and not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'name',
    [
        'jaxdl.core.config:importlib.import_module',  # reached through a trusted module
        'jaxdl.files:os.system',
        'jaxdl.core.config:dataclasses.field',
        'jaxdl.core.config:nowhere',
        'jaxdl.nowhere:Cnn',
    ],
)
def test_a_trusted_module_gives_only_what_it_defines(name):
    with pytest.raises(UserError, match='cannot be imported'):
        config_lib.from_json({'type': 'function', 'name': name})


def test_functions_of_jax_come_back():
    tree = json.loads(json.dumps(config_lib.to_json({'act': nn.gelu, 'other': jax.nn.silu})))
    assert config_lib.from_json(tree) == {'act': nn.gelu, 'other': jax.nn.silu}


def test_what_could_not_be_found_again_is_refused_at_once():
    with pytest.raises(UserError, match='top level of a module'):
        config_lib.to_json({'act': lambda x: x})

    @dataclasses.dataclass
    class Local:
        x: int = 0

    with pytest.raises(UserError, match='top level of a module'):
        config_lib.to_json(Local())


def test_classes_of_the_config_file_that_the_user_names(config_file):
    config = cli.load_config(f'{config_file}:7')
    tree = json.loads(json.dumps(config_lib.to_json(config)))
    with pytest.raises(UserError, match=r'names configs\.mine:Net.*\n.*--config=FILE'):
        config_lib.from_json(tree)
    copy = config_file.with_name('config.py')
    copy.write_bytes(config_file.read_bytes())
    for path in (config_file, copy):
        again = config_lib.from_json(tree, cli.load_config(str(path)))
        assert again.model.width == 7 and again.model.act is nn.relu
        assert config_lib.differences(tree['model']['act'], config_lib.to_json(nn.relu)) == []


def test_defaults_of_newer_fields_without_an_import():
    """The same as building the old tree would give, whatever of its fields are gone."""
    config = small.config()
    tree = json.loads(json.dumps(config_lib.to_json(config)))
    for path in ('accumulate', 'model.momentum', 'checkpoint.keep', 'optimizer.schedule'):
        *parents, name = path.split('.')
        node = tree
        for parent in parents:
            node = node[parent]
        del node[name]
    built = config_lib.to_json(config_lib.from_json(tree))
    assert config_lib.with_defaults(tree, config) == json.loads(json.dumps(built))
    foreign = {**tree, 'type': 'somewhere:Config'}
    assert config_lib.with_defaults(foreign, config) == foreign
