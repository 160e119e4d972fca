"""What is checked before a sweep starts: every trial's config, and the names of its metrics.

It imports jax, so it runs in a process that is forked from the fork server (jaxdl.sweeps.preload)
and never in the sweep's own process.
"""

import hashlib
import json
from typing import Any

from jaxdl.core import config as config_lib
from jaxdl.core import flags
from jaxdl.core.config import Config
from jaxdl.errors import UserError

# Metrics that the loop itself adds in every run.
LOOP_METRICS = (
    'train/learning_rate',
    'train/grad_norm',
    'perf/examples_per_s',
    'perf/step_time_ms',
    'perf/epoch',
)


def read_config(path: str, words: list[str]) -> Config:
    """The checked config of a trial, with its overrides applied."""
    config = flags.apply_overrides(flags.load_config(path), flags.overrides_in(['sweep', *words]))
    config = config_lib.completed(config)
    config_lib.check(config)
    return config


def identity(config: Config) -> str:
    """A hash that names the run; fields that a resume may change are left out.

    Where the data says what its bytes are, these count, and not where they lie.

    Raises:
        UserError: its files are not there.
    """
    data = config.data.fingerprint() if config.data.places else {}
    places = [f'config.data.{name}' for name in config.data.places] if data else []

    def strip(tree: Any, path: str) -> Any:
        if isinstance(tree, dict):
            return {
                key: strip(value, f'{path}.{key}')
                for key, value in tree.items()
                if not config_lib.may_change(f'{path}.{key}', places)
            }
        return [strip(item, path) for item in tree] if isinstance(tree, list) else tree

    words = json.dumps([strip(config_lib.to_json(config), 'config'), data], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def check_trials(trials: list[dict]) -> list[dict]:
    """For trials {'config', 'words'}: the fields of spec.Trial that depend on it, or {'error'}."""
    found = []
    for trial in trials:
        try:
            config = read_config(trial['config'], trial['words'])
            name = identity(config)
        except UserError as error:
            found.append({'error': str(error)})
            continue
        found.append(
            {
                'group': config_lib.program_key(config),
                'identity': name,
                'steps': config.steps,
                'deterministic': config.deterministic,
                'alone': config_lib.why_alone(config),
            }
        )
    return found


def metric_names(path: str, words: list[str]) -> list[str]:
    """The metrics that a run of this config writes; found by tracing, without compiling.

    It opens a backend, so call it in a separate process.
    """
    import jax
    import numpy as np

    from jaxdl.core import mesh as mesh_lib
    from jaxdl.core.program import Program

    jax.config.update('jax_platforms', 'cpu')
    config = read_config(path, words)
    rows = config.data.train_source().fetch(np.zeros(1, np.int64))
    rows = {**rows, 'id': np.zeros(1, np.int32)}
    program = Program(
        config,
        mesh_lib.make_mesh(config_lib.Mesh(), jax.devices()[:1]),
        {name: value[0] for name, value in rows.items()},
    )

    def batch(rows: dict, size: int, **more) -> dict:
        rows = {**rows, **more}
        return {k: jax.ShapeDtypeStruct((size, *v.shape[1:]), v.dtype) for k, v in rows.items()}

    derived = config.task.derived
    names: set[str] = set(LOOP_METRICS)

    def add(prefix: str, packing: Any) -> None:
        scalars = [k for k, shape in packing.shapes.items() if not shape and k[0] != '_']
        names.update(f'{prefix}/{k}' for k in (*scalars, *derived(dict.fromkeys(scalars, 1.0))))

    train = program.packing(program._plain.train_metrics, batch(rows, config.batch_size), {})
    add('train', train)
    for name, source in config.data.eval_sources().items():
        rows = {**source.fetch(np.zeros(1, np.int64)), 'id': np.zeros(1, np.int32)}
        size = config.eval_batch_size or config.batch_size
        packing = program.packing(
            program._plain.eval_metrics, batch(rows, size, mask=np.ones(1, np.float32)), {}
        )
        add(f'eval/{name}', packing)
        names.add(f'eval/{name}/examples')
    return sorted(names)
