"""The least time that a compiled step can take on given cards, and where it goes.

The roofline (Williams, Waterman and Patterson, CACM 52(4), 2009), kernel by kernel along the
compiled schedule: a kernel takes the longer of its FLOPs at the card's peak and its bytes at the
memory's bandwidth; a collective takes its bytes at the link's bandwidth, beside the kernels
scheduled between its start and its end. Real kernels reach 50 to 90 % of a peak, launches and
latencies come on top: this is a bound, not a prediction.
"""

import dataclasses
import math

from jaxdl.compiled.cards import Cluster
from jaxdl.compiled.kernels import Collective, Done, Event, HloLoop, Kernel, Launch, Schedule, Start


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What the collectives of one kind over one link cost.

    Attributes:
        kind: 'all-reduce', ...
        link: 'NVLink', 'PCIe' or 'network'.
        dtype: of the arrays.
        count: collectives in a step.
        bytes: of their buffers in a step.
        wire_bytes: that one device sends in a step.
        seconds: their time in a step, overlapped or not.
        overlapped: how many of them have compute between start and end.
    """

    kind: str
    link: str
    dtype: str
    count: int
    bytes: float
    wire_bytes: float
    seconds: float
    overlapped: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The least time of a step and its parts, in seconds, per device.

    Attributes:
        seconds: of the step: compute + memory + exposed.
        compute: of the kernels that are bound by arithmetic.
        memory: of the kernels that are bound by memory traffic.
        communication: of all collectives, overlapped or not.
        exposed: of the collectives, where the device waits for them.
        flops: of the products that one device executes, as compiled.
        bytes: that one device moves to and from its memory.
        exchanges: the collectives by kind and link.
    """

    seconds: float
    compute: float
    memory: float
    communication: float
    exposed: float
    flops: float
    bytes: float
    exchanges: tuple[Exchange, ...]


def kernel_seconds(kernel: Kernel, cluster: Cluster) -> tuple[float, float]:
    """(arithmetic, memory): the least times that a kernel needs for each."""
    card = cluster.card
    arithmetic = kernel.flops / card.peak(kernel.dtype) if kernel.flops else 0.0
    return arithmetic, kernel.bytes / card.memory_bandwidth


def link(collective: Collective, cluster: Cluster) -> str:
    """The slowest link that a collective uses."""
    if collective.kind == 'host-copy':
        return 'PCIe'
    if cluster.hosts > 1 and collective.crosses(cluster.gpus_per_host):
        return cluster.network_link[0]
    return cluster.host_link[0]


def collective_seconds(collective: Collective, cluster: Cluster) -> float:
    """The least time of a collective: the longer of its part inside hosts and between them."""
    if collective.kind == 'host-copy':
        return collective.bytes / cluster.card.pcie_bandwidth
    n = collective.size
    if n <= 1:
        return 0.0
    inside = collective.wire_bytes / cluster.host_link[1]
    if link(collective, cluster) != cluster.network_link[0]:
        return inside
    # All groups use a host's network at once; a group's share is that of its GPUs in the host.
    group = max(collective.groups, key=len)
    hosts = len({device // cluster.gpus_per_host for device in group})
    per_host = math.ceil(n / hosts)
    share = cluster.network_bandwidth * per_host / cluster.gpus_per_host
    if collective.kind in ('collective-permute', 'collective-broadcast'):
        return collective.bytes / cluster.network_link[1]
    if collective.kind in ('all-to-all', 'ragged-all-to-all'):
        return per_host * collective.bytes * (n - per_host) / n / share
    leaving = collective.bytes * (hosts - 1) / hosts * (2 if collective.kind == 'all-reduce' else 1)
    # Only the part within the host goes over its links.
    within = collective.wire_bytes if per_host > 1 else 0.0
    return max(within / cluster.host_link[1], leaving / share)


def estimate(program: Schedule, cluster: Cluster) -> Estimate:
    """The least time of one execution of `program`."""
    totals = _Totals(cluster)
    seconds, busy = totals.run(program.events, 1)
    return Estimate(
        seconds=seconds,
        compute=totals.compute,
        memory=totals.memory,
        communication=totals.communication,
        exposed=max(0.0, seconds - busy),
        flops=sum(kernel.flops * times for kernel, times in program.kernels()),
        bytes=program.bytes,
        exchanges=tuple(_exchanges(program, cluster)),
    )


class _Totals:
    """Two clocks along the schedule: one of the compute stream, one of the links."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.compute = self.memory = self.communication = 0.0

    def run(self, events: tuple[Event, ...], times: int) -> tuple[float, float]:
        """(seconds, seconds in kernels) of running `events` once; adds them `times` times."""
        now = links = busy = 0.0
        ends: dict[str, float] = {}
        for event in events:
            if isinstance(event, Launch):
                arithmetic, memory = kernel_seconds(event.kernel, self.cluster)
                if arithmetic >= memory:
                    self.compute += arithmetic * times
                else:
                    self.memory += memory * times
                now += max(arithmetic, memory)
                busy += max(arithmetic, memory)
            elif isinstance(event, HloLoop):
                seconds, working = self.run(event.body, times * event.turns)
                now += seconds * event.turns
                busy += working * event.turns
            elif isinstance(event, Start):
                seconds = collective_seconds(event.collective, self.cluster)
                self.communication += seconds * times
                # One exchange after the other: they share the links.
                links = max(now, links) + seconds
                ends[event.collective.name] = links
                if not event.collective.asynchronous:
                    now = links
            elif isinstance(event, Done):
                now = max(now, ends.pop(event.name, now))
        return max([now, *ends.values()]), busy


def _exchanges(program: Schedule, cluster: Cluster) -> list[Exchange]:
    overlapped = program.overlapped()
    found: dict[tuple[str, str, str], Exchange] = {}
    for collective, times in program.collectives():
        key = (collective.kind, link(collective, cluster), collective.dtype)
        old = found.get(key, Exchange(*key, 0, 0.0, 0.0, 0.0, 0))
        found[key] = dataclasses.replace(
            old,
            count=old.count + times,
            bytes=old.bytes + collective.bytes * times,
            wire_bytes=old.wire_bytes + collective.wire_bytes * times,
            seconds=old.seconds + collective_seconds(collective, cluster) * times,
            overlapped=old.overlapped + (times if collective.name in overlapped else 0),
        )
    return list(found.values())


def mfu_bound(model_flops: float, seconds: float, cluster: Cluster, dtype: str) -> float:
    """The highest model FLOPs utilisation that `seconds` a step allow (PaLM, arXiv:2204.02311).

    `model_flops` are those of a step on all devices, without recomputation.
    """
    return model_flops / (seconds * cluster.devices * cluster.card.peak(dtype))


def joules_upper(seconds: float, cluster: Cluster) -> float:
    """Joules of `seconds` with every card at its rated power: an upper estimate, GPUs only."""
    return seconds * cluster.devices * cluster.card.watts
