"""Runs a sweep: python -m jaxdl sweep experiments/sweeps/NAME.py --workdir=DIR [--gpus=0,1,2,3]

A second call with the same workdir resumes: finished trials are skipped, broken ones go on from
their checkpoints. Ctrl-C saves and stops all.

  --workdir=DIR      the folder of the sweep
  --dry_run          print the trials, what differs, and an estimate of the hours; start none.
                     The estimate takes a few real steps; --noestimate leaves it out
  --gpus=0,1         the GPUs to use; all by default
  --per_gpu=K        trials on one GPU at a time, each with its share of the memory
  --slots=N          trials at a time, on the CPU (or jobs at a time with --launcher=slurm)
  --vectorize=K      train up to K trials that share a compiled program in one process, by vmap
  --[no]fork         fork trials from a process that has imported everything, or start each anew
  --launcher=slurm   submit the trials as a Slurm job array
      --partition=NAME --hours=H --gpus_per_trial=N --cpus_per_trial=N --memory_gb=N
      --slurm_options='--account=lab --qos=low'
"""

import os
import sys
from pathlib import Path
from typing import Any

from absl import flags

from jaxdl.core import flags as cli
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


def define_flags() -> None:
    flags.DEFINE_string('workdir', '', 'the folder of the sweep')
    flags.DEFINE_bool('dry_run', False, 'print the trials and an estimate of the hours; start none')
    flags.DEFINE_bool('estimate', True, 'estimate the hours, with --dry_run')
    flags.DEFINE_string('gpus', '', 'the GPUs to use, such as 0,1; all by default')
    flags.DEFINE_integer('per_gpu', 1, 'trials on one GPU at a time')
    flags.DEFINE_integer('slots', 0, 'trials at a time on the CPU')
    flags.DEFINE_integer('vectorize', 1, 'trials in one program')
    flags.DEFINE_bool('fork', True, 'fork trials from a process that has imported everything')
    flags.DEFINE_enum('launcher', 'local', ['local', 'slurm'], 'where trials run')
    flags.DEFINE_string('partition', '', 'Slurm partition')
    flags.DEFINE_float('hours', 24.0, 'Slurm time limit of one job')
    flags.DEFINE_integer('gpus_per_trial', 1, 'GPUs of a Slurm job')
    flags.DEFINE_integer('cpus_per_trial', 4, 'cores of a Slurm job')
    flags.DEFINE_float('memory_gb', 0.0, "memory of a Slurm job; 0: the cluster's default")
    flags.DEFINE_string('slurm_options', '', 'further options of sbatch')


def main(argv: Any) -> int:
    define_flags()
    words = cli.parse_flags(argv, __doc__ or '')
    values = flags.FLAGS
    if len(words) != 1:
        raise UserError(
            f'{"no sweep file was" if not words else str(len(words)) + " sweep files were"} given, for '
            'example: python -m jaxdl sweep experiments/sweeps/digits_lr_width.py --workdir=runs/lr_width'
        )
    sweep = load_sweep(words[0])
    if not values.workdir and not values.dry_run:
        raise UserError('--workdir is missing: the folder of the sweep')
    _check_flags(sweep)
    store = Store(values.workdir) if values.workdir else None
    launcher = make_launcher(sweep, store.path if store else Path('sweep').absolute())
    try:
        checked = check(sweep, store, launcher, words[0])
        if values.dry_run:
            return dry_run(sweep, store, launcher, checked)
        assert store is not None
        return run(sweep, store, launcher, words[0], checked)
    finally:
        launcher.close()
        if store is not None:
            store.close()


def _check_flags(sweep: Sweep) -> None:
    values = flags.FLAGS
    if values.vectorize < 1:
        raise UserError(f'--vectorize={values.vectorize}: must be at least 1')
    if values.vectorize > 1 and sweep.stopping is not None:
        raise UserError(
            f'--vectorize={values.vectorize}: trials in one program cannot be stopped early one by one; '
            f'take stopping={type(sweep.stopping).__name__} out of the sweep, or leave --vectorize out'
        )
    if values.slots < 0:
        raise UserError(f'--slots={values.slots}: must be at least 1')
    if values.launcher == 'local' and values.slots and (values.gpus or values.per_gpu != 1):
        raise UserError('--slots is for the CPU; leave it out with --gpus and --per_gpu')
    if values.launcher == 'slurm' and (values.gpus or values.per_gpu != 1):
        raise UserError('--launcher=slurm: Slurm chooses the GPUs; use --gpus_per_trial')


def make_launcher(sweep: Sweep, folder: Path) -> Any:
    """The launcher that the flags ask for."""
    values = flags.FLAGS
    if values.launcher == 'slurm':
        from jaxdl.sweeps.slurm import Slurm

        return Slurm(
            folder,
            # A search looks at results before it proposes more, so not all at once.
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


def check(sweep: Sweep, store: Store | None, launcher: Any, file: str) -> list[Trial]:
    """All trials, every config read and every mistake found; nothing was started.

    Raises:
        UserError: with what is wrong.
    """
    trials = sweep.trials()
    probes = trials or _corners(sweep)
    seen: dict[tuple, Trial] = {}
    for trial in trials:
        twin = seen.setdefault(trial.key(), trial)
        if twin is not trial:
            raise UserError(
                f'{file}: trials {twin.id} and {trial.id} are the same: {trial.label()}'
            )
    found = launcher.check(probes)
    same: dict[str, Trial] = {}
    for trial, entry in zip(probes, found, strict=True):
        if 'error' in entry:
            raise UserError(f'{file}: trial {trial.id} ({trial.label()}): {entry["error"]}')
        trial.group, trial.steps = entry['group'], entry['steps']
        twin = same.setdefault(entry['identity'], trial)
        if twin is not trial and trials:
            raise UserError(
                f'{file}: trials {twin.id} ({twin.label()}) and {trial.id} ({trial.label()}) '
                'are the same run'
            )
        if entry['deterministic']:
            launcher.forks = False  # its flags must be set before jax is imported
    plan = store.plan() if store is not None else None
    if plan is None:
        check_metric(sweep, launcher, probes[0], file)
    if store is None:
        return trials
    keys = {trial.key(): entry for trial, entry in zip(probes, found, strict=True)}
    if not flags.FLAGS.dry_run:
        store.open()
    store.adopt(sweep, trials, keys)
    if not flags.FLAGS.dry_run and trials:
        identities = {t.id: keys[t.key()]['identity'] for t in trials}
        store.save_plan(file, sweep, trials, identities)
    elif not flags.FLAGS.dry_run and plan is None:
        store.save_plan(file, sweep, [], {})
    return trials


def _corners(sweep: Sweep) -> list[Trial]:
    """Two trials of a search, at the ends of its ranges: enough to find wrong fields and values."""
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
        return  # written by the loop where they can be measured
    answer = launcher.metric_names(trial)
    if 'error' in answer:
        raise UserError(f'{file}: trial {trial.id} ({trial.label()}): {answer["error"]}')
    if 'names' in answer and sweep.metric not in answer['names']:
        names = answer['names']
        raise UserError(
            f'{file}: metric={sweep.metric!r}: no run writes it{nearest(sweep.metric, names)}.\n'
            f'Metrics of {trial.config}: {", ".join(names)}'
        )
    if 'unknown' in answer:
        print(
            f'WARNING: could not tell which metrics {trial.config} writes ({answer["unknown"]}); '
            f'{sweep.metric} is looked for in the first trial',
            file=sys.stderr,
        )


def dry_run(sweep: Sweep, store: Store | None, launcher: Any, trials: list[Trial]) -> int:
    """Prints the trials and how long they will take."""
    values = flags.FLAGS
    if isinstance(sweep.points, Search):
        total = sweep.points.points * len(sweep.seed_list())
        print(f'{total} trials of a {sweep.points.sampler} search over:')
        for field, kind in sweep.points.space.items():
            print(f'  {field}: {kind}')
        known_trials = _corners(sweep)
        for trial, entry in zip(known_trials, launcher.check(known_trials), strict=True):
            trial.group, trial.steps = entry['group'], entry['steps']
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


def run(sweep: Sweep, store: Store, launcher: Any, file: str, trials: list[Trial]) -> int:
    """Runs what is left of the sweep and prints what came out."""
    study = None
    if isinstance(sweep.points, Search) or sweep.stopping is not None:
        study = Study(store.journal, sweep)
    alone = {}
    if flags.FLAGS.vectorize > 1:
        for trial, entry in zip(trials, launcher.check(trials), strict=True):
            if entry['alone']:
                alone[trial.id] = entry['alone']
        for why in sorted(set(alone.values())):
            count = list(alone.values()).count(why)
            print(f'{count} trials run alone: {why}')
    identities: dict[str, str] = {}

    def write_down(everything: list[Trial], more: dict[str, str]) -> None:
        identities.update(more)
        store.save_plan(file, sweep, everything, identities)

    display = Display()
    pool = Pool(
        store,
        sweep,
        trials,
        launcher,
        display,
        study=study,
        together=flags.FLAGS.vectorize,
        alone=alone,
        on_search=write_down,
    )
    try:
        found = pool.run()
    finally:
        display.close()
    if pool.signal:
        over = sum(found['counts'].get(name, 0) for name in stores.FINAL)
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
