#!/usr/bin/env bash
# Makes four ordinary fine-tunes of the compiled-in base, as people bring them: AdamW, no decay, no interference. What coded deltas, banks and
# baselines keep of such is another thing than what they keep of variants that were trained for them.
#
#   scripts/ordinary-fine-tunes.sh CORPORA OUT [MINUTES]
#
# CORPORA has kjv.txt, quijote.txt, shakespeare.txt and inaugural.txt; OUT gets a folder each, beside the repository. CHOIR is the binary to use
# [default: choir of the path]. Then, for each of them:
#
#   choir pack --base models/base --variant OUT/kjv --out kjv.safetensors --check-text models/held-out/kjv.txt
set -euo pipefail
corpora=${1:?the folder of the texts} out=${2:?the folder to write to} minutes=${3:-3.5}
choir=${CHOIR:-choir}
base=$(dirname "$0")/../models/base
for name in kjv quijote shakespeare inaugural; do
  "$choir" train variant --base "$base" --text "$corpora/$name.txt" --out "$out/$name" --minutes "$minutes" \
    --optimizer adamw --lr 2e-3 --weight-decay 0 --validations 2
done
