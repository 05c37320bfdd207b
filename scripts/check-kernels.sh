#!/usr/bin/env bash
# Compiles every kernel as build.rs does, for sm_80 and sm_90a, and prints what each takes; ends with 1 where one does not
# compile, and with 0 where there is no nvcc (looked for as in build.rs), saying so.
set -euo pipefail
cd "$(dirname "$0")/../crates/ops/src/kernels"
nvcc=
for candidate in "${NVCC:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" nvcc /usr/local/cuda/bin/nvcc; do
  if [ -n "$candidate" ] && "$candidate" --version >/dev/null 2>&1; then
    nvcc=$candidate
    break
  fi
done
if [ -z "$nvcc" ]; then
  echo "kernels not checked: no nvcc in NVCC, CUDA_HOME/bin, PATH or /usr/local/cuda/bin"
  exit 0
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
check() {
  "$nvcc" -fatbin -std=c++17 -O3 -fmad=false -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a \
    -gencode arch=compute_90,code=compute_90 \
    -I . -Xptxas -v -o "$out/$1.fatbin" "$1" >"$out/$1.log" 2>&1 || touch "$out/$1.failed"
}
shopt -s nullglob
files=(*.cu)
for file in "${files[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n; done
  check "$file" &
done
wait

printf '%-14s %-30s %-6s %9s %6s %6s %6s\n' file kernel target registers spills stack shared
failed=0
for file in "${files[@]}"; do
  if [ -e "$out/$file.failed" ]; then
    echo "$file does not compile:"
    cat "$out/$file.log"
    failed=1
    continue
  fi
  # Bytes but for registers; spills are stores and loads together.
  awk -v file="$file" -v quote="'" '
    /Compiling entry function/ { gsub(quote, ""); kernel = $(NF - 2); target = $NF }
    /Function properties for/ { of = $NF }
    /bytes stack frame/ && of == kernel { stack = $1; spills = $5 + $9 }
    /Used [0-9]+ registers/ {
      shared = 0
      for (i = 1; i <= NF; i++) {
        if ($i == "registers,") registers = $(i - 1)
        if ($i ~ /^smem,?$/) shared = $(i - 2)
      }
      printf "%-14s %-30s %-6s %9d %6d %6d %6d\n", file, kernel, target, registers, spills, stack, shared
    }' "$out/$file.log"
done
exit "$failed"
