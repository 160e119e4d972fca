"""The account of a run: seconds, FLOP/s and joules, in one session and over several."""

import time

import jax
import jax.numpy as jnp
import pytest

from jaxdl.account import account, peak
from jaxdl.account.account import Account, Work, advice
from jaxdl.account.clock import Clock
from jaxdl.account.flops import Flops
from jaxdl.core.config import Checkpoint
from jaxdl.errors import UserError
from jaxdl.record.metrics_file import read_metrics
from jaxdl.run.loop import train
from tests import small


class Now:
    """A clock that a test moves."""

    def __init__(self, monkeypatch, unix=1_000_000.0):
        self.time = 0.0
        monkeypatch.setattr(time, 'monotonic', lambda: self.time)
        monkeypatch.setattr(account.time, 'time', lambda: unix + self.time)

    def spend(self, clock, name, seconds):
        with clock(name):
            self.time += seconds


class FakeMeter:
    """Counts what it is told; `before` is what `go_on` gave."""

    before: dict | None = None
    used = 0.0

    def go_on(self, previous):
        self.before = previous

    def joules(self):
        return {} if self.before == {} else {'gpu': (self.before or {}).get('gpu', 0) + self.used}

    def metrics(self):
        return {f'energy/{name}_joules': value for name, value in self.joules().items()}

    def describe(self):
        return 'GPU: counted'


@pytest.fixture
def now(monkeypatch):
    return Now(monkeypatch)


def test_the_buckets_are_the_wall_time(now):
    clock = Clock()
    made = Account(clock, None, batch_size=8)
    made.begin(None)
    now.spend(clock, 'compile', 3)
    now.spend(clock, 'device', 5)
    now.time += 2
    row = made.metrics()
    assert row['perf/time_compile_s'] == 3 and row['perf/time_device_s'] == 5
    assert row['perf/wall_s'] == 10 == sum(v for k, v in row.items() if '/time_' in k)


def test_a_killed_session_is_lost_from_its_checkpoint_on(now):
    clock = Clock()
    first = Account(clock, None, batch_size=8)
    first.begin(None)
    now.spend(clock, 'device', 7)
    extra = first.extra()
    saved = extra['time']
    # It went on for 20 s, wrote its last line after 12 of them, and was killed.
    now.time += 100
    run = {'started': '1970-01-12T13:46:40+00:00', 'lost_seconds': 1.5}
    second = Account(Clock(), None, batch_size=8, run=run, last_row={'time': saved + 12})
    second.begin(extra)
    assert second.lost == pytest.approx(13.5)
    assert second.facts()['lost_seconds'] == 13.5
    now.spend(second.clock, 'device', 4)
    assert second.seconds() == {'device': 11, 'lost': 13.5}
    # A third session from the second's checkpoint does not lose the same seconds again.
    third = Account(
        Clock(), None, batch_size=8, run={**run, **second.facts()}, last_row={'time': saved}
    )
    third.begin(second.extra())
    assert third.seconds() == pytest.approx({'device': 11, 'lost': 13.5})


def test_a_session_killed_before_its_first_checkpoint_is_lost_from_its_start(now):
    started = '2026-01-01T00:00:00+00:00'
    made = Account(
        Clock(),
        None,
        batch_size=8,
        run={'started': started},
        last_row={'time': account._unix(started) + 30},
    )
    made.begin(None)
    assert made.lost == 30


def test_a_roll_back_loses_the_work_since_the_checkpoint(now):
    clock = Clock()
    made = Account(clock, None, batch_size=8)
    made.begin(None)
    now.spend(clock, 'compile', 2)
    now.spend(clock, 'device', 5)
    made.keep()
    now.spend(clock, 'checkpoint', 1)
    now.spend(clock, 'device', 3)
    now.spend(clock, 'log', 0.5)
    made.undo()
    assert made.seconds() == {
        'compile': 2, 'device': 5, 'checkpoint': 1, 'lost': 3.5,
    }  # fmt: skip
    now.spend(clock, 'device', 1)
    made.undo()
    assert made.seconds()['lost'] == 4.5
    # … also in a later session.
    again = Account(Clock(), None, batch_size=8, run={'started': ''})
    again.begin(made.extra())
    assert again.seconds() == made.seconds()


def test_energy_goes_on_where_the_last_line_was(now):
    first = Account(Clock(), FakeMeter(), batch_size=8)
    first.begin(None)
    assert first.meter.before is None
    first.meter.used = 50.0
    extra = first.extra()
    assert extra['joules'] == {'gpu': 50.0}
    second = Account(
        Clock(), FakeMeter(), batch_size=8, run={'started': ''},
        last_row={'energy/gpu_joules': 70.0},
    )  # fmt: skip
    second.begin(extra)
    second.meter.used = 5.0
    assert second.metrics()['energy/gpu_joules'] == 75.0


def test_energy_goes_on_where_the_checkpoint_is_newer_than_the_last_line(now):
    made = Account(
        Clock(), FakeMeter(), batch_size=8, run={'started': ''},
        last_row={'energy/gpu_joules': 30.0},
    )  # fmt: skip
    made.begin({'seconds': {}, 'time': 0.0, 'joules': {'gpu': 50.0}})
    assert made.metrics()['energy/gpu_joules'] == 50.0


def test_energy_that_was_not_measured_before_has_no_total(now):
    made = Account(Clock(), FakeMeter(), batch_size=8, run={'started': ''})
    made.begin({'seconds': {}, 'time': 0.0, 'joules': {}})
    assert made.meter.before == {}
    assert not any(name.startswith('energy') for name in made.metrics())


def test_speed(now):
    clock = Clock()
    made = Account(clock, None, batch_size=8)
    made.work = Work(flops=2e9, peak=4e10)
    now.time = 3.0
    made.first_step()
    now.time = 9.0
    made.first_step()
    row = made.speed(10, 0.5)
    assert row['perf/first_step_s'] == 3.0
    assert row['perf/examples_per_s'] == 16 and row['perf/step_time_ms'] == 500
    assert row['perf/flops_per_s'] == 4e9 and row['perf/mfu'] == pytest.approx(0.1)
    now.spend(clock, 'data_wait', 1)
    row = made.speed(20, 0.5)
    assert row['perf/data_wait'] == pytest.approx(0.2) and 'perf/first_step_s' not in row
    # The next interval counts only its own waiting: 3 of 12 seconds.
    now.spend(clock, 'device', 9)
    now.spend(clock, 'data_wait', 3)
    row = made.speed(26, 2.0)
    assert row['perf/data_wait'] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ('seconds', 'placement', 'words'),
    [
        (dict(device=6, data_wait=4), 'host', ('input-bound: 40 %', 'placement=device')),
        (dict(device=6, data_wait=4), 'stream', ('input-bound', 'prefetch')),
        (dict(device=8, transfer=2), 'host', ('transfer-bound: 20 %',)),
        (dict(device=5, lost=5), 'device', ('50 % was lost', 'checkpoint.every')),
        (dict(device=5, evaluation=5), 'device', ('eval_every',)),
        (dict(device=5, checkpoint=5), 'device', ('checkpoint.every',)),
        (dict(device=5, log=5), 'device', ('log_every',)),
        (dict(device=5, dispatch=5), 'device', ('dispatch-bound: 50 %', 'steps_per_call')),
        (dict(device=1, compile=9), 'device', ('start-up took 90 %',)),
        (dict(device=9, compile=1), 'device', ('bound by the device',)),
    ],
)
def test_advice(seconds, placement, words):
    text = advice(seconds, placement=placement)
    assert all(word in text for word in words), text


def test_work_on_several_devices(monkeypatch):
    monkeypatch.setenv(peak.OVERRIDE, '5e11')
    count = Flops(matmul=6e9, by_dtype={'float32': 6e9})
    cpu = jax.devices()[:4]
    assert Work.of(count, cpu, 3) == Work(2e9, 5e11)  # one CPU, simulated four times

    class Gpu:
        platform, device_kind = 'gpu', 'NVIDIA H100 80GB HBM3'

    assert Work.of(count, [Gpu()] * 4).peak == 2e12
    monkeypatch.delenv(peak.OVERRIDE)
    half = Work.of(Flops(matmul=6e9, by_dtype={'bfloat16': 5e9, 'float32': 1e9}), [Gpu()] * 4)
    assert half.peak == pytest.approx(4 * 989.4e12, rel=1e-3)  # NVIDIA's data sheet, dense
    Gpu.device_kind = 'something new'
    assert Work.of(count, [Gpu()]).peak is None


def test_a_peak_that_is_no_number(monkeypatch):
    monkeypatch.setenv(peak.OVERRIDE, 'fast')
    with pytest.raises(UserError, match='JAXDL_PEAK_FLOPS=fast'):
        peak.of(jax.devices()[0], {})


def test_a_cpu_is_measured_once(monkeypatch, tmp_path):
    monkeypatch.delenv(peak.OVERRIDE)
    monkeypatch.setenv('JAXDL_CACHE', str(tmp_path))
    asked = []
    monkeypatch.setattr(peak.cards, 'cpu_peak', lambda dtype: asked.append(dtype) or 1e11)
    for _ in range(2):
        assert peak.of(jax.devices()[0], {'bfloat16': 1.0}).flops == 1e11
    assert asked == ['bfloat16']
    made = Account(Clock(), None, batch_size=8)
    made.work = Work.of(Flops(matmul=1e9, by_dtype={'bfloat16': 1e9}), jax.devices()[:1])
    made.speed(1, 0.02)  # half of the peak
    assert (tmp_path / 'peak.json').exists()
    made.speed(2, 0.005)  # twice the peak: it was taken on a busy machine
    assert not (tmp_path / 'peak.json').exists()
    (tmp_path / 'peak.json').write_text('{torn')
    assert peak.of(jax.devices()[0], {}).flops == 1e11
    assert asked == ['bfloat16', 'float32']


def test_a_run_accounts_for_itself_and_a_resumed_one_for_both(tmp_path, capsys):
    def run(steps):
        begin = time.monotonic()
        train(
            small.config(steps=steps, eval_every=0, checkpoint=Checkpoint(every=4)),
            str(tmp_path / 'run'),
            context={'started': begin},
        )
        return time.monotonic() - begin

    took = run(8)
    said = capsys.readouterr().out
    rows = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
    seconds = {k: v for k, v in rows[-1].items() if '/time_' in k}
    assert sum(seconds.values()) == pytest.approx(rows[-1]['perf/wall_s'])
    # What follows the last line is the closing of files.
    assert rows[-1]['perf/wall_s'] == pytest.approx(took, abs=0.5 + 0.01 * took)
    assert {'perf/time_compile_s', 'perf/time_device_s', 'perf/time_checkpoint_s'} <= set(seconds)
    first = next(row for row in rows if 'perf/first_step_s' in row)
    assert 0 < first['perf/first_step_s'] < took
    assert all(0 < row['perf/mfu'] for row in rows if 'perf/step_time_ms' in row)
    assert f'{rows[-1]["perf/wall_s"]:.1f} s: ' in said
    assert not any(name.startswith('energy/') and not value for name, value in rows[-1].items())

    took += run(16)
    row = read_metrics(tmp_path / 'run' / 'metrics.jsonl')[-1]
    assert row['perf/wall_s'] == pytest.approx(took, abs=1.0 + 0.01 * took)


def test_flops_of_a_run_are_those_of_the_formula(tmp_path):
    config = small.config(steps=4, eval_every=0, log_every=2, checkpoint=Checkpoint())
    train(config, str(tmp_path / 'run'))
    rows = read_metrics(tmp_path / 'run' / 'metrics.jsonl')
    row = next(row for row in rows if 'perf/flops_per_s' in row)
    flops = row['perf/flops_per_s'] * row['perf/step_time_ms'] / 1000
    # 8×8 images, a 3×3 convolution to 8 channels, pooled, dense layers of 16 and 10; the backward
    # pass is twice the forward pass, but the images need no gradient.
    forward = 2 * 48 * (64 * 9 * 8 + 128 * 16 + 16 * 10)
    assert flops == pytest.approx(3 * forward - 2 * 48 * 64 * 9 * 8, rel=0.02)
    assert row['perf/mfu'] == pytest.approx(row['perf/flops_per_s'] / 1e11)


def test_several_steps_in_one_program_count_per_step():
    from jaxdl.account import flops

    def product(x, _):
        return x @ x, None

    count = flops.count(lambda x: jax.lax.scan(product, x, None, length=4)[0], jnp.ones((8, 8)))
    assert Work.of(count, jax.devices()[:1], 4).flops == 2 * 8**3
