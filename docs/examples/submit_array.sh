#!/usr/bin/env bash
# A run as an array of jobs that share nothing but the output, and a last job that says whether all of it is there.
#
#   submit_array.sh PARTS OUT OPTIONS...
#   submit_array.sh 64 /data/labels.zarr --in /data/scan.zarr --model /data/net.onnx
#
# Options of sbatch come from its own variables, e.g. SBATCH_PARTITION=gpu SBATCH_ACCOUNT=lab.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
parts=$1 out=$2
shift 2

array=$(sbatch --parsable --array="1-$parts" "$(dirname "$0")/job_array.sbatch" --out "$out" "$@")
# afterany: where a part failed, this one names it
last=$(sbatch --parsable --dependency="afterany:$array" --job-name=unet-engine-finish --ntasks=1 --mem=1G --time=00:10:00 \
    --output="unet-engine-$array-finish.log" --wrap="unet-engine finish '$out'")
echo "parts: job $array, finish: job $last"
