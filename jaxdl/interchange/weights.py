"""Weights to and from Hugging Face's layout: BERT, GPT-2 and ViT as config.json + model.safetensors.

python -m jaxdl interchange --from_hf=DIR|FILE --config=configs/NAME.py --workdir=RUN [--new_head]
python -m jaxdl interchange --workdir=RUN --to_hf=DIR

The first makes the run folder RUN at step 0 with the weights of DIR: training it fine-tunes them,
and other runs can start from it. --new_head keeps the config's own fresh head where DIR has none or
one for other classes. The second writes the newest good checkpoint of RUN for others to load.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from jaxdl.core import flags as cli
from jaxdl.errors import UserError
from jaxdl.interchange.layouts import Entry, Layout, layout
from jaxdl.models.stack import stack_layers, unstack_layers
from jaxdl.models.vit import ViT
from jaxdl.run import runtime

SAME = (
    {'gelu_new', 'gelu_pytorch_tanh', 'gelu_fast'},
    {'gelu', 'gelu_python'},
)


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
    there = layout(model)
    tensors = {_usual_name(name, there): value for name, value in tensors.items()}
    known = {entry.there for entry in there.entries} | set(there.tied)
    expected = _flatten(unstack_layers(like))
    unexpected = [n for n in tensors if n not in known and not re.match(there.ignored, n)]
    missing, wrong, found = [], [], {}
    for entry in there.entries:
        ours = [expected[path] for path in entry.here]
        shape = _shape_there(entry, ours, model)
        value = tensors.get(entry.there)
        if value is None or tuple(value.shape) != shape:
            if entry.head and new_head:
                found |= dict(zip(entry.here, map(np.asarray, ours), strict=True))
            elif value is None:
                missing.append(f'{entry.there} {list(shape)}')
            else:
                wrong.append(f'{entry.there} {list(value.shape)} there, {list(shape)} here')
            continue
        parts = entry.to_here(np.asarray(value, np.float32), ours[0].shape[0])
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
    params = _unflatten(found)
    return stack_layers(params) if getattr(model, 'scan_layers', False) else params


def to_hf(params: Any, model: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns ({name: float32 array}, config.json) of `params` in Hugging Face's layout."""
    there = layout(model)
    ours = _flatten(unstack_layers(jax.device_get(params)))
    tensors = {
        entry.there: entry.to_there([ours[p] for p in entry.here], getattr(model, 'vocab', 0))
        for entry in there.entries
    }
    config = {**there.config, 'dtype': 'float32'}
    if isinstance(model, ViT):
        patches = len(ours['positions']) - 1
        side = round(patches**0.5)
        if side * side != patches:
            raise UserError(
                f'{patches} patches are no square; ViT at Hugging Face has square images'
            )
        config['image_size'] = side * model.patch
        config['num_channels'] = ours['patches/kernel'].shape[2]
    return tensors, config


def load(source: str | os.PathLike, model: Any, like: Any, *, new_head: bool = False) -> dict:
    """Returns the parameters of `model` from a folder (config.json, safetensors) or a .safetensors file.

    Arguments and errors are those of from_hf; a config.json that contradicts the model is one too.
    """
    path = Path(source)
    config = path / 'config.json'
    if config.is_file():
        _check_config(json.loads(config.read_text()), model, str(config))
    return from_hf(read_tensors(path), model, like, new_head=new_head)


def save(folder: str | os.PathLike, params: Any, model: Any) -> None:
    """Writes config.json and model.safetensors into `folder`, from where Hugging Face loads them."""
    from safetensors.numpy import save_file

    tensors, config = to_hf(params, model)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / 'model.safetensors.part'
        save_file(tensors, part, metadata={'format': 'pt'})
        (folder / 'config.json').write_text(json.dumps(config, indent=2, sort_keys=True) + '\n')
        os.replace(part, folder / 'model.safetensors')
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
            files = sorted(set(json.loads(index.read_text())['weight_map'].values()))
            parts = [path / name for name in files]
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


def _usual_name(name: str, there: Layout) -> str:
    """The current name: early checkpoints say gamma and beta, those of the bare body have no prefix."""
    name = re.sub(r'LayerNorm\.gamma$', 'LayerNorm.weight', name)
    name = re.sub(r'LayerNorm\.beta$', 'LayerNorm.bias', name)
    body = {entry.there.removeprefix(there.prefix) for entry in there.entries if not entry.head}
    bare = name in body or re.match(there.ignored, there.prefix + name) is not None
    if bare or name.startswith('pooler.'):
        return there.prefix + name
    return name


def _shape_there(entry: Entry, ours: list[Any], model: Any) -> tuple[int, ...]:
    shape = list(ours[0].shape)
    shape[-1] *= len(ours)
    if entry.kind == 'linear':
        return tuple(shape[::-1])
    if entry.kind == 'patches':
        return (shape[3], shape[2], shape[0], shape[1])
    if entry.kind == 'vocab':
        return (model.vocab, *shape[1:])
    return (1,) * {'batched': 1, 'token': 2}.get(entry.kind, 0) + tuple(shape)


def _check_config(found: dict, model: Any, where: str) -> None:
    wanted = layout(model)
    if found.get('model_type') != wanted.config['model_type']:
        raise UserError(
            f'{where} describes a model of type {found.get("model_type")!r}; '
            f'{type(model).__name__} here is a {wanted.config["model_type"]!r}'
        )
    for key in wanted.decisive:
        there, here = found.get(key), wanted.config[key]
        same = any(there in group and here in group for group in SAME)
        if there is not None and there != here and not same:
            raise UserError(
                f'{where}: {key} is {there!r}, the model here has {here!r}; '
                'the tensors would fit, the results would not'
            )


def _table(model: str, **lists: list[str]) -> str:
    counts = ', '.join(f'{len(rows)} {name}' for name, rows in lists.items() if rows)
    lines = [f'the tensors do not fit {model}: {counts}']
    for name, rows in lists.items():
        lines += [f'  {name:<11} {row}' for row in rows[:4]]
        if len(rows) > 4:
            lines.append(f'  {name:<11} … and {len(rows) - 4} more')
    return '\n'.join(lines)


def _flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        path = f'{prefix}{name}'
        flat |= _flatten(value, f'{path}/') if isinstance(value, Mapping) else {path: value}
    return flat


def _unflatten(flat: Mapping[str, Any]) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        *parents, name = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


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
        info = place.begin(config)
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


def main(argv):
    runtime.prepare_process()
    flags.DEFINE_string('from_hf', '', "a folder or .safetensors file in Hugging Face's layout")
    flags.DEFINE_string('to_hf', '', 'the folder to write config.json and model.safetensors to')
    flags.DEFINE_string('config', '', 'configs/NAME.py[:variant] of the run to make')
    flags.DEFINE_string('workdir', '', 'the folder of the run')
    flags.DEFINE_boolean(
        'new_head', False, 'keep a fresh head where the weights have no fitting one'
    )
    importing = any(re.match(r'--?config', word) for word in argv[1:])
    if importing:
        config = cli.parse_config(argv, __doc__ or '')
    else:
        cli.parse_flags(argv, __doc__ or '', required=('workdir',))
    values = flags.FLAGS
    if not values.workdir:
        raise UserError('--workdir is missing: the folder of the run')
    if bool(values.from_hf) == bool(values.to_hf):
        raise UserError('give one of --from_hf=DIR (with --config=…) and --to_hf=DIR')
    if values.from_hf:
        if not importing:
            raise UserError(
                '--config is missing: --from_hf makes a run, so it needs the config of one'
            )
        import_run(config, values.workdir, values.from_hf, new_head=values.new_head)
        print(f'{values.from_hf} is now step 0 of the run {values.workdir}')
    else:
        step = export_run(values.workdir, values.to_hf)
        print(f'step {step} of {values.workdir} is now in {values.to_hf}')
