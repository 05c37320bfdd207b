#!/usr/bin/env bash
# `choir bench gpu` part by part, from a binary that is built already: gpu-bench.sh CHOIR LOGS [PART..]
# Every part gets its own process and CHOIR_PART_SECONDS (default 90) at most; what it printed and its figures as JSON go
# into LOGS. Ends with 1 where a part failed.
set -uo pipefail
choir=${1:?the choir binary} logs=${2:?a folder for logs}
shift 2
mkdir -p "$logs"
source "$(dirname "$0")/gpu-libraries.sh"
[ "$#" -gt 0 ] || set -- copy gemm retrieve accumulate bank-gemm sampling step-small latency duo step-4b

failed=0
for part in "$@"; do
  status=0 start=$SECONDS
  timeout "${CHOIR_PART_SECONDS:-90}" "$choir" bench gpu --only "$part" --device "${CHOIR_DEVICE:-cuda:0}" \
    --seconds "${CHOIR_SECONDS:-0.1}" --json "$logs/$part.json" >"$logs/$part.log" 2>&1 || status=$?
  cat "$logs/$part.log"
  echo "== $part: status $status, $((SECONDS - start)) s"
  [ "$status" = 0 ] || failed=1
done
exit "$failed"
