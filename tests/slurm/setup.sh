#!/usr/bin/env bash
# A real Slurm on this one machine, with two fake GPUs, for tests. Debian, as root, no systemd:
#   apt-get install slurm-wlm munge
#   tests/slurm/setup.sh start DIR    everything it needs is in DIR; prints DIR/slurm.conf
#   export SLURM_CONF=DIR/slurm.conf  then sbatch, squeue, srun … speak to it
#   tests/slurm/setup.sh stop DIR
# The GPUs are two character devices: Slurm counts them, sets CUDA_VISIBLE_DEVICES, and that is all.
set -euo pipefail

usage() { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -eq 2 ] || usage
dir=$(realpath -m "$2")

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

end() { # the process of a pid file, and waits for it
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
}

start() {
    local name cores ctld slurmd munged
    for name in munged slurmctld slurmd; do
        command -v "$name" >/dev/null || { echo "error: $name is missing: apt-get install slurm-wlm munge" >&2; exit 2; }
    done
    [ "$(id -u)" = 0 ] || { echo 'error: must be root' >&2; exit 2; }
    mkdir -p "$dir/state" "$dir/spool" "$dir/munge"
    chmod 755 "$dir"
    # munged wants every folder above its files to be safe, and to be no user's but its own.
    munged=/run/jaxdl-munge-$$
    mkdir -p "$munged"
    echo "$munged" >"$dir/munge.at"
    head -c 1024 /dev/urandom >"$munged/key"
    chmod 600 "$munged/key"
    chown -R munge:munge "$munged"
    chmod 755 "$munged"
    setpriv --reuid=munge --regid=munge --clear-groups munged --force \
        --key-file="$munged/key" --socket="$munged/socket" --pid-file="$munged/pid" \
        --log-file="$munged/log" --seed-file="$munged/seed"
    for index in 0 1; do
        [ -e "$dir/gpu$index" ] || mknod "$dir/gpu$index" c 1 3
    done
    name=$(hostname -s)
    cores=$(nproc)
    ctld=$(free_port)
    slurmd=$(free_port)
    # One core more per real one, so that tests need not wait for each other.
    cat >"$dir/slurm.conf" <<CONF
ClusterName=jaxdl
SlurmctldHost=$name(127.0.0.1)
SlurmctldPort=$ctld
SlurmdPort=$slurmd
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$munged/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
GresTypes=gpu
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=10
InactiveLimit=0
MinJobAge=300
NodeName=$name NodeAddr=127.0.0.1 CPUs=$((2 * cores)) RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=$name Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=$name MaxTime=INFINITE State=UP PriorityTier=2
CONF
    cat >"$dir/gres.conf" <<CONF
NodeName=$name Name=gpu File=$dir/gpu[0-1]
CONF
    export SLURM_CONF=$dir/slurm.conf
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF" -N "$name"
    for _ in $(seq 300); do
        case $(sinfo --noheader --format=%t 2>/dev/null) in idle*) echo "$SLURM_CONF"; return 0 ;; esac
        sleep 0.2
    done
    echo 'error: the node did not come up; the ends of the logs:' >&2
    tail -n 20 "$dir"/*.log "$munged/log" >&2 || true
    stop
    exit 1
}

stop() {
    local munged
    export SLURM_CONF=$dir/slurm.conf
    scancel --user="$(id -un)" 2>/dev/null || true
    for _ in $(seq 50); do # or the jobs outlive the daemons
        [ -n "$(squeue --noheader 2>/dev/null)" ] || break
        sleep 0.2
    done
    end "$dir/slurmd.pid"
    end "$dir/slurmctld.pid"
    munged=$(cat "$dir/munge.at" 2>/dev/null) || return 0
    end "$munged/pid"
    rm -rf "$munged"
    rm -f "$dir/gpu0" "$dir/gpu1" "$dir/munge.at"
}

case $1 in
    start) start ;;
    stop) stop ;;
    *) usage ;;
esac
