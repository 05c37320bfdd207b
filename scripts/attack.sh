#!/usr/bin/env bash
# Attacks beside a neighbour's stream on the real process (tests/server/attack.rs), with what they cost: memory, the neighbour's longest
# pause, how soon they are refused.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo test --locked --release --test server -- --nocapture --exact attack::attacks_are_refused_and_take_no_more_than_is_admitted
