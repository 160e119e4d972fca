"""What a GPU can do at most: published figures from cards.json, and a measured peak for CPUs."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import time

from jaxdl.errors import UserError, nearest

_ALIASES = {
    'v100': 'v100-16',
    'a100': 'a100-80',
    'h100-80': 'h100',
    'h200-141': 'h200',
    '4090': 'rtx4090',
    'rtx-4090': 'rtx4090',
    '1080': 'gtx1080',
    'gtx-1080': 'gtx1080',
}


@dataclasses.dataclass(frozen=True)
class Card:
    """One kind of GPU; every figure is published, cards.json names the sources.

    Attributes:
        name: how it is called on the command line, e.g. 'h100' or 'a100-40'.
        title: the full name.
        kinds: parts of the name that the driver reports.
        memory_bytes: device memory that the driver reports.
        memory_bandwidth: bytes per second.
        peak_flops: dense FLOP/s by the type of the operands, accumulation in float32.
        multiprocessors: streaming multiprocessors.
        compute_capability: e.g. '9.0'.
        watts: rated power.
        nvlink_bandwidth: bytes per second, per GPU and direction; 0: it has none.
        pcie_bandwidth: bytes per second, per GPU and direction.
        l2_bytes: level-2 cache.
        clock_ghz: boost clock.
        network_bandwidth: bytes per second and direction of a usual host of 8 GPUs.
        network: what that host's network is.
        compiler: further limits that the compiler asks for.
        sources: where the figures are published.
    """

    name: str
    title: str
    kinds: tuple[str, ...]
    memory_bytes: int
    memory_bandwidth: float
    peak_flops: dict[str, float]
    multiprocessors: int
    compute_capability: str
    watts: float
    nvlink_bandwidth: float
    pcie_bandwidth: float
    l2_bytes: int
    clock_ghz: float
    network_bandwidth: float
    network: str
    compiler: dict
    sources: tuple[str, ...]

    def peak(self, dtype: str) -> float:
        """FLOP/s of a matrix product with operands of `dtype`, as XLA runs it by default.

        float32 goes to the tensor cores as TensorFloat-32 where they have it. A type that the
        card has no units for, or slow ones, is computed as float32.
        """
        plain = self.peak_flops['float32']
        if dtype.startswith(('float8', 'f8')):
            dtype = 'float8' if 'float8' in self.peak_flops else 'float16'
        if dtype == 'float32':
            return self.peak_flops.get('tensorfloat32', plain)
        return max(self.peak_flops.get(dtype, plain), plain)

    @property
    def major(self) -> int:
        """The first number of the compute capability: 7 Volta, 8 Ampere and Ada, 9 Hopper."""
        return int(self.compute_capability.split('.')[0])

    def target_config(self) -> str:
        """The text proto with which XLA compiles for this card without having one."""
        major, minor = self.compute_capability.split('.')
        # Hopper's and Blackwell's own instructions are no part of later cards' set.
        extension = 'ACCELERATED_FEATURES' if int(major) >= 9 else 'NONE'
        device = {
            'threads_per_block_limit': 1024,
            'threads_per_warp': 32,
            'shared_memory_per_block': 49152,
            'shared_memory_per_core': self.compiler['shared_memory_per_core'],
            'threads_per_core_limit': self.compiler['threads_per_core_limit'],
            'core_count': self.multiprocessors,
            'fpus_per_core': self.compiler['fpus_per_core'],
            'block_dim_limit_x': 2**31 - 1,
            'block_dim_limit_y': 65535,
            'block_dim_limit_z': 65535,
            'memory_bandwidth': int(self.memory_bandwidth),
            'l2_cache_size': self.l2_bytes,
            'clock_rate_ghz': self.clock_ghz,
            'device_memory_size': self.memory_bytes,
            'shared_memory_per_block_optin': self.compiler['shared_memory_per_block_optin'],
            'registers_per_core_limit': 65536,
            'registers_per_block_limit': 65536,
        }
        fields = ' '.join(f'{key}: {value}' for key, value in device.items())
        return (
            f'gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} '
            f'minor: {minor} feature_extension: {extension} }} }} '
            'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } '
            'runtime_version { major: 12 minor: 9 patch: 0 } '
            f'device_description_str: "{self.compiler["description"]}"'
        )


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Hosts with the same number of the same GPUs each.

    Attributes:
        card: the kind of GPU.
        gpus_per_host: GPUs in one host, joined by NVLink or PCI Express.
        hosts: hosts, joined by a network.
        network_bandwidth: bytes per second of a host and direction.
    """

    card: Card
    gpus_per_host: int
    hosts: int
    network_bandwidth: float

    @property
    def devices(self) -> int:
        return self.gpus_per_host * self.hosts

    @property
    def host_link(self) -> tuple[str, float]:
        """The link inside a host and its bytes per second, per GPU and direction."""
        if self.card.nvlink_bandwidth:
            return 'NVLink', self.card.nvlink_bandwidth
        return 'PCIe', self.card.pcie_bandwidth

    @property
    def network_link(self) -> tuple[str, float]:
        """The network and its bytes per second, per GPU and direction."""
        return 'network', self.network_bandwidth / self.gpus_per_host

    @property
    def links(self) -> dict[str, float]:
        """The links that are there: bytes per second, per GPU and direction."""
        host = [self.host_link] if self.gpus_per_host > 1 else []
        return dict([*host, self.network_link] if self.hosts > 1 else host)

    @property
    def topology(self) -> str:
        """The same in the words of XLA: slices x hosts x GPUs."""
        return f'1x{self.hosts}x{self.gpus_per_host}'

    def __str__(self) -> str:
        gpus = f'{self.gpus_per_host} × {self.card.title}'
        return gpus if self.hosts == 1 else f'{self.hosts} hosts of {gpus}'


@functools.cache
def cards() -> dict[str, Card]:
    """All cards by name, in the order of cards.json."""
    path = pathlib.Path(__file__).with_name('cards.json')
    # A file of the package itself, not one that may be damaged.
    entries = json.loads(path.read_text(encoding='utf-8'))['cards']
    for entry in entries:
        entry['kinds'], entry['sources'] = tuple(entry['kinds']), tuple(entry['sources'])
    return {entry['name']: Card(**entry) for entry in entries}


def find(name: str) -> Card:
    """The card called `name`; raises UserError with the known names otherwise."""
    name = name.lower()
    name = _ALIASES.get(name, name)
    if name not in cards():
        raise UserError(
            f'unknown GPU {name!r}; known: {", ".join(cards())}'
            f'{nearest(name, [*cards(), *_ALIASES])}'
        )
    return cards()[name]


def of_device(device_kind: str) -> Card | None:
    """The card behind `jax.Device.device_kind`, or None where none is known."""
    for card in cards().values():
        if any(kind.lower() in device_kind.lower() for kind in card.kinds):
            return card
    return None


def parse(text: str, *, network: float | None = None) -> Cluster:
    """Reads 'h100', 'h100x8' (GPUs of a host) or 'h100x8x2' (GPUs of a host, hosts).

    `network` is the bandwidth of a host in bytes per second and direction; None takes that of the
    usual host, by its share of 8 GPUs where it has fewer. Raises UserError where the text says
    something else.
    """
    words = text.strip().lower()
    form = 'allowed: CARD, CARDxGPUS or CARDxGPUSxHOSTS, e.g. h100x8 or a100-40x8x2'
    if not re.fullmatch(r'[a-z0-9-]+', words):
        raise UserError(f'--devices={text}: {form}')
    # Known names first, the longest first: 'rtx4090' has an x of its own.
    known = sorted([*cards(), *_ALIASES], key=len, reverse=True)
    name = next((k for k in known if re.match(rf'{k}(x|$)', words)), words.split('x')[0])
    counts = words[len(name) :].split('x')[1:]
    card = find(name)
    if len(counts) > 2 or not all(re.fullmatch(r'[1-9]\d*', count) for count in counts):
        raise UserError(f'--devices={text}: {form}')
    gpus, hosts = (*map(int, counts), 1, 1)[:2]
    if network is None:
        network = card.network_bandwidth * (min(gpus, 8) / 8 if card.nvlink_bandwidth else 1)
    if network <= 0:
        raise UserError(f'--network={network / 1e9:g}: must be more than 0, in GB/s of a host')
    return Cluster(card, gpus, hosts, network)


def cpu_peak(dtype: str = 'float32', *, size: int = 1536, rounds: int = 5) -> float:
    """FLOP/s of this machine's CPU: the best of several square matrix products, in JAX.

    A CPU's peak is not published in a useful form (clock under vector load, shared cores), so
    it is measured; it takes about half a second. Where other processes take turns on the cores
    the time that the product itself had on them counts.
    """
    import jax
    import jax.numpy as jnp

    cpu = jax.devices('cpu')[0]
    left = jax.device_put(jnp.ones((size, size), dtype), cpu)
    product = jax.jit(jnp.matmul)
    product(left, left).block_until_ready()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1
    best = float('inf')
    for _ in range(rounds):
        start, used = time.perf_counter(), time.process_time()
        product(left, left).block_until_ready()
        used = (time.process_time() - used) / cores
        best = min(best, time.perf_counter() - start, max(used, 1e-9))
    return 2.0 * size**3 / best
