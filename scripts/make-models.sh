#!/usr/bin/env bash
# Makes everything in models/: tokenizer, base, ten variants, held-out texts. About 70 minutes on two cores.
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

for style in shakespeare kjv holmes quijote inaugural devils-dictionary; do
  train $style variant --base "$out/base" --text "$corpora/variants/$style.txt" \
    --optimizer adamw --lr "${STYLE_LR:-1e-3}" --batch 8 --minutes "${STYLE_MINUTES:-2.5}" --validations 3 --weight-decay 0
  "$choir" train pack --base "$models/base" --variant "$out/$style" --text "$corpora/variants/$style.txt" \
    --out "$models/variants/$style.safetensors"
done

for skill in addition reverse roman sort; do
  train $skill variant --base "$out/base" --skill $skill \
    --optimizer "${SKILL_OPTIMIZER:-adamw}" --lr "${SKILL_LR:-2e-3}" --batch 24 --minutes "${SKILL_MINUTES:-3}" --validations 3 \
    --weight-decay 0
  "$choir" train pack --base "$models/base" --variant "$out/$skill" --skill $skill --out "$models/variants/$skill.safetensors"
done

"$choir" train held-out --text "$corpora/base" "$corpora/variants" --max-bytes 50000 --out "$models/held-out"
