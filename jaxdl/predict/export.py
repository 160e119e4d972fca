"""A trained model as a file for other software: StableHLO, ONNX, safetensors.

StableHLO and ONNX hold the whole function from the arrays of a row, such as uint8 images or token
ids, to the predictions, with the averaged weights inside and any number of rows.
"""

import contextlib
import functools
import importlib.util
import logging
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from jaxdl import files
from jaxdl.errors import UserError
from jaxdl.models import ops
from jaxdl.predict.predictor import Predictor

FORMATS = ('stablehlo', 'onnx', 'safetensors')
PLATFORMS = ('cpu', 'cuda')
LARGEST = 2 << 30
"""Bytes of weights from which on neither format can hold them in its one message."""


def export(model: Predictor, kind: str, path: str) -> list[str]:
    """Writes the model as `kind`, one of FORMATS; returns lines that say what the file takes.

    Raises:
        UserError: it cannot be written in this format.
    """
    write = {'stablehlo': _stablehlo, 'onnx': _onnx, 'safetensors': _safetensors}[kind]
    weights = jax.device_get(model.weights)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    if kind != 'safetensors' and size >= LARGEST:
        raise UserError(
            f'--format={kind}: the weights are {size / 2**30:.1f} GiB, and the format holds less '
            'than 2; give --format=safetensors'
        )
    data = write(model, weights)
    try:
        files.write_bytes(path, data)
    except OSError as error:
        raise UserError(f'--out={path}: {error.strerror or error}') from None
    lines = [f'step {model.step}, {len(data) / 1e6:,.1f} MB: {path}']
    if kind == 'safetensors':
        return lines
    taken = {name: ('batch', *value.shape) for name, value in model.needed.items()}
    given = jax.eval_shape(functools.partial(model.function, weights), _rows(model, 2))
    for word, shapes, like in (
        ('takes', taken, model.needed),
        ('gives', {name: ('batch', *value.shape[1:]) for name, value in given.items()}, given),
    ):
        for name, shape in shapes.items():
            lines.append(f'  {word} {name} {like[name].dtype} [{", ".join(map(str, shape))}]')
    if model.class_names:
        lines.append(f'  classes in order: {", ".join(model.class_names)}')
    return lines


def _rows(model: Predictor, size: Any) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct((size, *value.shape), value.dtype)
        for name, value in model.needed.items()
    }


@contextlib.contextmanager
def _portable() -> Iterator[None]:
    """Programs traced inside hold the plain form of every operation, which runs everywhere."""
    before = ops.platform() == 'plain'
    ops.set_plain(True)
    try:
        yield
    finally:
        ops.set_plain(before)


def _stablehlo(model: Predictor, weights: dict) -> bytes:
    """For jax.export.deserialize; its `call` takes {name: array} and gives {name: array}."""
    (batch,) = jax.export.symbolic_shape('batch')
    function = jax.jit(functools.partial(model.function, weights))
    with _portable(), _unsupported('stablehlo'):
        exported = jax.export.export(function, platforms=PLATFORMS)(_rows(model, batch))
    return bytes(exported.serialize())


def _onnx(model: Predictor, weights: dict) -> bytes:
    """The converter changes functions of jax.numpy for the rest of the process; train in another."""
    to_onnx = _converter()
    names = list(model.needed)

    def function(*arrays):
        found = model.function(weights, dict(zip(names, arrays, strict=True)))
        return tuple(found[name] for name in sorted(found))

    given = jax.eval_shape(functools.partial(model.function, weights), _rows(model, 2))
    with _unsupported('onnx'), _silent():
        made = to_onnx(
            function,
            list(_rows(model, 'batch').values()),
            model_name=type(model.config.model).__name__,
            input_names=names,
            output_names=sorted(given),
        )
    return made.SerializeToString()


def _safetensors(model: Predictor, weights: dict) -> bytes:
    """The arrays by their paths, 'params/…' and 'model_state/…'."""
    from safetensors.numpy import save

    arrays = flatten_dict(weights, sep='/')
    about = {'step': str(model.step), 'model': type(model.config.model).__name__}
    if model.class_names:
        about['classes'] = '\n'.join(model.class_names)
    return save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, metadata=about)


def _converter() -> Any:
    """jax2onnx.to_onnx, of this environment or of its folder `onnx` (see requirements-onnx.txt)."""
    folder = pathlib.Path(sys.prefix) / 'onnx'
    if importlib.util.find_spec('jax2onnx') is None and (folder / 'jax2onnx').is_dir():
        sys.path.append(str(folder))  # behind everything else, so that it replaces no package
    try:
        with _silent():
            import jax2onnx  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f'--format=onnx needs jax2onnx ({error}): python -m pip install --no-deps '
            f'--target={folder} -r requirements-onnx.txt'
        ) from None
    return jax2onnx.to_onnx


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the converter's own warnings about examples that it cannot import."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _unsupported(kind: str) -> Iterator[None]:
    """Turns what a format cannot express into one line."""
    try:
        yield
    except (NotImplementedError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(
            f'--format={kind}: this model cannot be expressed in it: {reason[:300]}'
        ) from error
