"""Exported models are loaded back by another program and give the same predictions."""

import importlib.util
import pathlib
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from jaxdl.errors import UserError
from jaxdl.predict import export as exporting
from jaxdl.predict.export import export
from tests import small
from tests.predict.test_predict import LANGUAGE, opened
from tests.test_language_configs import files, shrunk  # noqa: F401  (files is a fixture)

ONNX = pathlib.Path(sys.prefix) / 'onnx'
needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec('jax2onnx') is None and not ONNX.is_dir(),
    reason='needs requirements-onnx.txt',
)


def model_and_rows(name, files):  # noqa: F811
    config = small.config() if name == 'digits' else shrunk(name, files)
    model, sources, _ = opened(config, devices=2)
    source = next(iter(sources.values()))
    rows = source.fetch(np.arange(min(5, len(source))))
    return model, {k: rows[k] for k in model.needed}


def compare(found, model, rows):
    expected = jax.device_get(jax.jit(model.function)(model.weights, rows))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('name', ['digits', *LANGUAGE])
def test_stablehlo_is_loaded_back(name, files, tmp_path):  # noqa: F811
    model, rows = model_and_rows(name, files)
    lines = export(model, 'stablehlo', str(tmp_path / 'model'))
    loaded = jax.export.deserialize(bytearray((tmp_path / 'model').read_bytes()))
    assert loaded.platforms == ('cpu', 'cuda') and loaded.nr_devices == 1
    compare(loaded.call(rows), model, rows)
    three = {k: v[:3] for k, v in rows.items()}
    compare(loaded.call(three), model, three)
    if name == 'digits':
        assert lines[1] == '  takes image uint8 [batch, 8, 8, 1]'
        assert '  gives probabilities float32 [batch, 10]' in lines
        assert lines[-1] == '  classes in order: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9'


def test_a_program_without_jaxdl_runs_the_file(files, tmp_path):  # noqa: F811
    model, rows = model_and_rows('digits', files)
    export(model, 'stablehlo', str(tmp_path / 'model'))
    np.savez(tmp_path / 'rows.npz', **rows)
    code = (
        'import jax.export, numpy as np, sys\n'
        'call = jax.export.deserialize(bytearray(open("model", "rb").read())).call\n'
        'np.savez("out.npz", **call(dict(np.load("rows.npz"))))\n'
        'assert "jaxdl" not in sys.modules and "flax" not in sys.modules\n'
    )
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True)
    compare(dict(np.load(tmp_path / 'out.npz')), model, rows)


@needs_onnx
@pytest.mark.parametrize(
    'name', ['digits', 'cifar_vit', 'stdlib_lm', 'char_rnn', 'translate_small']
)
def test_onnx_runs_in_onnxruntime(name, files, tmp_path):  # noqa: F811
    model, rows = model_and_rows(name, files)
    path = str(tmp_path / 'model.onnx')
    export(model, 'onnx', path)
    import onnxruntime  # the folder is on the path now

    session = onnxruntime.InferenceSession(path)
    outputs = [output.name for output in session.get_outputs()]
    for size in (5, 2):
        part = {k: v[:size] for k, v in rows.items()}
        compare(dict(zip(outputs, session.run(None, part), strict=True)), model, part)


@needs_onnx
def test_onnx_says_what_it_cannot_express(files, tmp_path):  # noqa: F811
    model, _ = model_and_rows('imdb_lstm', files)  # reads its texts backwards too
    with pytest.raises(UserError, match=r'--format=onnx: this model cannot be .* Reverse scan'):
        export(model, 'onnx', str(tmp_path / 'x'))


def test_safetensors_are_the_weights_by_their_paths(files, tmp_path):  # noqa: F811
    from safetensors import safe_open

    model, _ = model_and_rows('digits', files)
    export(model, 'safetensors', str(tmp_path / 'model.safetensors'))
    with safe_open(tmp_path / 'model.safetensors', 'numpy') as file:
        found = {name: file.get_tensor(name) for name in file.keys()}
        assert file.metadata()['step'] == '0'
    leaves = jax.tree_util.tree_leaves_with_path(model.weights)
    assert len(found) == len(leaves)
    for path, leaf in leaves:
        name = '/'.join(str(key.key) for key in path)
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_what_does_not_fit_or_is_not_installed(files, tmp_path, monkeypatch):  # noqa: F811
    model, _ = model_and_rows('digits', files)
    monkeypatch.setattr(exporting, 'LARGEST', 1000)
    with pytest.raises(UserError, match=r'--format=onnx: the weights are .*safetensors'):
        export(model, 'onnx', str(tmp_path / 'x'))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r'--out=.*/file/x: '):
        (tmp_path / 'file').write_text('')
        export(model, 'safetensors', str(tmp_path / 'file' / 'x'))
    monkeypatch.setitem(sys.modules, 'jax2onnx', None)
    with pytest.raises(UserError, match=r'--format=onnx needs jax2onnx .*requirements-onnx.txt'):
        export(model, 'onnx', str(tmp_path / 'x'))
