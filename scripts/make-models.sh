#!/usr/bin/env bash
# Makes everything in models/: tokenizer, base, fourteen variants, held-out texts. About four hours on two cores.
#
#   scripts/make-models.sh CORPORA OUT
#
# CORPORA holds base/*.txt and variants/*.txt; OUT takes the checkpoints and logs, and is where a run that was cut off
# goes on. The last 5 % of every text is held out: never trained on, and shipped (in part) for `choir-lab eval`.
# CHOIR is a binary that is there already; DEVICE=cuda trains on a GPU; SHARE=0.1 takes a tenth of all minutes.
set -euo pipefail
corpora=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "$0")/.."

choir=${CHOIR:-$out/target/release/choir}
# The instruction set of this machine: training needs it more than it needs to run elsewhere.
[ -n "${CHOIR:-}" ] || RUSTFLAGS="-C target-cpu=native" cargo build --locked --release --target-dir "$out/target"
models=${MODELS:-models}
mkdir -p "$models/base" "$models/variants"

"$choir" train tokenizer --text "$corpora/base" --extra "$corpora"/variants/*.txt --extra-share 0.25 --vocab 1024 \
  --out "$out/tokenizer.json"

# Resumes from its checkpoint; a finished one is left alone.
train() { # NAME MINUTES, then options of `choir train`
  local name=$1 minutes
  minutes=$(awk "BEGIN { print $2 * ${SHARE:-1} }")
  shift 2
  [ -f "$out/$name/model.safetensors" ] && return
  echo "training $name for $minutes minutes"
  "$choir" train "$@" --minutes "$minutes" --device "${DEVICE:-cpu}" --out "$out/$name" --resume --report-every 30 \
    >>"$out/$name.log" 2>&1
  tail -n 2 "$out/$name.log"
}

train base 40 base --text "$corpora/base" --tokenizer "$out/tokenizer.json" --block 8 --precision bf16 \
  --optimizer muon --lr 1e-2 --batch 16 --ema 0.998 --validations 8
cp "$out"/base/{config.json,tokenizer.json,model.safetensors} "$models/base/"

"$choir" train held-out --text "$corpora/base" "$corpora/variants" --max-bytes 50000 --out "$models/held-out"

# Muon learns fast and leaves large deltas, whose interference would drown the others in a bank. So most variants are made in
# several runs: one to learn, then some under the interference that they will meet there, with decay that pulls the delta to the base.
learn() { # NAME MINUTES RATE OPTIMIZER, then where examples come from
  local name=$1 minutes=$2 rate=$3 optimizer=$4
  shift 4
  train "$name" "$minutes" variant --base "$out/base" "$@" --optimizer "$optimizer" --lr "$rate" --weight-decay 0 \
    --validations 3 --threads 1
}
settle() { # FROM TO MEMBERS MINUTES RATE DECAY, then where examples come from
  local from=$1 to=$2 members=$3 minutes=$4 rate=$5 decay=$6
  shift 6
  train "$to" "$minutes" variant --base "$out/base" --start "$out/$from" "$@" --interference "$members/$((members / 2))" --optimizer adamw --lr "$rate" \
    --weight-decay "$decay" --validations 3 --threads 1
}
# As it will be kept: a store takes such a file as it is.
pack() { # NAME FOLDER, then sampling defaults and what to measure on
  local name=$1 folder=$2
  shift 2
  "$choir" pack --codes-alone --base "$models/base" --variant "$out/$folder" "$@" --out "$models/variants/$name.safetensors"
}
style() { # NAME
  local name=$1
  local text=(--text "$corpora/variants/$name.txt")
  local run=("${text[@]}" --batch 8)
  case $name in
    kjv) learn "$name" 3.5 1e-3 adamw "${run[@]}" && settle "$name" "$name-settled" 4 2 1e-3 3 "${run[@]}" ;;
    quijote) learn "$name" 4 4e-3 muon "${run[@]}" && settle "$name" "$name-settled" 4 2.5 1e-3 6 "${run[@]}" ;;
    shakespeare) learn "$name" 3.5 1e-3 adamw "${run[@]}" && settle "$name" "$name-settled" 4 5 1e-3 1 "${run[@]}" ;;
    *)
      learn "$name" 4 4e-3 muon "${run[@]}"
      settle "$name" "$name-longer" 4 15 1.5e-3 1 "${run[@]}"
      settle "$name-longer" "$name-settled" 8 4.5 1e-3 2 "${run[@]}"
      ;;
  esac
  local seed=()
  # The best of a few rotations, where they differ.
  case $name in holmes) seed=(--seed 1) ;; inaugural) seed=(--seed 9) ;; esac
  pack "$name" "$name-settled" --temperature 0.9 --nucleus-p 0.95 --check-text "$models/held-out/$name.txt" "${seed[@]}"
}
skill() { # NAME
  local name=$1
  local run=(--skill "$name" --batch 32)
  learn "$name" 12 6e-3 muon "${run[@]}"
  settle "$name" "$name-settling" 4 7.5 2.5e-3 2 --skill "$name" --batch 24
  settle "$name-settling" "$name-settled" 4 4 2e-3 0.8 "${run[@]}"
  case $name in
    addition) settle "$name-settled" "$name-last" 4 16 2e-3 0.3 "${run[@]}" ;;
    roman)
      settle "$name-settled" "$name-longer" 4 9 2e-3 0.3 "${run[@]}"
      settle "$name-longer" "$name-last" 4 20 2e-3 0.3 "${run[@]}"
      ;;
    sort) settle "$name-settled" "$name-last" 4 15 2e-3 0.3 "${run[@]}" ;;
    *) cp -r "$out/$name-settled" "$out/$name-last" ;;
  esac
  pack "$name" "$name-last" --temperature 0 --threshold 1 --skill "$name"
}
duo() { # NAME: a uniform variant of the style, and what it is distilled to
  local name=$1
  local text=(--text "$corpora/variants/$name.txt")
  local run=("${text[@]}" --batch 8)
  learn "$name-uniform" 9 1.5e-3 adamw "${run[@]}" --process uniform
  settle "$name-uniform" "$name-duo" 4 9 1e-3 0.5 "${run[@]}"
  train "$name-few" 8 distill --base "$out/base" --teacher "$out/$name-duo" "${run[@]}" --lr 3e-4 --interference 4/2 \
    --weight-decay 0.5 --validations 3 --threads 1
  pack "$name-duo" "$name-duo" --steps 64 --noise-removal greedy --nucleus-p 0.95 --check-text "$models/held-out/$name.txt"
  pack "$name-few" "$name-few" --steps 8 --noise-removal greedy --nucleus-p 0.95 --check-text "$models/held-out/$name.txt"
}
# Two at a time, a thread each.
one_half() {
  for name in "$@"; do
    case $name in
      addition | reverse | roman | sort) skill "$name" ;;
      *-duo) duo "${name%-duo}" ;;
      *) style "$name" ;;
    esac
  done
}
one_half shakespeare holmes inaugural addition sort shakespeare-duo &
one_half kjv quijote devils-dictionary reverse roman kjv-duo
wait

