#!/bin/bash
# down.sh FOLDER: cancel all jobs of the cluster that `up.sh FOLDER` started, and stop the processes whose ids it wrote down.
set -uo pipefail
folder=$(cd "$1" && pwd)
export SLURM_CONF=$folder/slurm.conf

timeout 10 scancel --user="$(id -un)" 2>/dev/null
for _ in $(seq 40); do [ -z "$(timeout 10 squeue -h -t R,CG 2>/dev/null)" ] && break || sleep 0.25; done
for name in slurmd slurmctld munged; do
    pid=$(cat "$folder/run/$name.pid" 2>/dev/null) || continue
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = $name ] || continue
    kill "$pid"
    for _ in $(seq 40); do kill -0 "$pid" 2>/dev/null && sleep 0.25 || break; done
    kill -9 "$pid" 2>/dev/null
done
exit 0
