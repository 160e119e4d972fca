"""The order of examples, and the ways in which batches are fetched ahead."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jaxdl.api import Source
from jaxdl.core.pipeline import CallIds, Load, Order, Prefetch, Workers, check_rows, eval_batches
from jaxdl.errors import UserError


class Squares(Source):
    """n → n², and who computed it; row 13 cannot be read where `broken`."""

    def __init__(self, size=20, broken=False):
        self.size, self.broken = size, broken

    def __len__(self):
        return self.size

    def fetch(self, ids):
        if self.broken and 13 in ids:
            raise UserError('example 13 cannot be read')
        time.sleep(0.001 * (ids[0] % 3))  # so that workers overtake one another
        return {'square': ids.astype(np.int64) ** 2, 'pid': np.full(len(ids), os.getpid())}


def load(source, batch_size=4):
    shapes = check_rows({'id': np.zeros(1, np.int32), **source.fetch(np.zeros(1, int))}, 1, None)
    ids = CallIds([(Order(len(source), batch_size, seed=3), 0)])
    return Load(source.fetch, ids, np.arange(batch_size), shapes)


def test_an_epoch_is_every_example_once_and_none_is_dropped():
    order = Order(10, 4, seed=1)
    ids = np.concatenate([order.batch(i) for i in range(5)])
    assert sorted(ids[:10]) == sorted(ids[10:]) == list(range(10))
    assert list(ids[:10]) != list(ids[10:])
    again = Order(10, 4, seed=1)
    assert [list(again.batch(i)) for i in (4, 0)] == [list(ids[16:20]), list(ids[:4])]
    assert list(Order(10, 4, seed=2).batch(0)) != list(ids[:4])


def test_a_batch_may_span_several_epochs():
    ids = Order(3, 8, seed=0).batch(2)
    assert len(ids) == 8 and set(ids) == {0, 1, 2}


def test_threads_may_ask_for_any_epoch():
    order, wrong = Order(50, 50, seed=0), []
    expected = [Order(50, 50, seed=0).batch(i) for i in range(12)]

    def ask(seed):
        for index in np.random.default_rng(seed).integers(0, 12, 200):
            if not np.array_equal(order.batch(index), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_evaluation_sees_each_example_once():
    batches = list(eval_batches(10, 4))
    assert [list(mask) for _, mask in batches] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    assert [i for ids, mask in batches for i, m in zip(ids, mask, strict=True) if m] == list(
        range(10)
    )


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_workers_keep_the_order(workers):
    make = load(Squares())
    fetch = Workers(make, 2, 12, ahead=3, workers=workers)
    try:
        found = [fetch.next() for _ in range(10)]
    finally:
        fetch.close()
    fetch.close()  # a second time does nothing
    for index, rows in enumerate(found, 2):
        ids = Order(20, 4, seed=3).batch(index)
        assert np.array_equal(rows['id'], ids) and np.array_equal(rows['square'], ids**2)
    pids = {int(rows['pid'][0]) for rows in found}
    assert pids == {os.getpid()} if workers == 0 else len(pids - {os.getpid()}) == workers
    for pid in pids - {os.getpid()}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize('workers', [0, 2])
def test_an_error_arrives_where_its_batch_would(workers):
    make = load(Squares(broken=True))
    bad = next(i for i in range(5) if 13 in make.ids(i))
    fetch = Workers(make, 0, 5, ahead=2, workers=workers)
    try:
        for index in range(bad):
            assert np.array_equal(fetch.next()['id'], make.ids(index))
        with pytest.raises(UserError, match='example 13 cannot be read'):
            fetch.next()
    finally:
        fetch.close()


def test_prefetch_is_the_same():
    make = load(Squares())
    fetch, other = Prefetch(make, 0, 6, 2), Workers(make, 0, 6, ahead=2)
    try:
        for _ in range(6):
            one, two = fetch.next(), other.next()
            assert all(np.array_equal(one[name], two[name]) for name in ('id', 'square'))
    finally:
        fetch.close()
        other.close()


CODE = """
import os, signal, sys, time
from tests.core.test_pipeline import Squares, load
from jaxdl.core.pipeline import Workers
if __name__ == '__main__':
    fetch = Workers(load(Squares(100)), 0, 100, ahead=2, workers=1)
    print(fetch.next()['pid'][0], flush=True)
    if sys.argv[1] == 'close':
        fetch.close()
    else:
        time.sleep(60)
"""


def start(tmp_path, word):
    script = tmp_path / 'main.py'
    script.write_text(CODE)
    return subprocess.Popen(
        [sys.executable, str(script), word],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': os.getcwd()},
    )


def test_a_process_ends_without_a_word_after_close(tmp_path):
    process = start(tmp_path, 'close')
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and errors == ''


def test_workers_ignore_signals_and_end_with_their_process(tmp_path):
    process = start(tmp_path, 'sleep')
    worker = int(process.stdout.readline())
    os.kill(worker, signal.SIGTERM)
    os.kill(worker, signal.SIGINT)
    time.sleep(0.5)
    os.kill(worker, 0)  # it lives
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if '\nState:\tZ' in open(f'/proc/{worker}/status').read():
            return  # nobody waits for it in a container, but it is gone
        time.sleep(0.2)
    raise AssertionError('the worker outlived its process')
