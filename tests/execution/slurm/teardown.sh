#!/usr/bin/env bash
# Ends what setup.sh started in FOLDER, jobs included. The packages stay installed.
set -u
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
folder=$1
export SLURM_CONF=$folder/slurm.conf

if [ -f "$folder/slurmctld.pid" ]; then
    scancel --user="$(id -un)" 2> /dev/null
    for _ in $(seq 50); do
        [ -z "$(squeue --noheader 2> /dev/null)" ] && break
        sleep 0.2
    done
fi
for pid in "$folder/slurmd.pid" "$folder/slurmctld.pid" "$folder/munge/pid"; do
    [ -f "$pid" ] || continue
    number=$(cat "$pid")
    kill "$number" 2> /dev/null
    for _ in $(seq 50); do
        kill -0 "$number" 2> /dev/null || break
        sleep 0.1
    done
    kill -9 "$number" 2> /dev/null
    rm -f "$pid"
done
exit 0
