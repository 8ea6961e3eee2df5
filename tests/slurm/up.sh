#!/bin/bash
# up.sh FOLDER: start a SLURM cluster of one node, this machine, with everything it writes in FOLDER; down.sh FOLDER stops it.
# Then `. FOLDER/env.sh`, and sinfo, sbatch, snakemake ... find it. It runs as whoever calls this, on free ports of the loopback
# interface, with two pretended GPUs, limits on memory, and no accounting. Its partitions are those of profiles/slurm.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
PATH=$PATH:/usr/sbin:/sbin
node=$(hostname -s)
me=$(id -un)
umask 022
mkdir -p "$folder"/{bin,log,run,spool,state}
mkdir -p -m 700 "$folder/munge"
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")

read -r control_port node_port < <(python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in sockets))')

# Memory and CPUs are more than a small machine has (config_overrides), as jobs ask for what a large model may need.
cat >"$folder/slurm.conf" <<END
ClusterName=tests
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$control_port
SlurmdPort=$node_port
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/run/slurmctld.own
SlurmdPidFile=$folder/run/slurmd.own
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/log/jobs.log
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=3600
KillWait=5
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes=$node Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=$node MaxTime=INFINITE State=UP
END
# GPUs have to be character devices, no two the same; jobs are told theirs in CUDA_VISIBLE_DEVICES.
for device in /dev/null /dev/zero; do
    echo "NodeName=$node Name=gpu File=$device Flags=nvidia_gpu_env"
done >"$folder/gres.conf"
echo "CgroupAutomount=no" >"$folder/cgroup.conf"

# Inside a job Snakemake calls srun without any SLURM_ variable; other clusters have their configuration in /etc/slurm.
printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$folder/slurm.conf" "$(command -v srun)" >"$folder/bin/srun"
chmod 755 "$folder/bin/srun"
printf 'export SLURM_CONF=%s PATH=%s:$PATH\n' "$folder/slurm.conf" "$folder/bin" >"$folder/env.sh"
export SLURM_CONF=$folder/slurm.conf

start() { # name, command: in the background, its process id in a file
    local name=$1
    shift
    setsid "$@" >"$folder/log/$name.out" 2>&1 </dev/null &
    echo $! >"$folder/run/$name.pid"
}
start munged munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/run/munge.socket" \
    --pid-file="$folder/run/munged.own" --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed"
for _ in $(seq 50); do [ -S "$folder/run/munge.socket" ] && break || sleep 0.1; done
start slurmctld slurmctld -i -D -f "$SLURM_CONF"
start slurmd slurmd -D -N "$node" -f "$SLURM_CONF"

for _ in $(seq 120); do
    state=$(sinfo -h -p cpu -o %T 2>/dev/null || true)
    case $state in
        idle) exit 0 ;;
        down* | drain*) scontrol update NodeName="$node" State=RESUME 2>/dev/null || true ;;
    esac
    sleep 0.5
done
echo "up.sh: the node is '${state:-unknown}' after a minute, not idle; the last lines of the logs:" >&2
tail -n 5 "$folder"/log/* >&2 || true
exit 1
