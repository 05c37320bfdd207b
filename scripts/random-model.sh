#!/usr/bin/env bash
# A checkpoint of a published shape with random weights, in shards: scripts/random-model.sh FAMILY SIZE OUT [options].
# FAMILY SIZE: sdar tiny|1.7b|4b|8b, a2d-qwen3 0.6b, a2d-qwen2 0.5b. `--change 0.01 --tuned N` makes the N-th fine-tune of it.
set -euo pipefail
cd "$(dirname "$0")/.."
exec cargo run --quiet --release -p choir-lab -- random-model "$@"
