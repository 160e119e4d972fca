"""The experiments of the claims: their arithmetic, their results and pages, quick runs."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

from experiments import run as runner
from experiments.claims import CLAIMS, base, energy, fits, flexibility, libraries, page, throughput
from experiments.claims.base import Absent, Results, Settings
from jaxdl.account.energy import Meter
from jaxdl.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


# ---- the arithmetic ----


def test_amdahl_finds_the_two_times_and_the_law():
    batches = [1, 4, 16, 64, 256]
    fit = fits.fit_amdahl(batches, [3e-3 + 2e-4 * n for n in batches])
    assert (fit.fixed, fit.each) == pytest.approx((3e-3, 2e-4))
    p, n = 3 / 3.2, 64  # Amdahl: 1 / ((1 - p) + p / n)
    assert fit.speed_up(n) == pytest.approx(1 / ((1 - p) + p / n))
    assert fit.shared == pytest.approx(p) and fit.limit == pytest.approx(1 / (1 - p))
    assert fit.speed_up(fit.knee) == pytest.approx(fit.limit / 2)


def test_amdahl_is_the_least_squares_fit_of_scipy():
    rng = np.random.default_rng(0)
    batches = np.array([1.0, 2, 8, 32, 128])
    seconds = (1e-3 + 1e-4 * batches) * rng.uniform(0.8, 1.25, 5)
    rows = np.stack([np.ones(5), batches], 1) / seconds[:, None]
    wanted, _ = scipy.optimize.nnls(rows, np.ones(5))
    fit = fits.fit_amdahl(list(batches), list(seconds))
    assert (fit.fixed, fit.each) == pytest.approx(tuple(wanted))
    # Times that grow faster than the batch: nothing can be shared.
    fit = fits.fit_amdahl([1, 10], [1.0, 20.0])
    wanted, _ = scipy.optimize.nnls(np.array([[1, 1], [1 / 20, 10 / 20]]), np.ones(2))
    assert (fit.fixed, fit.each) == pytest.approx(tuple(wanted)) and fit.fixed == 0
    with pytest.raises(ValueError, match='two different'):
        fits.fit_amdahl([8, 8], [1.0, 1.1])


def test_cores_and_roofline():
    assert fits.parallel_share(1 / (0.2 + 0.8 / 4), 4) == pytest.approx(0.8)
    assert fits.parallel_share(0.9, 2) == 0 and fits.parallel_share(2.2, 2) == 1
    assert fits.roofline(2, 100e9, 10e9) == 20e9 and fits.roofline(50, 100e9, 10e9) == 100e9


def test_power_is_integrated_as_scipy_does():
    times = np.sort(np.random.default_rng(1).uniform(0, 60, 50))
    watts = 300 + 100 * np.sin(times)
    found = fits.integrated(list(times), list(watts))
    assert found == pytest.approx(scipy.integrate.trapezoid(watts, times))


def test_a_window_keeps_the_idle_part_apart():
    cost = fits.window(600.0, 4.0, steps=20, batch=64, flops=5e9, idle_watts=50)
    assert cost['idle_joules'] == 200 and cost['watts'] == 150
    assert cost['joules_per_step'] == 30 and cost['examples_per_joule'] == 20 * 64 / 600
    assert cost['flop_per_joule'] == 20 * 5e9 / 600
    assert fits.grams_of_carbon(3.6e6, 400) == 400
    assert fits.grams_of_carbon(3.6e6, None) is None and fits.grams_of_carbon(None, 400) is None


def test_largest_number_of_layers():
    few, each = 300, 70  # bytes: 300 without layers, 70 for each
    assert fits.largest(2, few + 2 * each, 6, few + 6 * each, few + 10.9 * each) == 10


def test_numbers_for_people():
    assert [base.number(x) for x in (0.01234, 45.67, 1234, 3.4e6, 8.87e12)] == [
        '0.0123', '45.7', '1,234', '3.4 M', '8.87 T',
    ]  # fmt: skip
    assert [base.duration(x) for x in (0.0021, 12, 300, 3 * 3600, 5 * 86400)] == [
        '2.1 ms', '12 s', '5 min', '3 hours', '5 days',
    ]  # fmt: skip


# ---- energy with a fake meter ----


class FakeNvml:
    """One card whose counter and power follow the clock: `power` watts at each second."""

    class NVMLError(Exception):
        pass

    def __init__(self, power, *, may_limit=True):
        self.begun, self.power, self.limit, self.may_limit = (
            time.monotonic(),
            power,
            300_000,
            may_limit,
        )

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return 1

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return 1e3 * self.power * (time.monotonic() - self.begun)

    def nvmlDeviceGetPowerUsage(self, handle):
        return 1e3 * self.power

    def nvmlDeviceGetPowerManagementLimit(self, handle):
        return self.limit

    def nvmlDeviceSetPowerManagementLimit(self, handle, milliwatts):
        if not self.may_limit:
            raise self.NVMLError('Insufficient Permissions')
        self.limit = milliwatts


def test_a_window_by_counter_and_by_samples(tmp_path):
    nvml = FakeNvml(250.0)
    with Meter(None, nvml=nvml, environ={}, powercap=tmp_path) as meter:
        one = energy.measure_window(
            meter, lambda: energy.run_for(lambda: time.sleep(0.02), 0.4),
            lambda: 0.8 * nvml.power,  # sensors that show too little
        )  # fmt: skip
    assert one['joules']['gpu'] == pytest.approx(250 * one['seconds'], rel=0.2)
    assert one['sampled_joules'] == pytest.approx(200 * one['seconds'])
    assert one['steps'] >= 5 and set(one['joules']) == {'gpu'}


def test_summary_of_windows():
    def made(joules, seconds, sampled=None):
        return {
            'joules': {'gpu': joules},
            'seconds': seconds,
            'steps': 10,
            'sampled_joules': sampled,
        }

    found = {
        'batch': 8, 'flops': 1e9, 'idle': [made(50.0, 1.0), made(140.0, 2.0)],
        'windows': [made(400.0, 2.0, 300.0), made(440.0, 2.0, 440.0)],
    }  # fmt: skip
    one = energy.summary(found, 'gpu')
    assert one['idle_watts'] == 60 and one['joules_per_step'] == 42
    assert one['deviation'] == pytest.approx(np.std([40, 44], ddof=1))
    assert one['sampling_error'] == pytest.approx(0.25)
    shown = energy.present({'windows': {**found, 'source': 'a fake meter'}}, 400.0)
    assert shown.label == 'measured' and '42 J a step' in shown.answer
    assert f'{42e3 / 3.6e6 * 400:.3g} g' in shown.tables[0][2][0]


def test_without_a_sensor_energy_is_unavailable():
    shown = energy.present({})
    assert shown.label == 'unavailable' and 'unavailable' in shown.answer
    assert not shown.tables and not any(char.isdigit() for char in shown.answer)


def test_power_limits_come_back_and_refusals_are_named():
    nvml = FakeNvml(100.0)
    with pytest.raises(ZeroDivisionError), energy.limited(nvml, [0], 200):
        assert nvml.limit == 200_000
        raise ZeroDivisionError
    assert nvml.limit == 300_000
    with (
        pytest.raises(Absent, match='refuses a limit of 200 W'),
        energy.limited(FakeNvml(1.0, may_limit=False), [0], 200),
    ):
        pass


# ---- throughput ----


def test_buckets_keep_the_sum_and_the_gap_is_seen():
    seconds = {'device': 3.0, 'data_wait': 1.0, 'compile': 2.0, 'import': 0.5, 'invented': 0.25}
    found = throughput.buckets(seconds)
    assert found['other'] == 0.75 and sum(found.values()) == pytest.approx(6.75)
    assert throughput.gap(6.75, seconds) == 0 and throughput.gap(7.5, seconds) == pytest.approx(0.1)


def test_the_slow_source_gives_the_same_rows_and_takes_its_time():
    rows = throughput.ArraySource({'x': np.arange(50)})
    slow = throughput.SlowSource(rows, 0.002)
    begun = time.monotonic()
    assert list(slow.fetch(np.array([3, 1]))['x']) == [3, 1]
    assert time.monotonic() - begun >= 0.004
    assert slow.in_memory()['x'].tolist() == list(range(50)) and len(slow) == 50


def test_convolution_as_written_is_the_formula():
    import scipy.signal

    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 6, 5, 3)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 3, 4)).astype(np.float32)
    found = libraries.as_written(images, kernel)
    np.testing.assert_allclose(libraries.by_shifts(images, kernel), found, atol=1e-4)
    for b in range(2):
        for out in range(4):
            wanted = sum(
                scipy.signal.correlate2d(images[b, :, :, c], kernel[:, :, c, out], mode='same')
                for c in range(3)
            )
            np.testing.assert_allclose(found[b, :, :, out], wanted, atol=1e-4)


# ---- flexibility ----


def test_every_config_file_is_in_the_table():
    stems = {path.stem for path in (ROOT / 'configs').glob('*.py')}
    assert {name.partition(':')[0] for name in flexibility.names()} == stems
    chosen = flexibility.families()
    assert {flexibility.family(flexibility.load(name)) for name in flexibility.names()} == set(
        chosen
    )


def test_configs_are_held_below_the_caps_and_say_what_changed():
    config = flexibility.load('lm_7b')
    small, changed = flexibility.shrunk(config, quick=True)
    assert small.model.layers == 1 and small.model.width == 64 and small.data.length == 64
    assert 'layers 32 → 1' in changed and 'width 4096 → 64' in changed
    assert config.model.layers == 32
    digits, changed = flexibility.shrunk(flexibility.load('digits_cnn'), quick=False)
    assert digits == flexibility.load('digits_cnn') or changed


def test_lines_that_name_a_family_are_found():
    source = '"""Cnn."""\nfrom models import Cnn\n# Cnn\nx = models.Cnn()\ny = Other(Cnn)\n'
    assert sorted(set(flexibility.lines_naming(source, {'Cnn'}))) == [2, 4, 5]


def test_the_core_names_no_family():
    assert flexibility.core_lines()['lines'] == []


# ---- results, command line, page ----


def test_results_go_on_where_they_stopped(tmp_path):
    calls = []

    def part(name, error=None):
        def work():
            calls.append(name)
            if error:
                raise error
            return {'of': name}

        return name, work

    parts = [part('a'), part('b', Absent('no such card')), part('c', RuntimeError('broken'))]
    Results(tmp_path, 'energy', quick=True).run(parts)
    again = Results(tmp_path, 'energy', quick=True)
    assert again.values() == {'a': {'of': 'a'}}
    assert again.without() == {'b': 'no such card', 'c': 'RuntimeError: broken'}
    again.run([part('a'), part('b'), part('c'), part('d')])
    assert calls == ['a', 'b', 'c', 'c', 'd']  # what failed is tried again, what is absent is not
    again.run([part('e')], seconds=-1)
    assert again.data['pending'] == ['e'] and 'e' not in calls
    with pytest.raises(UserError, match='quick mode, this call is in full'):
        Results(tmp_path, 'energy', quick=False)


def test_mistakes_on_the_command_line():
    with pytest.raises(UserError, match="'enrgy' is no claim; did you mean 'energy'"):
        runner.chosen('enrgy')
    assert runner.chosen('energy, parallelism') == ['parallelism', 'energy']
    with pytest.raises(UserError, match='power_limits=200,x'):
        runner.limits('200,x')
    assert runner.limits('200, 250') == (200, 250)


def test_the_page_holds_every_claim_and_needs_nothing_else(tmp_path):
    settings = Settings(True, str(tmp_path))
    account = {'device': 6.0, 'compile': 3.0, 'data_wait': 0.9}
    made = {
        'throughput': {'account': {'wall': 10.0, 'seconds': account, 'examples_per_s': 5.0, 'data_wait': 0.1, 'verdict': ''}},
        'energy': {},
    }  # fmt: skip
    for claim in CLAIMS:
        results = Results(tmp_path, claim, quick=True)
        parts = [(n, lambda v=v: v) for n, v in made.get(claim, {}).items()]
        results.run(parts or [('windows', _no_sensor)])
    path, answers = page.write(settings)
    text = path.read_text()
    assert list(answers) == list(CLAIMS)
    assert (
        answers['throughput'].label == 'measured'
        and 'within 1.00 %' in answers['throughput'].answer
    )
    assert answers['parallelism'].label == 'unavailable'
    assert text.count('<section') == 1 + len(CLAIMS) and 'no &lt;sensor&gt;' in text
    assert 'src="http' not in text and '<link' not in text and '<svg' in text


def _no_sensor():
    raise Absent('no <sensor>')


def python(words):
    """Runs python as a user would: with the devices of this machine, not the simulated ones."""
    env = {**os.environ, 'XLA_FLAGS': ''}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_two_claims_in_quick_mode(tmp_path):
    """From the command to the page; a second call has nothing left to do."""
    words = ['-m', 'experiments.run', 'throughput,energy', f'--workdir={tmp_path}', '--quick']
    done = python(words)
    while 'left for the next call' in done.stdout:  # on a slow machine; each call does at least one
        done = python(words)
    assert done.returncode == 0, done.stderr[-2000:]
    values = json.loads((tmp_path / 'throughput.json').read_text())['parts']
    account = values['account']['value']
    assert throughput.gap(account['wall'], account['seconds']) < 0.05
    assert 'input-bound' in values['slow source']['value']['verdict']
    waits = {name: part['value']['data_wait'] for name, part in values.items()}
    assert waits['set on the device'] < waits['slow source'] / 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'runs').rglob('*')}
    done = python(words)
    assert done.returncode == 0 and 'throughput [measured]' in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / 'runs').rglob('*')}
    assert (tmp_path / 'index.html').read_text().count('<svg') >= 2


@pytest.mark.slow
def test_a_line_through_layers_gives_the_bytes_of_bert_large(tmp_path):
    """The state of 24 layers lies on the line through those of 2 and of 6."""
    code = (
        'from experiments.claims import scalability as s; s.prepare(None); '
        "import json; print(json.dumps([s.state_bytes(n, {'data': 1, 'fsdp': 8}) for n in (2, 6, 24)]))"
    )
    done = python(['-c', code])
    few, more, all_ = json.loads(done.stdout.splitlines()[-1])
    each = (more['bytes'] - few['bytes']) / 4
    assert few['bytes'] + 22 * each == pytest.approx(all_['bytes'], rel=1e-6)
    from experiments.claims.scalability import largest_layers

    assert largest_layers([few, more], all_['bytes'] + 1)[0] == 24
    assert largest_layers([few, more], all_['bytes'] + 1)[1] == all_['parameters']
    assert dataclasses.asdict(Settings(True, str(tmp_path)))['quick']
