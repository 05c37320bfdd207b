#!/usr/bin/env bash
# Every figure of docs/benchmarks.md that a CPU makes: bench.sh OUT [CHOIR [PART..]]
# From binaries that are built already, `choir` and `choir-lab` beside it, but for `forms`, which cargo builds.
#
# For each part OUT gets PART.txt (what it printed), PART.json and PART.svg (its figures, and a drawing, where it has them) and
# PART.log (what it said besides). A part that fails stops no other; the script then ends with 1. CHOIR defaults to
# target/release/choir; PART is a name, or how names begin ("serve"); without any, all are run but `eval`.
#
#   CHOIR_SECONDS   to measure each load for [default: as in docs/benchmarks.md]
#   CHOIR_QUICK     where not empty: one round, few steps, small stores, a part of a second each: only to see that all of it runs
#   CHOIR_EVAL      where not empty: `eval`, too, which takes a quarter of an hour
set -uo pipefail
out=${1:?a folder for what is measured} choir=${2:-target/release/choir} lab=${2:-target/release/choir}-lab
shift $(($# < 2 ? $# : 2))
parts=("$@") quick=${CHOIR_QUICK:-} ran=0 failed=()
for program in "$choir" "$lab"; do
  command -v "$program" >/dev/null || { echo "no program $program: build it, or name another" >&2; exit 2; }
done
mkdir -p "$out" || exit 2

# either QUICK USUAL: the first with CHOIR_QUICK. seconds USUAL: of a load.
either() { if [ -n "$quick" ]; then echo "$1"; else echo "$2"; fi; }
seconds() { echo "${CHOIR_SECONDS:-$(either 0.5 "$1")}"; }

# part NAME LINES FIGURES COMMAND..: runs one, with --json and --plot where FIGURES has them; LINES (a pattern) are its summary.
part() {
  local name=$1 lines=$2 figures=$3 named status=0 start=$SECONDS
  shift 3
  for named in "${parts[@]:-}"; do [[ $name == "$named"* ]] && break; done
  [[ $name == "$named"* ]] || return 0
  ran=$((ran + 1))
  [[ $figures == *json* ]] && set -- "$@" --json "$out/$name.json"
  [[ $figures == *svg* ]] && set -- "$@" --plot "$out/$name.svg"
  "$@" >"$out/$name.txt" 2>"$out/$name.log" || status=$?
  echo "== $name: $((SECONDS - start)) s"
  grep -E "$lines" "$out/$name.txt" || [ "$status" != 0 ] || status="no line of figures"
  [ "$status" = 0 ] && return
  failed+=("$name")
  echo "FAILED ($status); $out/$name.log ends with:"
  tail -n 5 "$out/$name.log"
}

# What `either` says may be several words, or none.
# shellcheck disable=SC2046
{
  part engine tokens/s json,svg "$lab" bench engine --rounds "$(either 1 3)" --seconds "$(seconds 2)"
  part variants 'to add one|opened|tokens/s' json,svg "$lab" bench variants --rounds "$(either 1 5)" --seconds "$(seconds 1)" \
    $(either "--counts 4,16" "")
  part step 'sequences: .* ms a step' json "$lab" bench step --tokens "$(either 8 64)"
  part sampler '^(duo|[0-9]+ ×).* MiB' json "$lab" bench sampler --profile \
    $(either "--layers 1 --length 64 --tokens 16 --steps 1 --vocab 512" "")

  names=addition,devils-dictionary,holmes,inaugural,kjv,quijote,reverse,roman,shakespeare,sort
  serve() { # NAME SECONDS OPTION..
    local name=$1 for=$2
    shift 2
    part "serve-$name" '^all|fairness|overload|alone|took' json "$choir" bench serve --seconds "$(seconds "$for")" \
      $(either "--warm-up 0.1" "") "$@"
  }
  serve closed 10 --variants "$names" --clients 40
  serve open 10 --variants "$names" --rate 20 --popularity zipf
  serve noisy 12 --variants shakespeare,kjv --clients 44 --noisy kjv=10 --probe holmes
  serve overload 10 --variants "$names" --clients 40 --overload 4
  serve overload-1500 10 --variants "$names" --clients 40 --overload 4 --deadline-ms 1500

  for form in f32 bf16 q8_0 q4k; do
    part "memory-$form" 'all of|grew' json "$lab" bench memory --base-form "$form"
  done
  manifest=$(dirname "$0")/../Cargo.toml
  RAYON_NUM_THREADS=1 CANDLE_NUM_THREADS=1 part forms '^[|] ' "" cargo bench --locked --manifest-path "$manifest" --bench forms -- \
    $(either 2304x768 "")
  [ -z "${CHOIR_EVAL:-}" ] || part eval . json,svg "$lab" eval $(either "--contexts 1 --draws 1 --prompts 2 --capacities 4/1" "")
}
if [ "$ran" = 0 ]; then
  echo "no part begins so: ${parts[*]}" >&2
  exit 2
fi
if [ "${#failed[@]}" != 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
echo "all of it is in $out"
