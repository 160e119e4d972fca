"""The sweeps under experiments/sweeps: each loads, every trial's config is right, the metric exists."""

import glob
import os
import subprocess
import sys

import pytest

from jaxdl.data import prepare
from jaxdl.sweeps.spec import load_sweep
from tests.conftest import ROOT
from tests.data import archives

# {name: (trials, compiled programs, what a line of the list of trials shows)}
SHIPPED = {
    'digits_lr_width': (32, 4, '(16, 32)'),
    'cifar_ablation': (45, 9, 'cifar_ablation:no_flip'),
    'lm_optimizers': (16, 4, 'lm_optimizers:sgd'),
    'minatar_all': (40, 8, 'minatar_breakout_pqn'),
    'rl_seeds': (25, 5, 'memory_rnn_ppo:forward'),
    'value_seeds': (15, 3, 'pendulum_sac'),
}


def test_all_are_named_here():
    names = [os.path.basename(p)[:-3] for p in glob.glob(str(ROOT / 'experiments/sweeps/*.py'))]
    assert sorted(names) == sorted(SHIPPED)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder of prepared data that holds a CIFAR-10 of random pixels."""
    folder = tmp_path_factory.mktemp('data')
    archives.write_cifar10(folder / 'originals', archives.random_set((32, 32, 3), 10))
    prepare.prepare('cifar10', folder / 'prepared', folder / 'originals')
    return folder / 'prepared'


@pytest.mark.parametrize('name', SHIPPED)
def test_dry_run(name, data, tmp_path):
    file, (trials, programs, shows) = f'experiments/sweeps/{name}.py', SHIPPED[name]
    done = subprocess.run(
        [sys.executable, '-m', 'jaxdl', 'sweep', file, f'--workdir={tmp_path / "out"}', '--dry_run', '--noestimate'],
        cwd=ROOT, env={**os.environ, 'JAXDL_DATA': str(data)}, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f'{trials} trials, {programs} compiled programs' in done.stdout
    assert shows in done.stdout and load_sweep(file).metric in done.stdout
    assert not (tmp_path / 'out').exists()


def test_the_process_that_runs_a_sweep_imports_no_jax():
    """Then it cannot open a device, whatever a sweep file does in get_sweep."""
    words = (
        'import sys, glob, jaxdl.commands.sweep, jaxdl.sweeps.slurm; from jaxdl.sweeps import spec; '
        'print([spec.load_sweep(p).config for p in glob.glob("experiments/sweeps/*.py")]); '
        'sys.exit("jax" in sys.modules)'
    )
    subprocess.run([sys.executable, '-c', words], cwd=ROOT, check=True, capture_output=True)
