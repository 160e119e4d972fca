"""Who the processes of a run are, and that several real ones train as one does."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxdl.core.config import Mesh
from jaxdl.errors import UserError
from jaxdl.run import cluster
from jaxdl.run.cluster import Processes
from tests import layouts

ROOT = Path(__file__).resolve().parents[2]
SLURM = {
    'SLURM_JOB_ID': '4711',
    'SLURM_STEP_ID': '0',
    'SLURM_STEP_NUM_TASKS': '7',
    'SLURM_STEP_NODELIST': 'gpu[007-008,12]',
    'SLURM_STEP_TASKS_PER_NODE': '2(x2),3',
    'SLURM_PROCID': '3',
    'SLURM_LOCALID': '1',
    'SLURM_NODEID': '1',
}
OPEN_MPI = {
    'OMPI_COMM_WORLD_SIZE': '4',
    'OMPI_COMM_WORLD_RANK': '2',
    'OMPI_COMM_WORLD_LOCAL_RANK': '2',
    'OMPI_COMM_WORLD_LOCAL_SIZE': '4',
    'OMPI_MCA_ess_base_jobid': '1531576320',
}


def test_slurm_says_who_the_processes_are():
    found = cluster.find(SLURM)
    host, port = found.coordinator.split(':')
    assert host == 'gpu007' and 1024 < int(port) < 65536
    assert (found.count, found.index, found.local_count, found.local_index) == (7, 3, 2, 1)
    assert cluster.find({**SLURM, 'SLURM_PROCID': '0'}).coordinator == found.coordinator
    assert cluster.find({**SLURM, 'SLURM_JOB_ID': '4712'}).coordinator != found.coordinator
    # In a batch script outside of srun, and with one task, there is one process.
    assert cluster.find({'SLURM_JOB_ID': '1', 'SLURM_PROCID': '0', 'SLURM_NTASKS': '8'}) is None
    assert cluster.find({**SLURM, 'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'}) is None


@pytest.mark.parametrize(
    ('hosts', 'first'),
    [
        ('node1', 'node1'),
        ('node1,node2', 'node1'),
        ('gpu[003-005,9],login', 'gpu003'),
        ('a[7,9]-ib', 'a7-ib'),
    ],
)
def test_the_first_host_of_a_list(hosts, first):
    assert cluster.first_host(hosts) == first


def test_open_mpi_says_who_the_processes_are():
    found = cluster.find(OPEN_MPI)
    assert found.coordinator.startswith('127.0.0.1:')
    assert (found.count, found.index, found.local_count) == (4, 2, 4)
    several = {**OPEN_MPI, 'OMPI_COMM_WORLD_LOCAL_SIZE': '2'}
    launcher = {**several, 'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911'}
    assert cluster.find(launcher).coordinator.startswith('10.96.0.1:')
    assert cluster.find(several, coordinator='node1:99').coordinator == 'node1:99'
    with pytest.raises(UserError, match=r'several hosts .* give --coordinator=HOST:PORT'):
        cluster.find(several)


def test_flags_win_over_the_environment_and_must_be_complete():
    given = dict(coordinator='node1:99', processes=2, process=1)
    assert cluster.find(SLURM, **given) == Processes('node1:99', 2, 1)
    assert cluster.find({}, **given) == Processes('node1:99', 2, 1)
    assert cluster.find(SLURM, processes=1) is None and cluster.find({}) is None
    for changes, said in (
        (dict(process=None), '--process is missing'),
        (dict(processes=None), '--processes is missing'),
        (dict(coordinator=''), '--coordinator is missing'),
        (dict(process=2), r'--process=2: must be in 0\.\.1'),
        (dict(processes=-3), '--processes=-3: must be at least 1'),
        (dict(coordinator='node1'), '--coordinator=node1: must be HOST:PORT'),
    ):
        with pytest.raises(UserError, match=said):
            cluster.find({}, **{**given, **changes})


def test_processes_of_one_host_divide_its_gpus():
    def own(gpus, **changes):
        values = dict(coordinator='h:1', count=4, index=1, local_count=4, local_index=1)
        return cluster.own_gpus(Processes(**{**values, **changes}), gpus)

    assert own(8) == [2, 3] and own(4) == [1]
    assert own(8, local_count=1, local_index=0) is None, 'alone on its host'
    assert own(8, bound=True) is None and own(1) is None, 'the launcher has divided them'
    assert own(6) is None and own(0) is None
    assert cluster.visible_gpus({'CUDA_VISIBLE_DEVICES': '4,5,6'}) == 3
    assert cluster.visible_gpus({'CUDA_VISIBLE_DEVICES': ''}) == 0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def run_layouts(folder, count: int, devices: int) -> tuple[dict, list[str]]:
    """What `count` processes of tests.process_layouts wrote, and what each one said."""
    base = [sys.executable, '-m', 'tests.process_layouts', str(folder / 'out.json'), str(devices)]
    flags = [f'--coordinator=127.0.0.1:{free_port()}', f'--processes={count}']
    running = [
        subprocess.Popen(
            [*base, *flags, f'--process={index}'],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
        )
        for index in range(count)
    ]
    try:
        said = [process.communicate(timeout=280) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * count, said
    # The collectives' own library writes to stdout as well, from several threads, in pieces of lines.
    lines = [re.findall(r'said by \d+', out) for out, _ in said]
    return json.loads((folder / 'out.json').read_text()), lines


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_several_processes_train_as_one_does(count, tmp_path):
    found, said = run_layouts(tmp_path, count, devices=4 // count)
    for family, losses in found['losses'].items():
        run = layouts.config(family, mesh=Mesh(data=1))
        expected = layouts.losses(run, layouts.initial(run))
        np.testing.assert_allclose(losses, expected, rtol=1e-4, err_msg=family)
    # Each process fetched its own rows, and together they are the batch.
    assert np.shape(found['rows']) == (count, 16 // count)
    assert sorted(np.ravel(found['rows'])) == list(range(16))
    assert said == [['said by 0'], *[[]] * (count - 1)], 'only process 0 talks'


def test_nobody_at_the_coordinator_is_an_error_and_no_crash():
    there = Processes(f'127.0.0.1:{free_port()}', 2, 1)
    with pytest.raises(UserError, match=r'process 1 of 2 .* waited for process 0 there in vain'):
        cluster.join(there, timeout=1)


# ---- where process 0 listens ----


def test_process_0_listens_on_the_named_address_alone():
    """Read from the kernel's own list of sockets."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    code = (
        'from jaxdl.run import cluster\n'
        f'cluster.join(cluster.Processes("localhost:{port}", 1, 0, local_count=1))\n'
        'print(open("/proc/net/tcp").read(), open("/proc/net/tcp6").read())\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    addresses = re.findall(rf'([0-9A-F]+):{port:04X} \S+ 0A ', done.stdout)  # 0A: it listens
    # 127.0.0.1, the same as an IPv6 address, and ::1.
    loopback = {'0100007F', '0000000000000000FFFF00000100007F', '00000000000000000000000001000000'}
    assert addresses and set(addresses) <= loopback, done.stderr


@pytest.mark.parametrize(
    ('name', 'ip', 'local', 'bound'),
    [
        ('node1', '127.0.0.1', 2, '127.0.0.1:5'),  # all processes are here
        ('node1', '127.0.1.1', 1, '[::]:5'),  # the others would find themselves
        ('127.0.0.1', '127.0.0.1', 0, '127.0.0.1:5'),
        ('node1', '203.0.113.9', 1, '[::]:5'),  # no address of this host
        ('[::1]', '::1', 0, '[::1]:5'),
    ],
)
def test_bind_address(name, ip, local, bound, monkeypatch, capsys):
    family = socket.AF_INET6 if ':' in ip else socket.AF_INET

    def resolve(host, port, **more):
        assert host == name.strip('[]')
        return [(family, socket.SOCK_STREAM, 0, '', (ip, port))]

    monkeypatch.setattr(socket, 'getaddrinfo', resolve)
    found = cluster.Processes(f'{name}:5', 2, 0, local_count=local)
    assert cluster.bind_address(found) == bound
    warned = capsys.readouterr().err
    assert ('listening on all addresses' in warned) == (bound == '[::]:5')
