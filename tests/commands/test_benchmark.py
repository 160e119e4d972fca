"""The data benchmark: its stages do the work of a run, and its words follow from the numbers."""

import subprocess
import sys

import numpy as np
import pytest

from jaxdl.commands import benchmark
from jaxdl.core.pipeline import CallIds, Load, Order, Workers, check_rows
from jaxdl.data.images.tfds import Tfds
from tests.data.test_tfds import JaxdlTestPhotos


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Thirty photos on disk, scaled to 8×8, as a source that decodes."""
    assert JaxdlTestPhotos.VERSION
    root = str(tmp_path_factory.mktemp('photos'))
    return Tfds('jaxdl_test_photos', data_dir=root, image_size=8, in_memory_bytes=0).train_source()


def test_stages_of_records(photos):
    ids = np.asarray([3, 1, 2])
    found = {name: call for name, call in photos.stages(ids)}
    assert list(found) == ['read', 'decode']
    row = 8 * 8 * 3 + 6 * 6 + 4 + 4
    assert found['decode']() == (3, 3 * row)
    assert found['read']()[0] == 3  # the compressed examples
    assert found['read']()[1] > 3 * 6 * 6


def test_workers_decode_the_same_records(photos):
    order = Order(len(photos), 6, seed=0)
    one = photos.fetch(np.zeros(1, int))
    shapes = check_rows({'id': np.zeros(1, np.int32), **one}, 1, None)
    fetch = Workers(
        Load(photos.fetch, CallIds([(order, 0)]), np.arange(6), shapes), 0, 4, ahead=2, workers=1
    )
    try:
        for index in range(4):
            rows, expected = fetch.next(), photos.fetch(order.batch(index))
            assert all(np.array_equal(rows[name], expected[name]) for name in expected)
    finally:
        fetch.close()


def test_measure(monkeypatch):
    now = [0.0]

    def call():
        now[0] += 0.5
        return 10, 4000

    monkeypatch.setattr(benchmark.time, 'perf_counter', lambda: now[0])
    assert benchmark.measure(call, 3.0) == (20.0, 8000.0)


@pytest.mark.parametrize(
    ('rates', 'words'),
    [
        (dict(batch=9, stream=4000.0, transfer=8000.0, step=1000.0), 'comes 4.0× as fast'),
        (dict(batch=9, stream=250.0, transfer=8000.0, step=1000.0), 'stream delivers 250 of'),
        (dict(batch=9, stream=500.0, transfer=400.0, step=1000.0), 'would wait 60 % of the time'),
        (dict(batch=9, stream=500.0, transfer=400.0), ''),
    ],
)
def test_verdict(rates, words):
    assert words in benchmark.verdict(rates)


def test_command():
    result = subprocess.run(
        [
            sys.executable, '-m', 'jaxdl', 'benchmark', '--config=configs/digits_cnn.py',
            '--config.placement=stream', '--config.model.channels=(4,)', '--config.model.pools=1',
            '--seconds=0.05',
        ],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == '1,438 records of 72 bytes, batches of 64, placement stream'
    table = {line.split()[0]: float(line.split()[1].replace(',', '')) for line in lines[2:-1]}
    assert list(table) == ['batch', 'stream', 'transfer', 'step']
    fast = min(table['stream'], table['transfer']) >= table['step']
    assert ('as fast as the step' in lines[-1]) == fast
