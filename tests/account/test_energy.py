"""The energy meter with a fake driver and a fake powercap tree."""

import pytest

from jaxdl.account import energy


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class FakeNvml:
    """Two to four GPUs with the functions of pynvml that are used."""

    class NVMLError(Exception):
        pass

    def __init__(self, count=2, *, counter=True, power=True, driver=True, names=None):
        self.energy = [1_000_000.0 * (i + 1) for i in range(count)]  # millijoules
        self.power = [100_000.0] * count  # milliwatts
        self.has = {'counter': counter, 'power': power, 'driver': driver}
        self.names = names or ['NVIDIA H100'] * count

    def nvmlInit(self):
        if not self.has['driver']:
            raise self.NVMLError('Driver Not Loaded')

    def nvmlDeviceGetCount(self):
        return len(self.energy)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, handle):
        return f'GPU-{handle}aaa-bbb'

    def nvmlDeviceGetName(self, handle):
        return self.names[handle]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if not self.has['counter']:
            raise self.NVMLError('Not Supported')
        return self.energy[handle]

    def nvmlDeviceGetPowerUsage(self, handle):
        if not self.has['power']:
            raise self.NVMLError('Not Supported')
        return self.power[handle]


@pytest.fixture
def make(tmp_path):
    made = []

    def make(nvml, previous=None, environ=None, clock=None, powercap=tmp_path, **kwargs):
        meter = energy.Meter(
            previous,
            nvml=nvml,
            environ=environ or {},
            clock=clock or Clock(),
            powercap=powercap,
            **kwargs,
        )
        made.append(meter)
        return meter

    yield make
    for meter in made:
        meter.close()


def test_counters_of_all_gpus_are_added(make):
    nvml, clock = FakeNvml(2), Clock()
    meter = make(nvml, clock=clock)
    nvml.energy = [1_000_500.0, 2_001_000.0]
    clock.now += 3
    reading = meter.read()['gpu']
    assert reading.joules == pytest.approx(1.5)
    assert reading.watts == pytest.approx(0.5)
    assert reading.source == 'NVML energy counter, 2 GPUs'
    assert meter.metrics() == {
        'energy/gpu_joules': pytest.approx(1.5),
        'energy/gpu_watts': pytest.approx(0.5),
    }


@pytest.mark.parametrize(
    ('visible', 'devices'),
    [
        ('1', [1]),
        ('2,0', [2, 0]),
        ('GPU-2aaa-bbb', [2]),
        ('GPU-1aaa, GPU-3', [1, 3]),
        ('', []),
        ('-1', []),
        ('0,9,1', [0]),
        ('1,1', [1]),
    ],
)
def test_only_visible_gpus_count(visible, devices):
    nvml = FakeNvml(4)
    assert energy.visible_devices(nvml, {'CUDA_VISIBLE_DEVICES': visible}) == devices


def test_a_process_counts_its_own_gpus(make):
    nvml = FakeNvml(4)
    meter = make(nvml, environ={'CUDA_VISIBLE_DEVICES': '3,2'}, local_devices=[0])
    nvml.energy = [energy + 1000 for energy in nvml.energy[:3]] + [nvml.energy[3] + 2000]
    assert meter.joules() == {'gpu': pytest.approx(2.0)}


def test_mixed_gpus_need_the_pci_order(make):
    nvml = FakeNvml(2, names=['NVIDIA H100', 'NVIDIA A100'])
    meter = make(nvml, environ={'CUDA_VISIBLE_DEVICES': '0'})
    assert 'CUDA_DEVICE_ORDER=PCI_BUS_ID' in meter.describe()
    environ = {'CUDA_VISIBLE_DEVICES': '0', 'CUDA_DEVICE_ORDER': 'PCI_BUS_ID'}
    assert energy.visible_devices(nvml, environ) == [0]


def test_power_is_integrated_without_a_counter(make):
    nvml, clock = FakeNvml(1, counter=False), Clock()
    meter = make(nvml, clock=clock)
    meter.close()  # only this test's own readings
    clock.now += 2
    nvml.power = [300_000.0]
    assert meter.read()['gpu'].joules == pytest.approx(2 * 200)
    assert 'power' in meter.describe()


@pytest.mark.parametrize(
    ('nvml', 'reason'),
    [
        (FakeNvml(driver=False), 'no NVIDIA driver'),
        (FakeNvml(counter=False, power=False), 'the GPU reports neither energy nor power'),
        (FakeNvml(0), 'no GPU is visible'),
    ],
)
def test_unavailable_is_never_zero(make, nvml, reason):
    meter = make(nvml)
    assert meter.read()['gpu'].joules is None
    assert meter.metrics() == {}
    assert meter.joules() == {}
    assert f'GPU: unavailable, {reason}' in meter.describe()


def test_mig_slices_have_no_counter(make):
    meter = make(FakeNvml(), environ={'CUDA_VISIBLE_DEVICES': 'MIG-123'})
    assert 'MIG' in meter.describe()


def test_a_counter_that_stands_still_is_no_measurement(make):
    meter = make(FakeNvml())
    assert meter.metrics() == {}
    assert 'has not moved' in meter.describe()


def test_totals_go_on_across_resumes(make):
    nvml = FakeNvml(1)
    first = make(nvml)
    nvml.energy[0] += 5000
    saved = first.joules()
    assert saved == {'gpu': pytest.approx(5.0)}
    second = make(nvml, saved)
    nvml.energy[0] += 1000
    assert second.joules() == {'gpu': pytest.approx(6.0)}


def test_a_run_measured_only_in_part_has_no_total(make):
    nvml = FakeNvml(1)
    meter = make(nvml, {})
    nvml.energy[0] += 1000
    assert meter.metrics() == {}
    assert 'earlier part of the run was not measured' in meter.describe()


def test_a_reloaded_driver_does_not_count_backwards(make):
    nvml = FakeNvml(1)
    meter = make(nvml)
    nvml.energy[0] = 2000.0
    assert meter.joules() == {'gpu': pytest.approx(2.0)}


def test_a_failing_sensor_does_not_end_the_run(make):
    nvml = FakeNvml(1)
    meter = make(nvml)
    nvml.energy[0] += 1000
    assert meter.joules()
    nvml.has['counter'] = False
    assert meter.metrics() == {}
    assert 'the sensor failed: Not Supported' in meter.describe()


# ---- RAPL


def zone(folder, name, value, top=1000):
    folder.mkdir(parents=True)
    (folder / 'name').write_text(name + '\n')
    (folder / 'energy_uj').write_text(f'{value}\n')
    (folder / 'max_energy_range_uj').write_text(f'{top}\n')
    return folder / 'energy_uj'


def test_rapl_counts_packages_and_memory_once_and_wraps(make, tmp_path):
    package = zone(tmp_path / 'intel-rapl:0', 'package-0', 900, top=1000)
    core = zone(tmp_path / 'intel-rapl:0:0', 'core', 0)
    dram = zone(tmp_path / 'intel-rapl:0:1', 'dram', 0)
    psys = zone(tmp_path / 'intel-rapl:1', 'psys', 0)
    mmio = zone(tmp_path / 'intel-rapl-mmio:0', 'package-0', 0)
    meter = make(FakeNvml(driver=False))
    package.write_text('100\n')  # past the end of the counter: 200 used
    dram.write_text('50\n')
    for other in (core, psys, mmio):
        other.write_text('77\n')
    assert meter.joules() == {'cpu': pytest.approx(250e-6)}
    assert 'CPU: RAPL, 1 package and memory (the whole machine' in meter.describe()


def test_rapl_for_root_alone(make, tmp_path, monkeypatch):
    zone(tmp_path / 'intel-rapl:0', 'package-0', 1)
    read = energy.pathlib.Path.read_text

    def refused(path, *args, **kwargs):
        if path.name == 'energy_uj':
            raise PermissionError(13, 'Permission denied')
        return read(path, *args, **kwargs)

    monkeypatch.setattr(energy.pathlib.Path, 'read_text', refused)
    meter = make(FakeNvml(driver=False))
    assert 'CPU: unavailable, the RAPL counters are readable by root alone' in meter.describe()


def test_no_rapl(make, tmp_path):
    meter = make(FakeNvml(driver=False), powercap=tmp_path / 'absent')
    assert 'CPU: unavailable, no RAPL counters' in meter.describe()


def test_this_machine_measures_or_says_why():
    with energy.Meter() as meter:
        for reading in meter.read().values():
            assert reading.joules is None or reading.joules > 0
            assert reading.source


def test_the_thread_reads_by_itself(make, monkeypatch):
    monkeypatch.setattr(energy, '_POWER_PERIOD', 0.001)
    monkeypatch.setattr(energy._PowerIntegral, 'period', 0.001)
    nvml = FakeNvml(1, counter=False)
    seen = energy.threading.Event()

    class Ticking(Clock):
        def __call__(self):
            self.now += 1.0
            if self.now > 120:
                seen.set()
            return self.now

    meter = make(nvml, clock=Ticking())
    assert seen.wait(timeout=30)
    assert meter.joules()['gpu'] > 0
