"""The Config tree: what one run is, its checks, its JSON.

A config is the object tree itself: plain dataclasses that hold the model, the task, the data and
the optimizer as objects, so nothing is looked up by name. Flax Linen modules are dataclasses and
hold no arrays, so a config can hold a model. A config is not changed after it was parsed.
"""

import copy
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jaxdl.api import DataSet, Task, facts_of
from jaxdl.errors import UserError, at_least, check_pattern, nearest, one_of

if TYPE_CHECKING:  # not every reader of a config needs jax
    import flax.linen as nn

    from jaxdl.core.optim import Groups, Optimizer

# Fields that a resumed run may change: they say where it runs, what it logs and how long it is. The
# fields in `DataSet.places` are allowed besides, if the data has the same bytes.
FREE = (
    'config.steps',
    'config.log_every',
    'config.eval_every',
    'config.eval_batch_size',
    'config.checkpoint',
    'config.early_stop',
    'config.divergence',
    'config.mesh',
    'config.rules',
    'config.compile',
    'config.placement',
    'config.steps_per_call',
    'config.prefetch',
    'config.workers',
    'config.hang_timeout',
    'config.record_samples',
    'config.deterministic',
    'config.data.data_dir',
    'config.data.source.data_dir',
    'config.data.cache',
)

# Only modules of these packages are imported if a run's config.json names them.
TRUSTED = ('jaxdl', 'flax', 'optax', 'jax')


@dataclasses.dataclass
class Mesh:
    """How many ways each kind of parallelism splits the devices; -1 on one axis: all that remain.

    Attributes:
        data: replicas of the model, each with its share of the batch.
        fsdp: ways the batch and also the whole state are split (fully sharded data parallel).
        tensor: ways single layers are split (tensor parallel).
        pipe: ways the stack of layers is split (pipeline parallel).
        context: ways the sequence is split (context parallel).
        zero: split the optimizer's state over the data axis too (ZeRO-1).
        offload: keep the optimizer's state in host memory between its updates.
        sequence: split activations between layers by their length over the tensor axis too.
        pipe_parts: the most micro-batches in the pipeline at a time; 0: four per stage.
        context_by: how attention sees the whole sequence: 'ring' (keys are passed on), 'heads' (all-to-all), or 'auto': heads if they divide.
    """

    AXES: typing.ClassVar = ('data', 'fsdp', 'pipe', 'context', 'tensor')

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    pipe: int = 1
    context: int = 1
    zero: bool = False
    offload: bool = False
    sequence: bool = False
    pipe_parts: int = 0
    context_by: str = 'auto'

    def check(self):
        sizes = {name: getattr(self, name) for name in self.AXES}
        for name, size in sizes.items():
            if size != -1 and size < 1:
                raise ValueError(f'{name}={size}: must be at least 1, or -1 for what is left')
        if list(sizes.values()).count(-1) > 1:
            raise ValueError('only one axis can be -1 (what is left); give the others a number')
        at_least(self, pipe_parts=0)
        one_of(self, context_by=('auto', 'ring', 'heads'))


@dataclasses.dataclass
class Checkpoint:
    """When checkpoints are written and which are kept.

    Attributes:
        every: steps between two checkpoints; 0: only at the end and when preempted.
        keep: how many of the newest are kept.
        best: a metric such as 'eval/test/accuracy'; the checkpoint with the best value is kept too.
        mode: whether the best value is the 'max' or the 'min'.
    """

    every: int = 0
    keep: int = 2
    best: str = ''
    mode: str = 'max'

    def check(self):
        at_least(self, every=0, keep=1)
        one_of(self, mode=('max', 'min'))


@dataclasses.dataclass
class EarlyStop:
    """Ends a run before its last step when a metric of the evaluations gets no better.

    The schedule of the learning rate stays that of config.steps. With checkpoint.best the best
    checkpoint is kept too; the averages, samples and results of the end are those of the last step.

    Attributes:
        metric: such as 'eval/valid/loss'; empty: the run goes on to its last step.
        mode: whether a better value is larger ('max') or smaller ('min').
        patience: evaluations in a row without a better value after which the run ends.
        least: a value counts as better only if it is so by more than this.
    """

    metric: str = ''
    mode: str = 'min'
    patience: int = 5
    least: float = 0.0

    def check(self):
        at_least(self, patience=1, least=0)
        one_of(self, mode=('max', 'min'))
        if self.metric and not self.metric.startswith('eval/'):
            raise ValueError(
                f"metric={self.metric!r}: must be an evaluation metric, 'eval/<set>/<metric>'"
            )

    def better(self, value: float, best: float | None) -> bool:
        """Whether `value` is better than the best so far; NaN is not."""
        if best is None:
            return not math.isnan(value)
        gain = value - best if self.mode == 'max' else best - value
        return gain > self.least


@dataclasses.dataclass
class Divergence:
    """What happens when a loss, a gradient or a new parameter is not finite.

    The update of such a step is never applied, whatever the policy.

    Attributes:
        policy: 'stop' ends the run (exit 3); 'skip' drops up to max_skips updates in a row; 'rollback' returns to the last checkpoint and moves the data order past the bad stretch.
        max_skips: updates in a row that 'skip' may drop before the run stops.
        max_rollbacks: times that 'rollback' may return before the run stops.
    """

    policy: str = 'stop'
    max_skips: int = 10
    max_rollbacks: int = 3

    def check(self):
        one_of(self, policy=('stop', 'skip', 'rollback'))
        at_least(self, max_skips=1, max_rollbacks=1)


@dataclasses.dataclass
class InitFrom:
    """Parameters to start from, taken from another run.

    Attributes:
        path: the other run's folder, or 'folder:STEP'; empty: none.
        rename: pairs (pattern, replacement), regular expressions over the other run's leaf paths, applied one after the other.
        skip: patterns of leaf paths; matching ones of this model keep their own initialisation, matching ones of the other run are left there.
    """

    path: str = ''
    rename: tuple = ()
    skip: tuple[str, ...] = ()

    def check(self):
        if not self.path and (self.rename or self.skip):
            raise ValueError('rename and skip are unused without path; give init_from.path')
        for pair in self.rename:
            if not (isinstance(pair, tuple | list) and len(pair) == 2):
                raise ValueError(f'rename={self.rename}: must be pairs (pattern, replacement)')
        for pattern in (*self.skip, *(pair[0] for pair in self.rename)):
            check_pattern(pattern)


@dataclasses.dataclass
class Config:
    """One run: what is trained on what, for how long, and how it is placed on the devices.

    Attributes:
        model: a Flax Linen module.
        task: what the model is for: inputs, metrics, augmentation.
        data: where batches come from.
        optimizer: an optimizer of jaxdl.core.optim with its schedule.
        steps: optimizer steps of the whole run.
        batch_size: examples of one step, over all devices and processes.
        seed: decides initialisation, data order, augmentation and dropout.
        log_every: steps between two lines of metrics.
        eval_every: steps between two evaluations; 0: only at the end.
        eval_batch_size: examples of one evaluation step; 0: batch_size.
        accumulate: parts into which a batch is cut, processed one after the other to save memory.
        ema: share of the steps so far that the averaged weights, which are evaluated, cover; 0: no average.
        float8: the model's matrix products in float8 while training (GPUs; needs qwix).
        loss_scale: factor on the loss of a float16 model to begin with (65536 is usual); 0: none.
        checkpoint: when checkpoints are written and which are kept.
        early_stop: whether the run ends when a metric gets no better.
        divergence: what follows a value that is not finite.
        init_from: parameters to start from.
        mesh: how the devices are arranged.
        rules: (path pattern, axes) pairs that place the state on the mesh, first match first; those of the model come after them.
        compile: 'jit' over the mesh, or 'pmap' for pure data parallelism.
        placement: where the training set is kept: 'device', 'host', 'stream', or 'auto' by its size.
        steps_per_call: optimizer steps in one compiled program.
        prefetch: batches prepared ahead of the device.
        workers: processes that read and decode when placement is 'stream'; 0: threads of this process.
        deterministic: bit-identical runs on a GPU too (slower there; a CPU always is).
        record_samples: also write samples.jsonl with the ids of every batch trained on.
        hang_timeout: seconds without a step after which all stacks are printed and the run ends; 0: never.
    """

    model: 'nn.Module'
    task: Task
    data: DataSet
    optimizer: 'Optimizer | Groups'
    steps: int
    batch_size: int
    seed: int = 0
    log_every: int = 50
    eval_every: int = 0
    eval_batch_size: int = 0
    accumulate: int = 1
    ema: float = 0.0
    float8: bool = False
    loss_scale: float = 0.0
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    early_stop: EarlyStop = dataclasses.field(default_factory=EarlyStop)
    divergence: Divergence = dataclasses.field(default_factory=Divergence)
    init_from: InitFrom = dataclasses.field(default_factory=InitFrom)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    rules: tuple = ()
    compile: str = 'jit'
    placement: str = 'auto'
    steps_per_call: int = 1
    prefetch: int = 2
    workers: int = 0
    deterministic: bool = False
    record_samples: bool = False
    hang_timeout: float = 1800.0

    def check(self):
        at_least(
            self,
            steps=1,
            batch_size=1,
            seed=0,
            log_every=1,
            eval_every=0,
            eval_batch_size=0,
            accumulate=1,
            steps_per_call=1,
            prefetch=1,
            workers=0,
            hang_timeout=0,
        )
        if self.seed >= 2**32:
            raise ValueError(f'seed={self.seed}: must be below 2**32')
        if not 0 <= self.ema <= 0.5:
            raise ValueError(
                f'ema={self.ema}: is the share of the steps so far over which the averaged weights '
                'look back, not a decay; must be in [0, 0.5], 0.02 is usual, 0 is no average'
            )
        if self.float8 and importlib.util.find_spec('qwix') is None:
            raise ValueError(
                'float8=True: needs qwix; python -m pip install -r requirements-fp8.txt'
            )
        if self.loss_scale and not 1 <= self.loss_scale <= 2**24:
            raise ValueError(
                f'loss_scale={self.loss_scale}: must be 0 (off) or from 1 to 16777216; 65536 is usual'
            )
        half = next((p for p, n in nodes(self) if getattr(n, 'dtype', '') == 'float16'), None)
        if half and not self.loss_scale:
            raise ValueError(
                f"{half}.dtype='float16' needs a loss scale, or small gradients vanish; "
                "set loss_scale=65536, or use 'bfloat16'"
            )
        one_of(self, compile=('jit', 'pmap'), placement=('auto', 'device', 'host', 'stream'))
        if self.batch_size % self.accumulate:
            raise ValueError(
                f'accumulate={self.accumulate} does not divide batch_size={self.batch_size}; '
                f'allowed: {divisors(self.batch_size)}'
            )
        for name in ('log_every', 'eval_every'):
            if getattr(self, name) % self.steps_per_call:
                raise ValueError(
                    f'{name}={getattr(self, name)} is not a multiple of steps_per_call='
                    f'{self.steps_per_call}; several steps in one program end together'
                )
        if self.checkpoint.every % self.steps_per_call or self.steps % self.steps_per_call:
            raise ValueError(
                f'steps={self.steps} and checkpoint.every={self.checkpoint.every} must be '
                f'multiples of steps_per_call={self.steps_per_call}'
            )
        for rule in self.rules:
            if not (isinstance(rule, tuple | list) and len(rule) == 2):
                raise ValueError(f'rules: {rule!r} is not a pair (path pattern, axes)')
            check_pattern(rule[0])
        if self.compile == 'pmap':
            for axis in ('fsdp', 'tensor', 'pipe', 'context'):
                if getattr(self.mesh, axis) != 1:
                    raise ValueError(
                        f"compile='pmap' is pure data parallelism, but mesh.{axis}="
                        f"{getattr(self.mesh, axis)}; use compile='jit'"
                    )
            if self.rules:
                raise ValueError("rules are unused with compile='pmap'; use compile='jit'")
        best = self.checkpoint.best
        if best and not best.startswith('eval/'):
            raise ValueError(
                f"checkpoint.best={best!r}: must be an evaluation metric, 'eval/<set>/<metric>'"
            )
        if best and not self.eval_every:
            raise ValueError(
                'checkpoint.best is unused when eval_every=0 (evaluated only at the end); '
                'set eval_every'
            )
        if self.early_stop.metric and not self.eval_every:
            raise ValueError(
                'early_stop.metric is unused when eval_every=0 (evaluated only at the end); set '
                'eval_every'
            )
        every = self.checkpoint.every
        if best and (not every or (every % self.eval_every and self.eval_every % every)):
            raise ValueError(
                f'checkpoint.every={every} and eval_every={self.eval_every}: checkpoint.best needs '
                'checkpoints of evaluated steps, so one must be a multiple of the other'
            )


# ---- checks -------------------------------------------------------------------------------------


def divisors(number: int) -> str:
    """The divisors of `number` as text, shortened in the middle."""
    values = [d for d in range(1, number + 1) if number % d == 0]
    texts = [str(v) for v in values]
    return ', '.join(texts if len(texts) <= 12 else [*texts[:6], '…', *texts[-5:]])


def check(config: Config) -> None:
    """Raises UserError with the path of the first field that is wrong anywhere in the tree."""
    # Imports jax, which some readers of configs do without.
    from jaxdl.core.optim import Groups, Optimizer

    allowed = {'task': (Task,), 'data': (DataSet,), 'optimizer': (Optimizer, Groups)}
    for name, kinds in allowed.items():
        given, kind = getattr(config, name), kinds[0]
        if not isinstance(given, kinds):
            raise UserError(
                f'--config.{name}: {type(given).__name__} does not derive from '
                f'{kind.__module__}.{kind.__name__}, which says what is asked of it'
            )
    if not _is_module(config.model):
        raise UserError(
            f'--config.model: {type(config.model).__name__} is no Flax module (flax.linen.nn.Module)'
        )
    facts_of(config.model)
    for path, node in nodes(config):
        for field in fields(node):
            _check_type(f'{path}.{field.name}', field.type, getattr(node, field.name))
    _check_nodes(config, 'config')
    try:
        config.optimizer.for_model(config.model)
    except ValueError as error:
        raise UserError(f'--config.optimizer: {error}') from None


def _check_nodes(tree: Any, path: str) -> None:
    for place, node in nodes(tree, path):
        if callable(getattr(node, 'check', None)):
            try:
                node.check()
            except ValueError as error:
                named = re.match(r'(\w+)=', str(error))
                own = named is not None and hasattr(node, named.group(1))
                raise UserError(f'--{place}{"." if own else ": "}{error}') from None


def completed(config: Config) -> Config:
    """`config` with each num_classes=0 of model and task set to the number of the data's classes.

    Called once, when the config has been read and its fields were set.
    """
    parts = ('model', 'task')
    if all(getattr(getattr(config, part), 'num_classes', 1) for part in parts):
        return config
    if not isinstance(config.data, DataSet):
        return config  # `check` says what is wrong
    _check_nodes(config.data, 'config.data')
    count = len(config.data.class_names())
    if not count:
        raise UserError(
            'num_classes=0 stands for the number of classes of the data, which names none; give '
            '--config.model.num_classes and --config.task.num_classes'
        )
    values = {f'config.{part}.num_classes': count for part in parts}
    return rebuild(config, lambda path, leaf: leaf or values.get(path, leaf))


def _check_type(path: str, kind: Any, value: Any) -> None:
    if typing.get_origin(kind) in (typing.Union, __import__('types').UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return
        kinds = [option for option in options if option is not type(None)]
        if len(kinds) != 1:
            return
        kind = kinds[0]
    items = typing.get_args(kind)
    if typing.get_origin(kind) is tuple and len(items) == 2 and items[1] is ...:
        if not isinstance(value, tuple | list):
            raise UserError(f'--{path}={value!r}: must be a tuple of {type_name(items[0])}')
        for index, item in enumerate(value):
            _check_type(f'{path}[{index}]', items[0], item)
    if kind is tuple and not isinstance(value, tuple | list):
        raise UserError(f'--{path}={value!r}: must be a tuple')
    if dataclasses.is_dataclass(kind) and not isinstance(value, kind):
        raise UserError(f'--{path}={value!r}: must be a {kind.__name__}')
    plain = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}
    if kind in plain and (
        not isinstance(value, plain[kind]) or (isinstance(value, bool) and kind is not bool)
    ):
        raise UserError(f'--{path}={value!r}: must be {kind.__name__}')
    if kind is float and isinstance(value, float) and math.isnan(value):
        raise UserError(f'--{path}=nan: must be a number')


# ---- the tree -----------------------------------------------------------------------------------


def fields(node: Any) -> list[dataclasses.Field]:
    """The dataclass fields of `node` that are part of a config (Linen's own two are not)."""
    if not dataclasses.is_dataclass(node):
        return []
    hidden = ('parent', 'name') if _is_module(node) else ()
    return [f for f in dataclasses.fields(node) if f.name not in hidden and f.init]


def _is_module(node: Any) -> bool:
    return any(
        base.__name__ == 'Module' and base.__module__.startswith('flax.linen')
        for base in type(node).__mro__
    )


def nodes(node: Any, path: str = 'config') -> Iterator[tuple[str, Any]]:
    """Yields (path, dataclass) for every dataclass in the tree, parents first."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        yield path, node
        for field in fields(node):
            yield from nodes(getattr(node, field.name), f'{path}.{field.name}')
    elif isinstance(node, tuple | list):
        for index, item in enumerate(node):
            yield from nodes(item, f'{path}[{index}]')


def rebuild(node: Any, change: Callable[[str, Any], Any], path: str = 'config') -> Any:
    """Returns a copy of the tree in which every leaf is change(path, leaf)."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        updates = {
            f.name: rebuild(getattr(node, f.name), change, f'{path}.{f.name}') for f in fields(node)
        }
        return dataclasses.replace(node, **updates)
    if isinstance(node, tuple):
        return tuple(rebuild(item, change, f'{path}[{i}]') for i, item in enumerate(node))
    if isinstance(node, list):
        return [rebuild(item, change, f'{path}[{i}]') for i, item in enumerate(node)]
    return change(path, node)


def scalars(config: Config) -> dict[str, float]:
    """The hyper-parameters that a step takes as arguments, not as constants: {path: value}.

    A class names them in its `scalars`; runs that differ only in these share one compiled
    program. A value of exactly 0 switches a feature off and stays a constant.
    """
    found = {}
    for path, node in nodes(config):
        for name in getattr(type(node), 'scalars', ()):
            value = getattr(node, name)
            if isinstance(value, int | float) and value != 0:
                found[f'{path}.{name}'] = float(value)
    return found


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """Returns a copy of `config` with the fields at these paths replaced."""
    if not values:
        return config
    return rebuild(config, lambda path, leaf: values.get(path, leaf))


def program_key(config: Config) -> str:
    """A name for the compiled program: configs that differ only in seed and scalars share it.

    A scalar that is 0 is no argument of the program but code left out, so it makes another group.
    """
    traced = scalars(config)
    plain = with_values(config, {**dict.fromkeys(traced, 1.0), 'config.seed': 0})
    words = json.dumps([to_json(plain), sorted(traced)], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def why_alone(config: Config) -> str:
    """Why this config cannot share a program with other runs (`--vectorize`), or ''."""
    if config.compile == 'pmap':
        return "compile='pmap'"
    if config.accumulate > 1:
        return f'accumulate={config.accumulate} says that one run alone fills the memory'
    for axis in config.mesh.AXES:
        if getattr(config.mesh, axis) > 1:
            return f'mesh.{axis}={getattr(config.mesh, axis)}: it is trained on several devices'
    return ''


def differences(old: Any, new: Any, path: str = 'config', *, added: bool = True) -> list[str]:
    """The paths at which two JSON trees of configs differ.

    added=False leaves out fields that only `new` has.
    """
    if isinstance(old, dict) and isinstance(new, dict) and old.get('type') == new.get('type'):
        found = []
        for key in [*old, *(k for k in new if k not in old and added)]:
            if key not in old or key not in new:
                found.append(f'{path}.{key}')
            else:
                found += differences(old[key], new[key], f'{path}.{key}', added=added)
        return found
    return [] if old == new else [path]


def may_change(path: str, also: Iterable[str] = ()) -> bool:
    """Whether a resume may change the field 'config.a.b': it or a parent is in FREE or in `also`."""
    return any(path == free or path.startswith(free + '.') for free in (*FREE, *also))


def at(tree: dict, path: str) -> Any:
    """The value at 'config.a.b' in a JSON tree, or None."""
    for part in path.split('.')[1:]:
        if not isinstance(tree, dict) or part not in tree:
            return None
        tree = tree[part]
    return tree


# ---- JSON ---------------------------------------------------------------------------------------


def to_json(node: Any) -> Any:
    """The tree as plain JSON; objects carry their class as 'type': 'module:Class'."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return {
            'type': _name_of(type(node)),
            **{f.name: to_json(getattr(node, f.name)) for f in fields(node)},
        }
    if isinstance(node, tuple | list):
        return [to_json(item) for item in node]
    if isinstance(node, dict):
        return {'type': 'dict', 'items': {str(k): to_json(v) for k, v in node.items()}}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if callable(node) and hasattr(node, '__qualname__'):
        return {'type': 'function', 'name': _name_of(node)}
    raise UserError(
        f'{node!r} ({type(node).__name__}) cannot be part of a config: '
        'use numbers, strings, tuples, dataclasses or functions'
    )


def _name_of(thing: Any) -> str:
    """'module:qualified name' of a class or function."""
    name = f'{thing.__module__}:{thing.__qualname__}'
    if '<' in name:
        raise UserError(
            f'{name} cannot be part of a config, since nothing could find it again; '
            'define it at the top level of a module'
        )
    return name


def with_defaults(tree: Any, node: Any) -> Any:
    """`tree`, the JSON of an older version, completed with the defaults of newer fields.

    The defaults come from the classes of `node`, a config of this version, so nothing is imported.
    """
    if isinstance(tree, list) and isinstance(node, tuple | list) and len(tree) == len(node):
        return [with_defaults(*pair) for pair in zip(tree, node, strict=True)]
    if not (isinstance(tree, dict) and dataclasses.is_dataclass(node)):
        return tree
    if tree.get('type') != _name_of(type(node)):
        return tree
    found = dict(tree)
    for field in fields(node):
        if field.name in tree:
            found[field.name] = with_defaults(tree[field.name], getattr(node, field.name))
        elif field.default is not dataclasses.MISSING:
            found[field.name] = to_json(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = to_json(field.default_factory())
    return found


def things_in(node: Any) -> dict[str, Any]:
    """{'module:qualified name': class or function} of all objects in a config."""
    if isinstance(node, dict):
        node = tuple(node.values())
    found = {}
    if isinstance(node, tuple | list):
        for item in node:
            found |= things_in(item)
    elif dataclasses.is_dataclass(node) and not isinstance(node, type):
        found[_name_of(type(node))] = type(node)
        for field in fields(node):
            found |= things_in(getattr(node, field.name))
    elif callable(node) and hasattr(node, '__qualname__'):
        found[_name_of(node)] = node
    return found


def from_json(tree: Any, given: Config | None = None) -> Any:
    """The inverse of to_json: rebuilds the objects, so a run's folder is enough to evaluate it.

    This is the only place where a class is found by its name. A run's folder may come from anybody,
    so only modules of TRUSTED packages are imported; other classes are taken from `given`, a
    config that the user named.

    Raises:
        UserError: a class is missing or may not be imported, or to_json did not write the tree.
    """
    known = {} if given is None else {_plain(k): v for k, v in things_in(given).items()}
    try:
        return _build(tree, known)
    except UserError:
        raise
    except Exception as error:  # constructors of the named classes may raise anything
        raise UserError(
            f'config.json does not hold a config ({error}); put the file back as it was written'
        ) from None


def of_config_file(name: str) -> bool:
    """Whether 'module:Class' is defined in a config file, which cannot be imported by its name."""
    return name.startswith('configs.')


def _plain(name: str) -> str:
    """The name under which a class is looked up: a config file may have been copied or renamed."""
    return name.partition(':')[2] if of_config_file(name) else name


def _build(tree: Any, known: dict[str, Any]) -> Any:
    if isinstance(tree, list):
        return tuple(_build(item, known) for item in tree)
    if not isinstance(tree, dict):
        return tree
    kind = tree.get('type')
    if kind == 'dict':
        return {key: _build(value, known) for key, value in tree['items'].items()}
    if kind == 'function':
        return _find(tree['name'], known)
    if not isinstance(kind, str):
        raise ValueError("an object without its 'type'")
    cls = _find(kind, known)
    if not (inspect.isclass(cls) and dataclasses.is_dataclass(cls)):
        raise UserError(f'config.json names {kind}, which is not a dataclass')
    names = {f.name for f in dataclasses.fields(cls)}
    arguments = {key: _build(value, known) for key, value in tree.items() if key != 'type'}
    unknown = [key for key in arguments if key not in names]
    if unknown:
        raise UserError(
            f'config.json gives {kind} the field {unknown[0]!r}, which this version does not have'
            f'{nearest(unknown[0], names)}'
        )
    return cls(**arguments)


def _find(name: str, known: dict[str, Any]) -> Any:
    if _plain(name) in known:
        return known[_plain(name)]
    module, _, qualified = name.partition(':')
    if module.split('.')[0] not in TRUSTED:
        raise UserError(
            f"config.json names {name:.80}, and of what a run's folder names only modules of "
            f'{", ".join(TRUSTED)} are imported.\nIf it is yours, name the config file that it is '
            'defined in or that imports it: --config=FILE[:variant]'
        )
    try:
        found: Any = importlib.import_module(module)
        for part in qualified.split('.'):
            found = getattr(found, part)
        if _name_of(found) != name:
            raise AttributeError(name)  # reached through a module that only imports it
        return found
    except (ImportError, AttributeError, ValueError):
        raise UserError(
            f'config.json names {name:.80}, which cannot be imported; was it renamed?'
        ) from None


# ---- help ---------------------------------------------------------------------------------------


def describe(config: Config) -> list[tuple[str, str, str, str]]:
    """(path, type, value, meaning) of every field that can be set from the command line."""
    rows = []
    for path, node in nodes(config):
        meanings = attribute_meanings(type(node))
        for field in fields(node):
            value = getattr(node, field.name)
            meaning = meanings.get(field.name, '')
            if dataclasses.is_dataclass(value):
                rows.append((f'{path}.{field.name}', type(value).__name__, '', meaning))
            elif not (isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value))):
                rows.append((f'{path}.{field.name}', type_name(field.type), repr(value), meaning))
    return rows


def type_name(kind: Any) -> str:
    return (
        kind.__name__
        if isinstance(kind, type) and not typing.get_args(kind)
        else str(kind).replace('typing.', '')
    )


def attribute_meanings(cls: type) -> dict[str, str]:
    """The `Attributes:` section of a class's docstring, base classes included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        section = re.search(
            r'Attributes:\n(.*?)(?:\n\s*\n|\Z)', inspect.cleandoc(base.__doc__ or ''), re.S
        )
        if section:
            name = None
            for line in section.group(1).splitlines():
                match = re.match(r'\s{2,4}(\w+):\s*(.*)', line)
                if match:
                    name = match.group(1)
                    found[name] = match.group(2)
                elif name and line.strip():
                    found[name] += ' ' + line.strip()
    return found


def clone(config: Config) -> Config:
    """A deep copy of the tree."""
    return copy.deepcopy(config)
