"""Weights to and from Hugging Face's layout: BERT, GPT-2, Llama, Qwen3 and ViT as config.json + model.safetensors."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdl import files
from jaxdl.api import facts_of
from jaxdl.errors import UserError
from jaxdl.interchange.layouts import Format, layout
from jaxdl.models.stack import stack_layers, unstack_layers
from jaxdl.record.terminal import warn


def from_hf(
    tensors: Mapping[str, np.ndarray], model: Any, like: Any, *, new_head: bool = False
) -> dict:
    """Returns the parameters of `model` from tensors in Hugging Face's layout.

    Args:
        tensors: {name: array}, of the model or of its bare body, any float dtype.
        model: a Bert, BertClassifier, TransformerLM or ViT.
        like: parameters of `model`, or their shapes; their values are kept for a new head.
        new_head: keep the head of `like` where the tensors have none or one of another shape.

    Raises:
        UserError: tensors are missing, unexpected or of other shapes; the message lists them.
    """
    expected = flatten_dict(unstack_layers(like), sep='/')
    there = layout(model, expected)
    tensors = {_usual_name(name, there): value for name, value in tensors.items()}
    known = {entry.there for entry in there.entries} | set(there.tied)
    unexpected = [n for n in tensors if n not in known and not re.match(there.ignored, n)]
    missing, wrong, found = [], [], {}
    for entry in there.entries:
        ours = [expected[path] for path in entry.here]
        shape = entry.shape_there(ours, facts_of(model).limits().vocab or 0)
        value = tensors.get(entry.there)
        if value is None or tuple(value.shape) != shape:
            if entry.head and new_head:
                found |= dict(zip(entry.here, map(np.asarray, ours), strict=True))
            elif value is None:
                missing.append(f'{entry.there} {list(shape)}')
            else:
                wrong.append(f'{entry.there} {list(value.shape)} there, {list(shape)} here')
            continue
        parts = entry.to_here(np.asarray(value, np.float32), ours)
        found |= dict(zip(entry.here, parts, strict=True))
    for name, original in there.tied.items():
        if name in tensors and original in tensors:
            if not np.array_equal(tensors[name], tensors[original]):
                wrong.append(f'{name} differs from {original}, here they are one')
    if missing or unexpected or wrong:
        raise UserError(
            _table(
                type(model).__name__,
                missing=missing,
                unexpected=[f'{n} {list(tensors[n].shape)}' for n in unexpected],
                different=wrong,
            )
        )
    params = unflatten_dict(found, sep='/')
    return stack_layers(params) if model.scan_layers else params


def to_hf(params: Any, model: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns ({name: float32 array}, config.json) of `params` in Hugging Face's layout."""
    ours: dict[str, Any] = flatten_dict(unstack_layers(jax.device_get(params)), sep='/')
    there = layout(model, ours)
    tensors = {
        entry.there: entry.to_there(
            [ours[p] for p in entry.here], facts_of(model).limits().vocab or 0
        )
        for entry in there.entries
    }
    return tensors, {**there.config, 'dtype': 'float32'}


def load(source: str | os.PathLike, model: Any, like: Any, *, new_head: bool = False) -> dict:
    """Returns the parameters of `model` from a folder (config.json, safetensors) or a .safetensors file.

    Arguments and errors are those of from_hf. The config.json in the folder, or beside the file, is
    read too; one that asks for another model than `model`, or for what is not known, is an error.
    """
    path = Path(source)
    config = (path if path.is_dir() else path.parent) / 'config.json'
    there = layout(model, flatten_dict(unstack_layers(like), sep='/'))
    if config.exists():
        try:
            there.check(files.read_object(config), new_head=new_head)
        except (OSError, ValueError) as error:
            raise UserError(
                f'{config}: {error}; such weights would not compute the same as '
                f'{type(model).__name__} of the config'
            ) from None
    elif path.exists():
        warn(f'there is no {config}: whether these weights belong to such a model is not checked')
    return from_hf(read_tensors(path), model, like, new_head=new_head)


def save(folder: str | os.PathLike, params: Any, model: Any) -> None:
    """Writes config.json and model.safetensors into `folder`, from where Hugging Face loads them."""
    from safetensors.numpy import save as serialized

    tensors, config = to_hf(params, model)
    folder = Path(folder)
    try:
        files.write_json(folder / 'config.json', config)
        data = serialized(tensors, metadata={'format': 'pt'})
        files.write_bytes(folder / 'model.safetensors', data)
    except OSError as error:
        raise UserError(
            f'{folder}: {error.strerror or error}; give a folder that can be written'
        ) from None


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns all tensors of a .safetensors file, or of a folder with one or with an index of parts."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if path.is_dir():
        index = path / 'model.safetensors.index.json'
        if index.is_file():
            parts = [path / name for name in _parts(index)]
        else:
            parts = [path / 'model.safetensors']
    else:
        parts = [path]
    tensors = {}
    for part in parts:
        if not part.is_file():
            other = sorted(p.name for p in part.parent.glob('*.bin'))
            hint = f'; {other[0]} is a pickle, save it as safetensors first' if other else ''
            raise UserError(f'{part}: there is no such file{hint}')
        try:
            tensors |= load_file(part)
        except (SafetensorError, OSError) as error:
            raise UserError(f'{part} is no readable safetensors file: {error}') from None
    return tensors


def _parts(index: Path) -> list[str]:
    """The names of the files that an index of parts names, all in its own folder."""
    try:
        names = set(files.read_object(index)['weight_map'].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f'{index} is no index of parts: {error}') from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f'{index}: {name!r} is no file in its folder')
    return sorted(names)


def _usual_name(name: str, there: Format) -> str:
    """The current name: early checkpoints say gamma and beta, those of the bare body have no prefix."""
    name = re.sub(r'LayerNorm\.gamma$', 'LayerNorm.weight', name)
    name = re.sub(r'LayerNorm\.beta$', 'LayerNorm.bias', name)
    body = {entry.there.removeprefix(there.prefix) for entry in there.entries if not entry.head}
    bare = name in body or re.match(there.ignored, there.prefix + name) is not None
    if bare or name.startswith('pooler.'):
        return there.prefix + name
    return name


def _table(model: str, **lists: list[str]) -> str:
    counts = ', '.join(f'{len(rows)} {name}' for name, rows in lists.items() if rows)
    lines = [f'the tensors do not fit {model}: {counts}']
    for name, rows in lists.items():
        lines += [f'  {name:<11} {row}' for row in rows[:4]]
        if len(rows) > 4:
            lines.append(f'  {name:<11} … and {len(rows) - 4} more')
    return '\n'.join(lines)


# ---- command ------------------------------------------------------------------------------------


def import_run(config: Any, workdir: str, source: str, *, new_head: bool) -> None:
    """Makes the folder of a run of `config` that stands at step 0 with the weights of `source`.

    Raises:
        UserError: the weights do not fit, or the folder holds a run.
    """
    from jaxdl.core import mesh as mesh_lib
    from jaxdl.core.feed import Feed
    from jaxdl.core.program import Program
    from jaxdl.record.checkpoints import Checkpoints
    from jaxdl.record.folder import Workdir
    from jaxdl.record.run_info import row_facts

    place = Workdir(workdir)
    if place.holds_run():
        raise UserError(f'--workdir={workdir} holds a run; give a new folder')
    layout(config.model)
    mesh = mesh_lib.make_mesh(config.mesh)
    data = config.data.train_source()
    feed = Feed(data, mesh_lib.batch_shards(mesh), mesh, placement='stream')
    example = {name: value for name, value in feed.example.items() if name != 'id'}
    program = Program(config, mesh, example)
    state = program.init(data.fetch(np.zeros(1, np.int64)))
    params = load(source, config.model, jax.device_get(state.params), new_head=new_head)
    placed = jax.device_put(params, program.shardings.params)
    state = state.replace(params=placed)
    if state.ema is not None:
        average = jax.device_put(params, program.shardings.ema['params'])
        state = state.replace(ema={**state.ema, 'params': average})
    place.create()
    try:
        info = place.begin(config, row=row_facts(example), classes=[*config.data.class_names()])
        checkpoints = Checkpoints(place.checkpoints, config.checkpoint)
        extra = {'sums': [], 'counted': 0, 'metrics': {}}
        saved = checkpoints.save(0, state, extra=extra) and checkpoints.wait()
        checkpoints.close()
        if not saved:
            info.end('failed', checkpoints.failed)
            raise UserError(f'--workdir={workdir}: {checkpoints.failed}')
        info.end('preempted', f'holds the weights of {source}; not trained yet', saved=0)
    finally:
        place.release()


def export_run(workdir: str, folder: str) -> int:
    """Writes the newest good checkpoint of a run, averaged if it averages; returns its step."""
    from jaxdl.run.open_run import open_run

    run = open_run(workdir, data=False)
    params = run.state.params if run.state.ema is None else run.state.ema['params']
    save(folder, params, run.config.model)
    return run.step
