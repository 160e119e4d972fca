"""The bound on the time of a step, against hand-made schedules whose times are known."""

import pytest

from jaxdl.compiled import cards, roofline
from jaxdl.compiled.kernels import Collective, Done, HloLoop, Kernel, Launch, Schedule, Start

CLUSTER = cards.parse('h100x8x2')
PEAK, BANDWIDTH = 989.4e12, 3350e9
HOST = tuple(range(8))
ALL = tuple(range(16))


def product(seconds, dtype='bfloat16'):
    flops = seconds * CLUSTER.card.peak(dtype)
    return Launch(Kernel('dot', 'matmul', 'cuBLAS', dtype, flops, 0, ''))


def copy(seconds):
    return Launch(Kernel('add', 'other', 'XLA', '', 0.0, int(seconds * BANDWIDTH), ''))


def exchange(name, kind, size, groups=(HOST,), asynchronous=True):
    return Collective(name, kind, size, 'float32', groups, asynchronous, '')


def estimate(*events):
    return roofline.estimate(Schedule(events, ()), CLUSTER)


def test_a_kernel_takes_the_longer_of_its_two_times():
    found = estimate(product(2e-3), copy(1e-3))
    assert found.seconds == pytest.approx(3e-3)
    assert (found.compute, found.memory) == (pytest.approx(2e-3), pytest.approx(1e-3))
    both = Launch(Kernel('f', 'matmul', '', 'bfloat16', 1e-3 * PEAK, int(4e-3 * BANDWIDTH), ''))
    assert estimate(both).seconds == pytest.approx(4e-3)
    assert estimate(both).compute == 0


def test_float32_products_run_at_the_rate_of_tensor_float():
    kernel = Kernel('f', 'matmul', '', 'float32', 494.7e12, 0, '')
    assert estimate(Launch(kernel)).seconds == pytest.approx(1.0)


def test_loops_multiply():
    found = estimate(HloLoop(5, (product(1e-3), HloLoop(2, (copy(1e-3),)))))
    assert found.seconds == pytest.approx(5 * 3e-3)
    assert found.flops == pytest.approx(5e-3 * PEAK)


@pytest.mark.parametrize(
    ('kind', 'size', 'seconds'),
    [
        ('all-reduce', 450e9, 2 * 7 / 8),
        ('all-gather', 450e9, 7 / 8),
        ('reduce-scatter', 450e9, 7 / 8),
        ('all-to-all', 450e9, 7 / 8),
        ('collective-permute', 450e9, 1),
    ],
)
def test_collectives_inside_a_host(kind, size, seconds):
    found = exchange('c', kind, int(size))
    assert roofline.link(found, CLUSTER) == 'NVLink'
    assert roofline.collective_seconds(found, CLUSTER) == pytest.approx(seconds)


def test_all_reduce_over_two_hosts_is_bound_by_the_network():
    found = exchange('c', 'all-reduce', int(400e9), (ALL,))
    assert roofline.link(found, CLUSTER) == 'network'
    # Each host sends its reduced half and passes on the other: one buffer over 400 GB/s.
    # Inside the hosts 2 * 15/16 * 400 GB over 450 GB/s take longer.
    assert roofline.collective_seconds(found, CLUSTER) == pytest.approx(2 * 15 / 16 * 400 / 450)
    slow = cards.parse('h100x8x2', network=12.5e9)
    assert roofline.collective_seconds(found, slow) == pytest.approx(400 / 12.5)


def test_groups_across_hosts_share_the_network():
    pairs = tuple((i, i + 8) for i in range(8))
    found = exchange('c', 'all-reduce', int(50e9), pairs)
    assert roofline.collective_seconds(found, CLUSTER) == pytest.approx(1.0)
    permute = exchange('c', 'collective-permute', int(50e9), ((0, 8), (8, 0)))
    assert roofline.collective_seconds(permute, CLUSTER) == pytest.approx(1.0)


def test_offloading_runs_over_pcie():
    found = exchange('c', 'host-copy', int(63e9), ())
    assert roofline.link(found, CLUSTER) == 'PCIe'
    assert roofline.collective_seconds(found, CLUSTER) == pytest.approx(1.0)


def test_one_device_exchanges_nothing():
    found = exchange('c', 'all-reduce', 10**9, ((0,),))
    assert roofline.collective_seconds(found, CLUSTER) == 0


def gather(name, milliseconds, **kwargs):
    return exchange(name, 'all-gather', int(milliseconds * 1e-3 * 450e9 * 8 / 7), **kwargs)


def test_overlap_hides_what_runs_beside_it():
    found = estimate(Start(gather('a', 3)), product(2e-3), Done('a'), product(1e-3))
    assert found.seconds == pytest.approx(4e-3)
    assert found.communication == pytest.approx(3e-3)
    assert found.exposed == pytest.approx(1e-3)
    (exchanges,) = found.exchanges
    assert (exchanges.count, exchanges.overlapped, exchanges.link) == (1, 1, 'NVLink')


def test_synchronous_collectives_are_exposed():
    found = estimate(Start(gather('a', 3, asynchronous=False)), Done('a'), product(2e-3))
    assert found.seconds == pytest.approx(5e-3)
    assert found.exposed == pytest.approx(3e-3)
    assert found.exchanges[0].overlapped == 0


def test_two_exchanges_share_the_link():
    events = Start(gather('a', 3)), Start(gather('b', 3)), product(4e-3), Done('a'), Done('b')
    assert estimate(*events).seconds == pytest.approx(6e-3)


def test_parts_add_up_to_the_step():
    inner = Start(gather('a', 3)), product(1e-3), copy(1e-3), Done('a')
    found = estimate(HloLoop(4, inner), product(2e-3), Start(gather('b', 1)), Done('b'))
    assert found.seconds == pytest.approx(found.compute + found.memory + found.exposed)


def test_mfu_and_joules():
    assert roofline.mfu_bound(16 * PEAK, 2.0, CLUSTER, 'bfloat16') == pytest.approx(0.5)
    assert roofline.joules_upper(2.0, CLUSTER) == 2 * 16 * 700
