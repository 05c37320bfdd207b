#!/usr/bin/env bash
# Makes everything in models/: tokenizer, base, ten variants, held-out texts. About two hours on two cores.
#
#   scripts/make-models.sh CORPORA OUT
#
# CORPORA holds base/*.txt and variants/*.txt; OUT takes the checkpoints and logs, and is where a run that was cut off
# goes on. The last 5 % of every text is held out: never trained on, and shipped (in part) for `choir eval`.
set -euo pipefail
corpora=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "$0")/.."

# The instruction set of this machine: training needs it more than it needs to run elsewhere.
RUSTFLAGS="-C target-cpu=native" cargo build --locked --release --target-dir "$out/target"
choir="$out/target/release/choir"
models=${MODELS:-models}
mkdir -p "$models/base" "$models/variants"

"$choir" train tokenizer --text "$corpora/base" --extra "$corpora"/variants/*.txt --extra-share 0.25 --vocab 1024 \
  --out "$out/tokenizer.json"

# Resumes from its checkpoint; a finished one is left alone.
train() { # NAME, then options of `choir train`
  local name=$1
  shift
  [ -f "$out/$name/model.safetensors" ] && return
  echo "training $name"
  "$choir" train "$@" --out "$out/$name" --resume --report-every 30 >>"$out/$name.log" 2>&1
  tail -n 2 "$out/$name.log"
}

train base base --text "$corpora/base" --tokenizer "$out/tokenizer.json" --block 8 --precision bf16 \
  --optimizer muon --lr 1e-2 --batch 16 --ema 0.998 --validations 8 --minutes "${BASE_MINUTES:-40}"
cp "$out"/base/{config.json,tokenizer.json,model.safetensors} "$models/base/"

# Muon learns fast and leaves large deltas, whose interference would drown the others in a bank. So most variants are made in two
# runs: one to learn, then one that pulls the delta to the base under the interference that it will meet there.
variant() { # NAME MINUTES RATE OPTIMIZER, then where examples come from
  local name=$1 minutes=$2 rate=$3 optimizer=$4
  shift 4
  train "$name" variant --base "$out/base" "$@" --optimizer "$optimizer" --lr "$rate" --minutes "$minutes" --weight-decay 0 \
    --validations 3 --threads 1
}
settle() { # FROM TO MINUTES RATE DECAY, then where examples come from
  local from=$1 to=$2 minutes=$3 rate=$4 decay=$5
  shift 5
  train "$to" variant --base "$out/base" --start "$out/$from" "$@" --interference 4 --optimizer adamw --lr "$rate" \
    --weight-decay "$decay" --minutes "$minutes" --ema 0.99 --validations 3 --threads 1
}
pack() { # NAME FOLDER GROUP, then what to measure on
  local name=$1 folder=$2 group=$3
  shift 3
  "$choir" train pack --base "$models/base" --variant "$out/$folder" --group "$group" "$@" --out "$models/variants/$name.safetensors"
}
style() { # NAME
  local text=(--text "$corpora/variants/$1.txt" --batch 8)
  case $1 in
    shakespeare) variant "$1" 3.5 1e-3 adamw "${text[@]}" && cp -r "$out/$1" "$out/$1-settled" ;;
    kjv) variant "$1" 3.5 1e-3 adamw "${text[@]}" && settle "$1" "$1-settled" 2 1e-3 3 "${text[@]}" ;;
    *) variant "$1" 4 4e-3 muon "${text[@]}" && settle "$1" "$1-settled" 2.5 1e-3 6 "${text[@]}" ;;
  esac
  pack "$1" "$1-settled" 32 --text "$corpora/variants/$1.txt"
}
skill() { # NAME
  variant "$1" 12 6e-3 muon --skill "$1" --batch 32
  settle "$1" "$1-settling" 7.5 2.5e-3 2 --skill "$1" --batch 24
  settle "$1-settling" "$1-settled" 4.5 2e-3 0.8 --skill "$1" --batch 32
  pack "$1" "$1-settled" 16 --skill "$1"
}
# Two at a time, a thread each.
one_half() { for name in "$@"; do case $name in addition | reverse | roman | sort) skill $name ;; *) style $name ;; esac; done; }
one_half shakespeare holmes inaugural addition sort &
one_half kjv quijote devils-dictionary reverse roman
wait

"$choir" train held-out --text "$corpora/base" "$corpora/variants" --max-bytes 50000 --out "$models/held-out"
