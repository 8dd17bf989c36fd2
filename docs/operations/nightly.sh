#!/usr/bin/env bash
# Segments what is new in FOLDER/scans with FOLDER/net.onnx: once for each scan, and goes on where a night was too short.
#
#   nightly.sh FOLDER
set -euo pipefail
cd "$1"

# last night's run may still be under way: then this one has nothing to do
exec 9>nightly.lock
flock --nonblock 9 || exit 0

exec unet-engine run --in 'scans/*.zarr' --model net.onnx --out 'labels/{stem}.zarr' --resume --keep-going \
    --results results.jsonl --log nightly.log --metrics metrics.prom --quiet
