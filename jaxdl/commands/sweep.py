"""Runs many trials of a config; a second call with the same folder resumes.

Finished trials are skipped, and interrupted ones continue from their checkpoints. Ctrl-C saves and
stops all.
"""

import collections
import os
import sys
from pathlib import Path
from typing import Any

from jaxdl.core.flags import CommandLine
from jaxdl.errors import Preempted, UserError, nearest
from jaxdl.record.terminal import duration
from jaxdl.sweeps import estimate, slots
from jaxdl.sweeps import store as stores
from jaxdl.sweeps.display import Display, listing
from jaxdl.sweeps.local import Local
from jaxdl.sweeps.pool import Pool
from jaxdl.sweeps.search import Study
from jaxdl.sweeps.spec import Search, Sweep, Trial, load_sweep, text
from jaxdl.sweeps.store import Store

# Flags that only one launcher uses; they are refused with the other one.
ONLY = {
    'local': ('gpus', 'per_gpu', 'fork'),
    'slurm': (
        *('partition', 'hours', 'gpus_per_trial', 'cpus_per_trial', 'memory_gb'),
        'slurm_options',
    ),
}


def command_line() -> CommandLine:
    """The flags of the command."""
    line = CommandLine(
        __doc__ or '',
        words='FILE',
        example='experiments/sweeps/digits_lr_width.py --workdir=runs/lr_width',
    )
    line.string('workdir', 'DIR', 'the folder of the sweep')
    line.boolean('dry_run', 'print the trials and an estimate of the hours; start none')
    line.boolean('estimate', 'estimate the hours, by a few real steps', default=True)
    line.string('gpus', '0,1', 'the GPUs to use; all unless given')
    line.integer('per_gpu', 'trials on one GPU, each with its share of the memory', default=1)
    line.integer('slots', 'trials at a time on the CPU, or jobs at a time of Slurm', default=0)
    line.integer('vectorize', 'trials that share a program in one process', default=1, least=1)
    line.boolean('fork', 'fork trials from a process that has imported everything', default=True)
    line.choice('launcher', ['local', 'slurm'], 'where trials run')
    line.string('partition', 'NAME', 'Slurm partition')
    line.number('hours', 'Slurm time limit of one job', default=24.0)
    line.integer('gpus_per_trial', 'GPUs of a Slurm job', default=1)
    line.integer('cpus_per_trial', 'cores of a Slurm job', default=4)
    line.number('memory_gb', "memory of a Slurm job; 0: the cluster's default", default=0.0)
    line.string('slurm_options', "'--account=lab'", 'further options of sbatch', empty=True)
    return line


def main(argv: Any) -> int:
    given = command_line().parse(argv)
    words = given.words
    sweep = load_sweep(words[0])
    if not given.workdir and not given.dry_run:
        raise UserError('--workdir is missing: the folder of the sweep')
    _check_flags(sweep, given)
    store = Store(given.workdir) if given.workdir else None
    launcher = make_launcher(given, sweep, store.path if store else Path('sweep').absolute())
    try:
        checked = check(given, sweep, store, launcher, words[0])
        if given.dry_run:
            return dry_run(given, sweep, store, launcher, checked)
        assert store is not None
        return run(given, sweep, store, launcher, words[0], checked)
    finally:
        launcher.close()
        if store is not None:
            store.close()


def _check_flags(sweep: Sweep, values: Any) -> None:
    if values.vectorize > 1 and sweep.stopping is not None:
        raise UserError(
            f'--vectorize={values.vectorize}: trials in one program cannot be stopped early one by one; '
            f'take stopping={type(sweep.stopping).__name__} out of the sweep, or leave --vectorize out'
        )
    if values.launcher == 'local' and values.slots and (values.gpus or values.per_gpu != 1):
        raise UserError('--slots is for the CPU; leave it out with --gpus and --per_gpu')
    for launcher, names in ONLY.items():
        for name in names if launcher != values.launcher else ():
            if name in values.present:
                raise UserError(f'--{name} is for --launcher={launcher}; leave it out')


def make_launcher(values: Any, sweep: Sweep, folder: Path) -> Any:
    """The launcher that the flags ask for."""
    if values.launcher == 'slurm':
        from jaxdl.sweeps.slurm import Slurm

        return Slurm(
            folder,
            # A search needs results before it proposes more, so its jobs are not all queued.
            most=values.slots or (8 if isinstance(sweep.points, Search) else None),
            partition=values.partition,
            hours=values.hours,
            gpus=values.gpus_per_trial,
            cpus=values.cpus_per_trial,
            memory_gb=values.memory_gb,
            options=values.slurm_options,
            grace=sweep.grace,
        )
    gpus = slots.visible_gpus()
    if values.gpus or values.per_gpu != 1 or (gpus and not values.slots):
        places, env = slots.gpu_slots(values.gpus, values.per_gpu, gpus), {}
    else:
        cores = len(os.sched_getaffinity(0))
        places, env = slots.cpu_slots(values.slots or min(cores, 8)), {'JAX_PLATFORMS': 'cpu'}
    return Local(folder, places, fork=values.fork, env=env)


# ---- before the start ---------------------------------------------------------------------------


def check(given: Any, sweep: Sweep, store: Store | None, launcher: Any, file: str) -> list[Trial]:
    """Checks the configs and the metric of all trials, and returns the trials; starts nothing.

    Raises:
        UserError: a config, the metric or the folder is wrong.
    """
    trials = sweep.trials()
    probes = trials or _corners(sweep)
    seen: dict[Any, Trial] = {}
    for trial in trials:
        twin = seen.setdefault(trial.key(), trial)
        if twin is not trial:
            raise UserError(
                f'{file}: trials {twin.id} and {trial.id} are the same: {trial.label()}'
            )
    for trial, error in zip(probes, launcher.check(probes), strict=True):
        if error:
            raise UserError(f'{file}: trial {trial.id} ({trial.label()}): {error}')
        twin = seen.setdefault(trial.identity, trial)
        if twin is not trial and trials:
            raise UserError(
                f'{file}: trials {twin.id} ({twin.label()}) and {trial.id} ({trial.label()}) '
                'are the same run'
            )
    plan = store.plan() if store is not None else None
    if plan is None:
        check_metric(sweep, launcher, probes[0], file)
    if store is None:
        return trials
    if not given.dry_run:
        store.open()
    store.adopt(sweep, trials)
    if not given.dry_run and (trials or plan is None):
        store.save_plan(file, sweep, trials)
    return trials


def _corners(sweep: Sweep) -> list[Trial]:
    """Two trials of a search, at the ends of its ranges, to find wrong fields and values."""
    assert isinstance(sweep.points, Search)
    ends = []
    for end in (0, -1):
        point = {
            field: kind.values[end] if hasattr(kind, 'values') else (kind.low, kind.high)[end]
            for field, kind in sweep.points.space.items()
        }
        ends.append(sweep.trials_of(point, 0, 0)[0])
    return ends if ends[0].key() != ends[1].key() else ends[:1]


def check_metric(sweep: Sweep, launcher: Any, trial: Trial, file: str) -> None:
    """Raises UserError if runs of this sweep do not write its metric."""
    if sweep.metric.startswith(('perf/', 'energy/')):
        return  # the loop writes these where they can be measured, whatever the config
    try:
        names, unknown = launcher.metric_names(trial)
    except UserError as error:
        raise UserError(f'{file}: trial {trial.id} ({trial.label()}): {error}') from None
    if unknown:
        print(
            f'WARNING: could not tell which metrics {trial.config} writes ({unknown}); '
            f'{sweep.metric} is looked for in the first trial',
            file=sys.stderr,
        )
    elif sweep.metric not in names:
        raise UserError(
            f'{file}: metric={sweep.metric!r}: no run writes it{nearest(sweep.metric, names)}.\n'
            f'Metrics of {trial.config}: {", ".join(names)}'
        )


def dry_run(
    values: Any, sweep: Sweep, store: Store | None, launcher: Any, trials: list[Trial]
) -> int:
    """Prints the trials and how long they will take."""
    if isinstance(sweep.points, Search):
        total = sweep.points.points * len(sweep.seed_list())
        print(f'{total} trials of a {sweep.points.sampler} search over:')
        for field, kind in sweep.points.space.items():
            print(f'  {field}: {kind}')
        known_trials = _corners(sweep)
        launcher.check(known_trials)
    else:
        total, known_trials = len(trials), trials
        print('\n'.join(listing(trials)))
        print(f'{total} trials, {len({t.group for t in trials})} compiled programs')
    fixed = ', '.join(f'{k}={text(v)}' for k, v in sweep.overrides.items())
    print(f'base {sweep.config}{" with " + fixed if fixed else ""}; {sweep.mode} of {sweep.metric}')
    if not values.estimate:
        return 0
    if values.launcher != 'local':
        print('no estimate of the hours: the cluster is not this machine')
        return 0
    known, source = estimate.seconds_per_trial(store, launcher, known_trials)
    if not known:
        print('no estimate of the hours: a probe of a few steps did not finish')
        return 0
    mean = sum(known.values()) / len(known)
    left = [t for t in known_trials if store is None or not store.has_finished(t)]
    seconds = sum(known.get(t.group, mean) for t in left) * (total / len(known_trials))
    places = len(launcher.slots)
    print(
        f'about {duration(seconds / places)} ({seconds / places / 3600:.2f} h) on {places} slots, '
        f'{mean:.1f} s a trial alone; from {source}'
    )
    return 0


# ---- the run ------------------------------------------------------------------------------------


def run(
    given: Any, sweep: Sweep, store: Store, launcher: Any, file: str, trials: list[Trial]
) -> int:
    """Runs the unfinished trials of the sweep and prints the results."""
    study = None
    if isinstance(sweep.points, Search) or sweep.stopping is not None:
        study = Study(store.journal, sweep)
    if given.vectorize > 1:
        alone = collections.Counter(trial.alone for trial in trials if trial.alone)
        for why, count in sorted(alone.items()):
            print(f'{count} trials run alone: {why}')
    display = Display()
    pool = Pool(
        store,
        sweep,
        trials,
        launcher,
        display,
        study=study,
        together=given.vectorize,
        on_search=lambda trials: store.save_plan(file, sweep, trials),
    )
    try:
        found = pool.run()
    finally:
        display.close()
    if pool.signal:
        over = sum(found['counts'].get(name, 0) for name in stores.FINAL)
        if pool.killed:
            print(
                f'error: {pool.signal}: {over} of {len(pool.trials)} trials are over, '
                f'{len(pool.killed)} killed before saving; the same command resumes from their last '
                'checkpoints',
                file=sys.stderr,
            )
            return 1
        raise Preempted(
            f'{pool.signal}: {over} of {len(pool.trials)} trials are over, the others saved; '
            'the same command resumes'
        )
    return report(found, store)


def report(found: dict, store: Store) -> int:
    """Prints the counts, the best point and its command; 1 if a trial could not be run."""
    counts = ', '.join(f'{n} {name}' for name, n in sorted(found['counts'].items()))
    print(f'done: {counts}; {duration(found["wall"])} of processes in {store.path}')
    best = found['best']
    if best:
        spread = f' ± {best["deviation"]:.2g}' if best['deviation'] is not None else ''
        print(
            f'best {found["metric"]} {best["mean"]:.6g}{spread} (trials {", ".join(best["trials"])}):'
        )
        print(f'  {best["command"]}')
    broken = [t for t in found['trials'] if t['status'] not in stores.FINAL]
    for trial in broken[:10]:
        first = (trial['reason'].splitlines() or [''])[0]
        print(
            f'{trial["id"]} {trial["status"]}: {first}; see logs/{trial["id"]}.txt', file=sys.stderr
        )
    return 1 if broken else 0
