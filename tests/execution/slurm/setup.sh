#!/usr/bin/env bash
# A real SLURM on this machine alone: controller and one node on loopback, all of its files in FOLDER.
#
#   tests/execution/slurm/setup.sh FOLDER      installs slurm-wlm and munge where missing, starts, waits for an idle node
#   tests/execution/slurm/teardown.sh FOLDER   ends it
#
# For whoever submits: export SLURM_CONF=FOLDER/slurm.conf. Needs root and, for a first install, apt.
# Exit 3 with one line on stderr: it cannot be had here.
set -euo pipefail

cannot() { echo "no SLURM here: $*" >&2; exit 3; }

[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
[ "$(uname -s)" = Linux ] || cannot "this is not Linux"
[ "$(id -u)" = 0 ] || cannot "starting its daemons takes root"
mkdir -p "$1" && folder=$(cd "$1" && pwd)

if ! command -v slurmctld slurmd munged sbatch > /dev/null; then
    command -v apt-get > /dev/null || cannot "it is not installed, and there is no apt-get"
    export DEBIAN_FRONTEND=noninteractive
    install="apt-get install -q -y --no-install-recommends slurm-wlm munge"
    $install > "$folder/apt.log" 2>&1 || { apt-get update -q >> "$folder/apt.log" 2>&1 && $install >> "$folder/apt.log" 2>&1; } \
        || cannot "apt-get cannot install slurm-wlm and munge: $(tail -n 1 "$folder/apt.log")"
fi

host=$(hostname -s)
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
mkdir -p "$folder"/{state,spool,munge}
# munge insists that nobody else can write where its files are
chmod 0755 "$folder" "$folder/munge"
chown -R root: "$folder/munge"
head -c 1024 /dev/urandom > "$folder/munge/key" && chmod 0600 "$folder/munge/key"

# more CPUs than the machine has: the tests' jobs mostly wait, and several are to run at once
cat > "$folder/slurm.conf" << CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2
KillWait=2
OverTimeLimit=0
InactiveLimit=0
MinJobAge=10
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF

# two things that are no GPUs but are dealt out as if: SLURM names them in CUDA_VISIBLE_DEVICES
printf 'Name=gpu File=%s\n' /dev/null /dev/zero > "$folder/gres.conf"

export SLURM_CONF=$folder/slurm.conf
# forced: the folder may lie in one that only its owner may enter, as those of tests do
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" > "$folder/start.log" 2>&1 \
    || cannot "munged does not start: $(tail -n 1 "$folder/start.log")"
slurmctld -c > "$folder/start.log" 2>&1 || cannot "slurmctld does not start: $(tail -n 1 "$folder/slurmctld.log")"
slurmd -N "$host" > "$folder/start.log" 2>&1 || cannot "slurmd does not start: $(tail -n 1 "$folder/slurmd.log" 2> /dev/null)"

for _ in $(seq 150); do
    if sinfo --noheader --format=%T 2> /dev/null | grep -q idle; then
        exit 0
    fi
    sleep 0.2
done
cannot "the node does not get idle: $(tail -n 1 "$folder/slurmctld.log")"
