"""Trains a config, or resumes the run in the folder.

Without --workdir the run goes to runs/, into a folder named after the config and its overrides; the
same command finds it again. Under Slurm and Open MPI several processes find each other; otherwise
start each with --coordinator, --processes and --process. The signal SIGUSR2 traces the next steps
of a running job as --profile does. TERM, INT and USR1 save and end with exit code 75.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

from jaxdl.account import profiler
from jaxdl.core import config as config_lib
from jaxdl.core import flags
from jaxdl.run import cluster, runtime


def main(argv: Sequence[str]) -> None:
    environment = runtime.prepare_process()
    line = flags.CommandLine(
        __doc__ or '', example='--config=digits_cnn --config.optimizer.learning_rate=0.001'
    )
    line.config()
    line.string('workdir', 'DIR', 'the folder of the run')
    line.string('profile', 'START:STOP', 'trace these steps; prints the operations that take long')
    line.boolean('find_lr', 'train nothing; find a learning rate to begin with in a short test')
    line.boolean('plan', 'start only if the step fits the memory of the devices')
    cluster.define_flags(line)
    given = line.parse(argv)
    if given.config.deterministic:
        runtime.make_deterministic(environment)
    profile = profiler.parse(given.profile)
    processes = cluster.find(
        os.environ,
        coordinator=given.coordinator,
        processes=given.processes,
        process=given.process,
    )
    cluster.join(processes)
    runtime.open_devices()
    if given.find_lr:
        from jaxdl.run import find_rate

        print(find_rate.report(given.config), flush=True)
        return
    from jaxdl.run import loop  # slow to import, so only after the flags are read

    if given.plan:
        from jaxdl.plan import planning

        print(planning.require_fit(given.config), flush=True)
    workdir = given.workdir or default_workdir(argv)
    context = {'environment': environment, 'started': runtime.process_started()}
    result = loop.train(given.config, workdir, context=context, profile=profile)
    print(summary(result.metrics, workdir), flush=True)


def default_workdir(argv: Sequence[str]) -> str:
    """runs/NAME[-VARIANT][,FIELD=VALUE…], so that the same command finds the folder again."""
    filename, _, variant = flags.config_word(argv).partition(':')
    name = os.path.splitext(os.path.basename(filename))[0] + (f'-{variant}' if variant else '')
    parts = [
        f'{path}={text}'
        for path, text in sorted(flags.overrides_in(argv), key=lambda item: item[0])
        if not config_lib.may_change(f'config.{path}')
    ]
    label = ','.join([name, *(re.sub(r'[^\w.=,+-]', '_', part) for part in parts)])
    if len(label) > 120:
        label = f'{label[:100]}-{hashlib.sha256(label.encode()).hexdigest()[:12]}'
    return os.path.join('runs', label)


def summary(metrics: dict[str, Any], workdir: str) -> str:
    """One line with the results of the evaluation and the run's folder."""
    shown = [
        f'{name.removeprefix("eval/")} {value:.4f}'
        for name, value in metrics.items()
        if name.startswith('eval/') and isinstance(value, float) and not name.endswith('/examples')
    ]
    return f'done: {", ".join(shown) or "no evaluation sets"}; run folder {workdir}'
