"""Estimates how long a sweep takes, from finished trials or else from a few real steps."""

import shutil
import tempfile
import time
from pathlib import Path

from jaxdl.record.metrics_file import read_metrics
from jaxdl.sweeps.local import Job, Local
from jaxdl.sweeps.spec import Trial
from jaxdl.sweeps.store import Store

PROBE_STEPS = 20
PROBE_SECONDS = 120.0
MOST_PROBES = 6  # programs that are measured; the others are taken to need their mean


def seconds_per_trial(
    store: Store | None, launcher: Local, trials: list[Trial]
) -> tuple[dict[str, float], str]:
    """({group: seconds of one trial}, the origin of these numbers), without unknown groups."""
    found: dict[str, list[float]] = {}
    for trial in trials:
        if store is not None and store.has_finished(trial):
            seconds = store.state(trial.id).get('wall') or store.run_info(trial.id).get(
                'seconds', 0.0
            )
            found.setdefault(trial.group, []).append(float(seconds))
    known = {group: sum(values) / len(values) for group, values in found.items()}
    groups = {trial.group: trial for trial in reversed(trials) if trial.group not in known}
    probed = 0
    for group, trial in sorted(groups.items(), key=lambda item: item[1].id)[:MOST_PROBES]:
        seconds = probe(launcher, trial)
        if seconds is not None:
            known[group] = seconds
            probed += 1
    sources = []
    if found:
        sources.append(f'{sum(map(len, found.values()))} finished trials')
    if probed:
        sources.append(f'{PROBE_STEPS} steps of {probed} of {len(groups)} programs, run now')
    return known, ' and '.join(sources)


def probe(launcher: Local, trial: Trial) -> float | None:
    """Runs a trial for a few steps in a folder that is deleted; None if that did not work."""
    short = {
        'steps': PROBE_STEPS,
        'log_every': PROBE_STEPS // 2,
        'eval_every': 0,
        'checkpoint.every': 0,
        'checkpoint.best': '',
        'steps_per_call': 1,
        'divergence.policy': 'skip',
    }
    overrides = {k: v for k, v in trial.overrides.items() if k not in short}
    probe_trial = Trial(trial.id, 0, {}, None, trial.config, {**overrides, **short})
    folder = Path(tempfile.mkdtemp(prefix='jaxdl-probe-'))
    try:
        (folder / 'logs').mkdir()
        before, launcher.folder = launcher.folder, folder
        job, started = Job([probe_trial]), time.monotonic()
        launcher.start([job])
        launcher.folder = before
        ended = []
        while not ended:
            ended = launcher.poll(0.2)
            if not job.stopping and time.monotonic() - started > PROBE_SECONDS:
                job.stopping = 'slow'
                launcher.stop(job, now=True)
        wall = time.monotonic() - started
        rows = read_metrics(folder / 'trials' / trial.id / 'metrics.jsonl')
        times = [row['perf/step_time_ms'] / 1000 for row in rows if 'perf/step_time_ms' in row]
        if ended[0].code != 0 or not times:
            return None
        return max(0.0, wall - PROBE_STEPS * times[-1]) + trial.steps * times[-1]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
