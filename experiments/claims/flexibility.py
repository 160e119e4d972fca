"""Claim 6, flexibility: every config under configs/ through the same loop, and what each family asked of it."""

import ast
import contextlib
import dataclasses
import inspect
import io
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.claims import base
from experiments.claims.base import MEASURED, UNAVAILABLE, Part, Settings, Shown

QUESTION = 'Does one loop train every kind of model, and what did each kind need of it?'
CLAIM = 'GPUs and their software are flexible: convolutional, recurrent, Transformer and generative models.'
ROOT = Path(__file__).resolve().parents[2]
# No field of these names may be larger: (in quick mode, otherwise). Each item of a tuple is held below it.
CAPS = {
    'batch_size': (32, 64), 'eval_batch_size': (64, 256), 'accumulate': (1, 1),
    'steps_per_call': (1, 8), 'length': (64, 256), 'source_length': (64, 128),
    'target_length': (64, 128), 'context': (16, 128), 'image_size': (64, 128),
    'width': (64, 256), 'embed_width': (64, 128), 'mlp_width': (128, 1024), 'widths': (32, 128),
    'layers': (1, 4), 'heads': (4, 8), 'kv_heads': (4, 8), 'depth': (8, 50), 'channels': (32, 128),
    'views': (1, 2), 'sample_tokens': (0, 50), 'bleu_examples': (0, 200), 'episodes': (10, 50),
    'rollout': (16, 32), 'restarts': (1, 2),
    'steps': (4, 20), 'samples': (32, 500), 'importance': (16, 128), 'bootstrap': (4, 20), 'rounds': (20, 100),
}  # fmt: skip
STEPS = (12, 200)
VOCAB = 512  # of tokenizers that are trained on the stand-in text


def prepare(settings: Settings) -> None:
    """In quick mode most of the time would be the compiler's."""
    from jaxdl.run import runtime

    if settings.quick and not base.gpu_names():
        base.compile_quickly()
    runtime.prepare_process()


def parts(settings: Settings) -> list[Part]:
    found: list[Part] = [('core', core_lines)]
    chosen = families() if settings.quick else {name: name for name in names()}
    for name in chosen.values():
        found.append((name, lambda n=name: train(n, settings)))
    return found


def names() -> list[str]:
    """'NAME' and 'NAME:variant' of every file under configs/."""
    from jaxdl.core import flags

    found = []
    for path in sorted((ROOT / 'configs').glob('*.py')):
        variants = getattr(flags.load_module(str(path)), 'VARIANTS', ())
        found += [path.stem, *(f'{path.stem}:{variant}' for variant in variants if variant)]
    return found


def load(name: str) -> Any:
    from jaxdl.core import flags

    stem, _, variant = name.partition(':')
    return flags.load_config(f'{ROOT}/configs/{stem}.py' + (f':{variant}' if variant else ''))


def families() -> dict[tuple[str, str], str]:
    """The first config of each pair of a model's and a task's class."""
    found: dict[tuple[str, str], str] = {}
    for name in names():
        found.setdefault(family(load(name)), name)
    return found


def family(config: Any) -> tuple[str, str]:
    return type(config.model).__name__, type(config.task).__name__


# ---- smaller configs and stand-in data ----


def shrunk(config: Any, *, quick: bool) -> tuple[Any, list[str]]:
    """The config with every field of CAPS held below its cap, and what was changed, in words."""
    from jaxdl.core import config as config_lib

    changed: dict[str, None] = {}

    def change(path: str, value: Any) -> Any:
        name = path.rpartition('.')[2].partition('[')[0]
        most = CAPS[name][not quick] if name in CAPS else value
        # The steps of the run are the same for all and set below; these are those of a sampler or an attack.
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or path == 'config.steps'
            or value <= most
        ):
            return value
        changed[f'{name} {value} → {most}'] = None
        return most

    return config_lib.rebuild(config, change), list(changed)


def _with(node: Any, values: dict[str, Any]) -> Any:
    if not values:
        return node
    return node.clone(**values) if hasattr(node, 'clone') else dataclasses.replace(node, **values)


def with_data(config: Any, folder: Path) -> tuple[Any, str]:
    """The config with data that is here, and a word about a stand-in: '' where it has its own."""
    from jaxdl.data.images.catalogue import IMAGE_SETS
    from jaxdl.data.images.tfds import Tfds
    from jaxdl.data.synthetic import SyntheticImages
    from jaxdl.data.text.sources import TextFiles

    if is_here(config.data):
        return config, ''
    if isinstance(config.data, Tfds):
        size = config.data.image_size
        shape = (size, size, 3) if size else IMAGE_SETS[config.data.name].shape
        classes = getattr(config.task, 'num_classes', 10)
        data = SyntheticImages(256, shape, classes, num_eval_examples=64)
        return dataclasses.replace(config, data=data), 'made-up images'
    kind = {'SentencePairs': 'pairs', 'LabelledTexts': 'labels'}.get(
        type(config.data).__name__, 'text'
    )
    path = _text(folder, kind)
    config = dataclasses.replace(
        config, data=_with(config.data, {'source': TextFiles(str(path), evals=(f'valid={path}',))})
    )
    return _small_vocabulary(config), "a little of Python's source"


def is_here(data: Any) -> bool:
    """Whether a data set can be read without a download and without a file that the user gives."""
    from jaxdl.data import store
    from jaxdl.data.images.catalogue import IMAGE_SETS
    from jaxdl.data.images.tfds import Tfds
    from jaxdl.data.text.sources import TextFiles, TfdsText

    where = data if isinstance(data, Tfds) else getattr(data, 'source', None)
    if isinstance(where, TextFiles):
        return bool(where.train)
    if not isinstance(where, Tfds | TfdsText):
        return True
    known = IMAGE_SETS.get(where.name)
    return bool(known and known.embedded) or (store.data_dir(where.data_dir) / where.name).is_dir()


def _small_vocabulary(config: Any) -> Any:
    tokenizer = config.data.tokenizer
    if getattr(tokenizer, 'vocab_size', 0) <= VOCAB or not dataclasses.is_dataclass(tokenizer):
        return config
    tokenizer = _with(tokenizer, {'vocab_size': VOCAB})
    fields = {'vocab_size': tokenizer.vocab_size, 'mask_token': getattr(tokenizer, 'mask', None)}
    return dataclasses.replace(
        config,
        data=_with(config.data, {'tokenizer': tokenizer}),
        task=_with(config.task, {k: fields[k] for k in config.task.vocabulary() if k in fields}),
        model=_with(config.model, {'vocab': VOCAB}),
    )


def _text(folder: Path, kind: str) -> Path:
    """A file of the form that a data set wants, from the source of modules that Python brings."""
    path = folder / f'stand-in-{kind}.{"txt" if kind == "text" else "tsv"}'
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    modules = [inspect, ast, textwrap, dataclasses, contextlib]
    lines = [
        ' '.join(line.split())[:100]
        for module in modules
        for line in inspect.getsource(module).splitlines()
    ]
    lines = [line for line in lines if len(line) > 12]
    if kind == 'pairs':  # a language in which the words stand the other way round
        lines = [f'{line}\t{" ".join(reversed(line.split()))}' for line in lines]
    if kind == 'labels':
        lines = [f'{line}\t{int("(" in line)}' for line in lines]
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return path


# ---- a run ----


def train(name: str, settings: Settings) -> dict[str, Any]:
    """One config for a fixed number of steps through the loop; what its own log says of it."""
    from jaxdl.core.config import Checkpoint, Mesh
    from jaxdl.files import read_object
    from jaxdl.record.metrics_file import read_metrics
    from jaxdl.run import loop as trainer

    folder = Path(settings.folder)
    config, changed = shrunk(load(name), quick=settings.quick)
    config, stand_in = with_data(config, folder / 'data')
    steps = STEPS[not settings.quick]
    if settings.quick:
        changed.append(f'{steps} steps')
    config = dataclasses.replace(
        config, steps=steps, log_every=steps // 4, eval_every=0, checkpoint=Checkpoint(), mesh=Mesh(),
    )  # fmt: skip
    run = folder / 'runs' / f'flexibility-{name.replace(":", "-")}'
    shutil.rmtree(run, ignore_errors=True)
    before = _memory(reset=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer.train(config, str(run))
    rows = read_metrics(run / 'metrics.jsonl')
    last = rows[-1]
    speeds = [row['perf/examples_per_s'] for row in rows[1:] if 'perf/examples_per_s' in row]
    metric = main_metric(last)
    return {
        'family': list(family(config)),
        'parameters': read_object(run / 'run.json').get('parameters'),
        'first_step': next((r['perf/first_step_s'] for r in rows if 'perf/first_step_s' in r), None),
        'examples_per_s': max(speeds, default=None),
        'mfu': max((row['perf/mfu'] for row in rows if 'perf/mfu' in row), default=None),
        'memory': _memory_of_run(before),
        'metric': metric and [metric, last[metric]],
        'loss': [row['train/loss'] for row in rows if 'train/loss' in row],
        'joules': sum(v for k, v in last.items() if k.startswith('energy/') and k.endswith('_joules')) or None,
        'changed': changed,
        'stand_in': stand_in,
    }  # fmt: skip


def main_metric(row: dict[str, Any]) -> str | None:
    """The metric of an evaluation that people look at, or that of training."""
    keys = [key for key in row if key.startswith('eval/') and not key.endswith('/examples')]
    for word in ('accuracy', 'return', 'bleu', 'perplexity', 'loss'):
        for key in keys:
            if key.rpartition('/')[2] == word:
                return key
    return keys[0] if keys else next((key for key in row if key == 'train/loss'), None)


def _memory(*, reset: bool = False) -> int | None:
    """The bytes that this process takes on the host now; `reset` also forgets its highest value."""
    try:
        if reset:
            Path('/proc/self/clear_refs').write_text('5')
        return _status('VmRSS')
    except OSError:
        return None


def _status(name: str) -> int:
    text = Path('/proc/self/status').read_text()
    return 1024 * int(text.partition(f'{name}:')[2].split()[0])


def _memory_of_run(before: int | None) -> int | None:
    """What the run took at most: of the device's memory, or on a CPU of the host's."""
    import jax

    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats['peak_bytes_in_use']
    return None if before is None else max(0, _status('VmHWM') - before)


# ---- what the core knows of them ----


def core_lines() -> dict[str, Any]:
    """Lines of code in core/ and run/ that name a model, a task or a data set of any config."""
    wanted = set()
    for name in names():
        config = load(name)
        wanted |= {type(node).__name__ for node in (config.model, config.task, config.data)}
    files = [path for part in ('core', 'run') for path in (ROOT / 'jaxdl' / part).glob('*.py')]
    found = [
        f'{path.name}:{line}' for path in files for line in lines_naming(path.read_text(), wanted)
    ]
    return {'configs': len(names()), 'classes': len(wanted), 'files': len(files), 'lines': found}


def lines_naming(source: str, wanted: set[str]) -> Iterator[int]:
    """The lines of Python code, comments and texts left out, that use or import one of these names."""
    for node in ast.walk(ast.parse(source)):
        used = {getattr(node, 'id', None), getattr(node, 'attr', None)}
        if isinstance(node, ast.Import | ast.ImportFrom):
            used = {alias.name for alias in node.names}
        if used & wanted:
            yield node.lineno  # type: ignore[attr-defined]


def present(values: dict[str, Any]) -> Shown:
    from experiments.claims.draw import bars

    core = values.get('core')
    runs = {name: value for name, value in values.items() if name != 'core'}
    kinds = {tuple(run['family']) for run in runs.values()}
    lines = 'an uncounted number of' if core is None else len(core['lines'])
    shown = Shown(
        f'{len(runs)} configs of {len(kinds)} kinds of model and task went through the same loop; '
        f'{lines} lines of its core name one of them.',
        MEASURED,
    )
    if not runs:
        return dataclasses.replace(shown, answer='No config was run yet.', label=UNAVAILABLE)
    if runs:
        shown.figures.append(
            (
                'Examples a second, in the sizes of the table',
                bars(
                    [(n, r['examples_per_s'], base.number(r['examples_per_s'])) for n, r in runs.items() if r['examples_per_s']],
                    label='examples/s', log=True,
                ),
            )
        )  # fmt: skip
    rows = []
    for name, run in runs.items():
        metric = run['metric']
        loss = run['loss']
        rows.append(
            [name, ', '.join(run['family']), base.number(run['parameters']), _or(run['first_step'], '{:.1f} s'),
             base.number(run['examples_per_s']) if run['examples_per_s'] else 'unavailable', _or(run['mfu'], '{:.1%}'),
             'unavailable' if run['memory'] is None else f'{run["memory"] / 2**20:.0f} MiB',
             f'{metric[0].removeprefix("eval/")} {metric[1]:.4g}' if metric else '',
             f'{loss[0]:.3g} → {loss[-1]:.3g}' if loss else '',
             run['stand_in'] or 'its own', ', '.join(run['changed']) or 'nothing']
        )  # fmt: skip
    head = ['config', 'model, task', 'parameters', 'first step', 'examples/s', 'MFU', 'memory',
            'metric at the end', 'loss', 'data', 'made smaller']  # fmt: skip
    shown.tables.append(('', head, rows))
    if core:
        shown.notes.append(
            f'Counted: {core["files"]} files of jaxdl/core and jaxdl/run against the {core["classes"]} classes '
            f'of models, tasks and data sets in {core["configs"]} configs: {len(core["lines"])} lines name one'
            + (f' ({", ".join(core["lines"])})' if core['lines'] else '') + '.'
        )  # fmt: skip
    shown.notes.append(
        'The first step is counted from the start of the run, imports left out. Memory is what the run '
        'added to the process on a CPU, and the peak of the device on a GPU. Metrics after so few steps, '
        'or on stand-in data, only show that the loop ends with one. Quick mode takes the first config '
        'of each kind and has the compiler leave out its costly optimisations on a CPU, so its rates are low.'
    )
    return shown


def _or(value: float | None, form: str) -> str:
    return 'unavailable' if value is None else form.format(value)
