"""One run on several processes and hosts: how the processes find and join each other.

Slurm and Open MPI describe the processes in the environment; otherwise the flags --coordinator,
--processes and --process do. After joining, every process sees all devices and holds its own rows
of a batch; only process 0 writes logs and prints.
"""

import dataclasses
import hashlib
import ipaddress
import os
import re
import socket
import sys
import time
from collections.abc import Mapping

from jaxdl.core.flags import CommandLine
from jaxdl.errors import UserError
from jaxdl.run import signals

# The coordinator's port is taken from this range, which Linux does not use for outgoing
# connections. It is derived from the job's number, so that two jobs on a host do not share one.
FIRST_PORT, PORTS = 61440, 4096


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of one run, as one of them sees them.

    Attributes:
        coordinator: 'host:port' on which process 0 listens.
        count: number of processes.
        index: number of this process.
        local_count: number of processes on this host; 0: unknown.
        local_index: number of this process among those of its host.
        bound: the launcher has given each process its own GPUs.
        origin: the launcher or the flags that this comes from, for messages.
    """

    coordinator: str
    count: int
    index: int
    local_count: int = 0
    local_index: int = 0
    bound: bool = False
    origin: str = 'flags'

    def check(self) -> None:
        """Raises UserError for numbers that contradict each other."""
        if self.count < 1:
            raise UserError(f'--processes={self.count}: must be at least 1')
        if not 0 <= self.index < self.count:
            raise UserError(
                f'--process={self.index}: must be in 0..{self.count - 1} (--processes={self.count})'
            )
        if not re.fullmatch(r'.+:\d{1,5}', self.coordinator):
            raise UserError(
                f'--coordinator={self.coordinator}: must be HOST:PORT of process 0, '
                'for example node1:12345'
            )


def define_flags(line: CommandLine) -> None:
    """Defines the flags of a command that can run on several processes."""
    line.string('coordinator', 'HOST:PORT', 'of process 0, where all processes meet')
    line.integer('processes', 'processes of this run; 1: whatever Slurm or MPI say', least=1)
    line.integer('process', 'which of them this is, from 0')


def find(
    environment: Mapping[str, str],
    *,
    coordinator: str = '',
    processes: int | None = None,
    process: int | None = None,
) -> Processes | None:
    """The processes of this run, or None where there is only this one.

    Flags win over the environment; --processes=1 ignores it.

    Raises:
        UserError: flags are incomplete or wrong, or the environment lacks something.
    """
    if processes == 1:
        return None
    found = _slurm(environment, coordinator) or _open_mpi(environment, coordinator)
    if processes is not None or process is not None or (coordinator and not found):
        missing = [
            name
            for name, value in (('coordinator', coordinator), ('processes', processes))
            if not value
        ] + (['process'] if process is None else [])
        if missing:
            raise UserError(
                f'--{missing[0]} is missing; several processes need --coordinator=HOST:PORT '
                '--processes=NUMBER --process=INDEX, each its own index (Slurm and Open MPI give all)'
            )
        assert processes is not None and process is not None
        found = Processes(coordinator, processes, process)
    if found:
        found.check()
    return found if found and found.count > 1 else None


def _slurm(environment: Mapping[str, str], coordinator: str) -> Processes | None:
    """The processes of an srun step; None for a batch script that does not use srun."""
    try:
        count = int(environment['SLURM_STEP_NUM_TASKS'])
        index, local = int(environment['SLURM_PROCID']), int(environment['SLURM_LOCALID'])
        job = f'{environment["SLURM_JOB_ID"]}.{environment.get("SLURM_STEP_ID", "0")}'
        first = first_host(environment['SLURM_STEP_NODELIST'])
    except (KeyError, ValueError):
        return None
    return Processes(
        coordinator or f'{first}:{_port(job)}',
        count,
        index,
        _tasks_here(environment.get('SLURM_STEP_TASKS_PER_NODE', ''), environment),
        local,
        any(name in environment for name in ('SLURM_GPUS_PER_TASK', 'SLURM_NTASKS_PER_GPU')),
        'Slurm',
    )


def first_host(hosts: str) -> str:
    """The first host of a Slurm host list such as 'gpu[003-005,9],login'."""
    match = re.match(r'([^,\[]+)(?:\[([^,\-\]]+)[^\]]*\]([^,\[]*))?', hosts)
    if not match:
        raise ValueError(hosts)
    return ''.join(part or '' for part in match.groups())


def _tasks_here(text: str, environment: Mapping[str, str]) -> int:
    """The tasks on this node according to a Slurm list such as '4(x2),3'; 0: unknown."""
    counts: list[int] = []
    for number, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', text):
        counts += [int(number)] * int(times or 1)
    node = int(environment.get('SLURM_NODEID', '0') or 0)
    return counts[node] if node < len(counts) else 0


def _open_mpi(environment: Mapping[str, str], coordinator: str) -> Processes | None:
    """The processes started by mpirun or mpiexec of Open MPI; None if there are none."""
    try:
        count = int(environment['OMPI_COMM_WORLD_SIZE'])
        index = int(environment['OMPI_COMM_WORLD_RANK'])
        local = int(environment['OMPI_COMM_WORLD_LOCAL_RANK'])
        here = int(environment['OMPI_COMM_WORLD_LOCAL_SIZE'])
    except (KeyError, ValueError):
        return None
    job = environment.get('PMIX_NAMESPACE', '') or environment.get('OMPI_MCA_ess_base_jobid', '')
    if not coordinator and here == count:
        coordinator = f'127.0.0.1:{_port(job)}'
    launcher = re.search(
        r'tcp://([^,:;]+)|tcp6://\[([^,\]]+)', environment.get('OMPI_MCA_orte_hnp_uri', '')
    )
    if not coordinator and launcher and index >= 0:
        # Rank 0 runs on the host of mpirun, unless the host list begins with another host.
        coordinator = f'{launcher.group(1) or launcher.group(2)}:{_port(job)}'
    if not coordinator and count > 1:
        raise UserError(
            'Open MPI runs on several hosts and does not say where rank 0 is; '
            'give --coordinator=HOST:PORT of that host'
        )
    return Processes(coordinator or '127.0.0.1:1', count, index, here, local, False, 'Open MPI')


def _port(job: str) -> int:
    """The port for a job; every process of the job computes the same one."""
    return FIRST_PORT + int.from_bytes(hashlib.sha256(job.encode()).digest()[:4], 'big') % PORTS


def own_gpus(found: Processes, visible: int) -> list[int] | None:
    """Which of the GPUs visible here are this process's; None: all of them.

    Processes that share a host and see the same GPUs divide them evenly.
    """
    here = found.local_count
    if found.bound or here < 2 or visible < here or visible % here:
        return None
    each = visible // here
    return list(range(found.local_index * each, (found.local_index + 1) * each))


def visible_gpus(environment: Mapping[str, str]) -> int:
    """The number of NVIDIA GPUs that this process may use, without opening one."""
    if 'CUDA_VISIBLE_DEVICES' in environment:
        return len(
            [word for word in environment['CUDA_VISIBLE_DEVICES'].split(',') if word.strip()]
        )
    try:
        return len([name for name in os.listdir('/dev') if re.fullmatch(r'nvidia\d+', name)])
    except OSError:
        return 0


def join(found: Processes | None, *, timeout: float = 300) -> None:
    """Connects to the other processes; call it before any device is used.

    On every process but the first, standard output is discarded from here on.

    Raises:
        UserError: some process did not connect within `timeout` seconds, or the port is taken.
    """
    if found is None:
        return
    import jax

    deadline = time.monotonic() + timeout
    if found.index > 0:
        _await_port(found, deadline)
    try:
        jax.distributed.initialize(
            found.coordinator,
            num_processes=found.count,
            process_id=found.index,
            local_device_ids=own_gpus(found, visible_gpus(os.environ)),
            cluster_detection_method='deactivate',
            coordinator_bind_address=bind_address(found) if found.index == 0 else None,
            initialization_timeout=max(1, int(deadline - time.monotonic())),
        )
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f'process {found.index} of {found.count} (from {found.origin}) could not meet the '
            f'others at {found.coordinator} within {timeout:.0f} s: {first}\n'
            'Start all of them, with the same --coordinator, or give a port that is free'
        ) from None
    signals.listen_again()
    if found.index > 0:
        sys.stdout.flush()
        sys.stdout = open(os.devnull, 'w')


def bind_address(found: Processes) -> str:
    """The address on which process 0 listens: only that of the coordinator, if this host has it.

    jax would listen on all addresses. That is kept where this host may resolve the name to another
    address than the other hosts do: in containers, or if /etc/hosts has it at 127.0.1.1.
    """
    name, _, port = found.coordinator.rpartition(':')
    name = name.strip('[]')
    try:
        family, *_, address = socket.getaddrinfo(name, int(port), type=socket.SOCK_STREAM)[0]
        ip = ipaddress.ip_address(address[0])
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address[0], 0))
        problem = ''
        if ip.is_loopback and found.local_count != found.count and not _is_loopback(name):
            problem = f'here it is {ip}'
    except (OSError, ValueError) as error:
        problem = str(error)
    if problem:
        print(
            f'WARNING: --coordinator={found.coordinator}: {problem}; listening on all addresses',
            file=sys.stderr,
        )
        return f'[::]:{port}'
    return f'[{ip}]:{port}' if ip.version == 6 else f'{ip}:{port}'


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == 'localhost'


def _await_port(found: Processes, deadline: float) -> None:
    """Waits until process 0 listens; without this, jax would abort the process if it does not."""
    host, _, port = found.coordinator.rpartition(':')
    reason: object = 'nobody listens'
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
            return
        except OSError as error:
            reason = error
            time.sleep(0.2)
    raise UserError(
        f'--coordinator={found.coordinator}: process {found.index} of {found.count} (from '
        f'{found.origin}) waited for process 0 there in vain ({reason}); '
        'start it, or give its host and port'
    )
