#!/usr/bin/env bash
# Every fuzz target on the stable toolchain, by tests/fuzz: scripts/fuzz.sh [SECONDS] each, ten minutes by default, with other inputs every
# day. Under a nightly toolchain `cargo fuzz run TARGET` takes the same targets further.
set -euo pipefail
cd "$(dirname "$0")/.."

export CHOIR_FUZZ_SECONDS=${1:-600} CHOIR_FUZZ_SEED=${CHOIR_FUZZ_SEED:-$(date +%F)}
cargo test --locked --release --test fuzz -- --nocapture --test-threads "${THREADS:-1}"
