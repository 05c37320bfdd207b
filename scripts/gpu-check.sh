#!/usr/bin/env bash
# Tests of kernels and of the device, from binaries that are built already: gpu-check.sh FOLDER [LOGS]
# FOLDER holds `gpu`, the test binary of tests/gpu, and `unit`, that of src/lib.rs, copied from where
# `cargo test --features cuda --no-run` says that they are. Needs
# no more than NVIDIA's driver, cuBLAS, and the fixtures where CHOIR_FIXTURES says. Prints PASS or FAIL for each, with the end
# of what a failure said; ends with 1 where one failed. Where compute-sanitizer is on PATH it looks at the kernels as well, for
# as long as CHOIR_SANITIZER_SECONDS (default 120) each.
set -uo pipefail
folder=${1:?the folder with the binaries}
logs=${2:-$(mktemp -d)}
mkdir -p "$logs"
source "$(dirname "$0")/gpu-libraries.sh"
# No compiler: nothing is emulated here.
export CHOIR_TEST_MACHINE=cuda CXX=/nowhere/c++

failed=0
check() {
  local name=$1 limit=$2 status=0
  shift 2
  local start=$SECONDS
  timeout "$limit" "$@" >"$logs/$name.log" 2>&1 || status=$?
  if [ "$status" = 0 ]; then
    echo "PASS $name ($((SECONDS - start)) s): $(grep -h '^test result' "$logs/$name.log" | tail -1)"
  else
    failed=1
    echo "FAIL $name (status $status, $((SECONDS - start)) s)"
    grep -hE '^test .* FAILED' "$logs/$name.log" | sed 's/^/  /'
    tail -n "${CHOIR_TAIL:-40}" "$logs/$name.log" | sed 's/^/  | /'
  fi
}

check device 120 "$folder/unit" ops::gpu::cuda --include-ignored --test-threads=1
check kernels "${CHOIR_CHECK_SECONDS:-300}" "$folder/gpu" --test-threads=1 ${CHOIR_CHECK_ARGS:-}
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    check "$tool" "${CHOIR_SANITIZER_SECONDS:-120}" compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 1 \
      "$folder/gpu" --test-threads=1 ${CHOIR_SANITIZER_TESTS:-product superposition pointwise heads attention draws teacher own}
  done
fi
echo "logs: $logs"
exit "$failed"
