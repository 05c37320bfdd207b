#!/usr/bin/env bash
# `choir-lab bench gpu` part by part, the whole engine with few and many sequences and short and long steps (`engine`), and training
# beside the CPU's (`train`), from binaries that are built already, `choir` and `choir-lab` beside it:
# gpu-bench.sh CHOIR LOGS [PART..]
# Decoder bodies of the shapes in CHOIR_SHAPES (default sdar-4b) have random weights.
# Every part gets its own process and CHOIR_PART_SECONDS (default 90) at most; what it printed and its figures as JSON go
# into LOGS. Ends with 1 where a part failed.
set -uo pipefail
choir=${1:?the choir binary} lab=$1-lab logs=${2:?a folder for logs}
shift 2
mkdir -p "$logs"
source "$(dirname "$0")/gpu-libraries.sh"
[ "$#" -gt 0 ] || set -- copy gemm retrieve bank-gemm own sampling step-small latency duo step-4b step-decoder engine train
device=${CHOIR_DEVICE:-cuda:0} models=$(dirname "$0")/../models

within_limit() { timeout "${CHOIR_PART_SECONDS:-90}" "$@"; }
run() {
  local load where
  case $1 in
    engine)
      for load in "16 512" "256 512" "256 4096"; do
        echo "sequences, tokens of a step at most: $load"
        within_limit "$lab" bench engine --device "$device" --data-dir "$logs/store" --sequences "${load% *}" \
          --step-tokens "${load#* }" --rounds 2 --seconds "${CHOIR_ENGINE_SECONDS:-1}" || return
      done
      ;;
    train)
      for where in cpu "$device"; do
        echo "a base like the compiled-in one, on $where:"
        within_limit "$choir" train base --text "$models/held-out" --tokenizer "$models/base/tokenizer.json" --block 8 --batch 16 \
          --minutes 0.2 --report-every 4 --validations 1 --device "$where" --out "$logs/trained-on-$where" || return
      done
      ;;
    step-decoder)
      within_limit "$lab" bench gpu --only "$1" --shape "${CHOIR_SHAPES:-sdar-4b}" --device "$device" \
        --seconds "${CHOIR_SECONDS:-0.1}" --json "$logs/$1.json"
      ;;
    *) within_limit "$lab" bench gpu --only "$1" --device "$device" --seconds "${CHOIR_SECONDS:-0.1}" --json "$logs/$1.json" ;;
  esac
}

failed=0
for part in "$@"; do
  status=0 start=$SECONDS
  run "$part" >"$logs/$part.log" 2>&1 || status=$?
  cat "$logs/$part.log"
  echo "== $part: status $status, $((SECONDS - start)) s"
  [ "$status" = 0 ] || failed=1
done
exit "$failed"
