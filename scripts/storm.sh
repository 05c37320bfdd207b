#!/usr/bin/env bash
# The storm of tests/server/storm.rs for as long as wanted: scripts/storm.sh [SECONDS], an hour by default. Where a small disk can be
# mounted (tmpfs, as root) the store lies on it, and it is filled in every fourth round; SIZE says how small.
set -euo pipefail
cd "$(dirname "$0")/.."

export CHOIR_STORM_SECONDS=${1:-3600}
disk=$(mktemp -d)
if mount -t tmpfs -o "size=${SIZE:-192m}" choir-storm "$disk" 2>/dev/null; then
  trap 'umount "$disk"; rmdir "$disk"' EXIT
  export CHOIR_STORM_DIR=$disk
else
  trap 'rmdir "$disk"' EXIT
  echo "NOT TRIED: a full disk, since none can be mounted"
fi
cargo test --locked --release --test server -- --nocapture --exact storm::storms_leave_a_whole_store_and_nothing_behind
