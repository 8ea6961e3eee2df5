#!/bin/sh
# Install SLURM from the packages of Debian or Ubuntu, for the tests in this folder; does nothing where it is installed.
# Where it cannot be had, one line says why; those tests are skipped then.
PATH=$PATH:/usr/sbin:/sbin
missing=
for tool in slurmctld slurmd munged srun squeue; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done
[ -n "$missing" ] || exit 0

refuse() {
    echo "SLURM is not installed (no$missing): $1; tests/slurm will be skipped" >&2
    exit 1
}

command -v apt-get >/dev/null || refuse "this system has no apt-get"
[ "$(id -u)" = 0 ] || refuse "installing needs root: sudo sh tests/slurm/install.sh"
echo "Installing SLURM for the tests of the cluster profile ..."
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
patience="-o DPkg::Lock::Timeout=120 -o Acquire::http::Timeout=20 -o Acquire::Retries=1"
apt-get $patience update >"$log" 2>&1 &&
    apt-get $patience install -y --no-install-recommends slurmctld slurmd slurm-client munge >>"$log" 2>&1
status=$?
reason=$(grep -m 1 '^E:' "$log")
rm -f "$log"
[ $status = 0 ] || refuse "${reason:-apt-get ended with $status}"
