#!/usr/bin/env bash
# The load generators aiperf, guidellm and inference-perf, unchanged, against /v1/completions of the server at CHOIR_HTTP, with the tokenizer of
# models/base; inference-perf spreads its traffic over four variants as over LoRA adapters. Eight gigabytes of packages, six of them guidellm's.
set -euo pipefail
cd "$(dirname "$0")/../.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/choir/load"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$cache" "$work/tokenizer"
cp models/base/tokenizer.json "$work/tokenizer"
echo '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "model_max_length": 1024}' >"$work/tokenizer/tokenizer_config.json"

# fetch NAME VERSION: an environment with one of them. inference-perf says that it needs Python 3.12, and works on 3.11, where what it
# depends on has to be chosen for that.
fetch() {
  local at="$cache/$1-$2" python="$cache/$1-$2/bin/python" needs='import importlib.metadata as m, sys
print(*[one for one in m.requires(sys.argv[1]) if "extra ==" not in one], sep="\n")'
  [ -e "$at/complete" ] && return
  rm -rf "$at"
  python3 -m venv "$at" &&
    timeout 120 "$python" -m pip install -q --no-deps --ignore-requires-python "$1==$2" >"$work/pip" 2>&1 &&
    "$python" -c "$needs" "$1" >"$work/needs" &&
    timeout 600 "$python" -m pip install -q -r "$work/needs" >"$work/pip" 2>&1 && touch "$at/complete" && return
  tail -n 3 "$work/pip"
  echo "NOT TRIED: $1 could not be fetched"
  return 1
}
# ran NAME STATUS: whether a run came to its end.
ran() {
  case $2 in
  0) return 0 ;;
  124) echo "NOT TRIED TO ITS END: $1 took too long" && return 1 ;;
  *) tail -n 40 "$work/said" >&2 && echo "FAILED: $1" >&2 && exit 1 ;;
  esac
}

if fetch aiperf 0.13.0; then
  status=0
  # A hub that cannot be reached is asked at length otherwise, though the tokenizer is a folder.
  HF_ENDPOINT=http://127.0.0.1:9 timeout 400 "$cache/aiperf-0.13.0/bin/aiperf" profile -m kjv --url "$CHOIR_HTTP" --endpoint-type completions --streaming \
    --tokenizer "$work/tokenizer" --concurrency 4 --request-count 40 --synthetic-input-tokens-mean 30 --output-tokens-mean 32 \
    --random-seed 1 --ui none --artifact-dir "$work/aiperf" >"$work/said" 2>&1 || status=$?
  if ran aiperf "$status"; then
    python3 - "$work/aiperf/profile_export_aiperf.json" <<'PY'
import json, sys

report = json.load(open(sys.argv[1]))
value = lambda name: report[name]["avg"]
assert value("completed_request_count") == 40 and value("request_error_rate") == 0, report
print(
    f"ok aiperf 0.13.0: 40 streams, {value('output_token_throughput'):.0f} tokens/s, first token after "
    f"{value('time_to_first_token'):.0f} ms"
)
PY
  fi
fi

if fetch guidellm 0.8.1; then
  status=0
  HF_HUB_OFFLINE=1 timeout 300 "$cache/guidellm-0.8.1/bin/guidellm" run \
    --backend "kind=openai_http,target=$CHOIR_HTTP,model=kjv,request_format=/v1/completions" --profile kind=concurrent,streams=4 \
    --constraint kind=max_requests,count=40 --tokenizer "kind=hf_auto,model=$work/tokenizer" \
    --data kind=synthetic_text,prompt_tokens=30,output_tokens=32 --disable-console \
    --output "kind=json,path=$work/guidellm.json" >"$work/said" 2>&1 || status=$?
  if ran guidellm "$status"; then
    python3 - "$work/guidellm.json" <<'PY'
import json, sys

metrics = json.load(open(sys.argv[1]))["benchmarks"][0]["metrics"]
totals = metrics["request_totals"]
assert totals["successful"] == totals["total"] == 40, totals
value = lambda name: metrics[name]["successful"]["mean"]
print(
    f"ok guidellm 0.8.1: 40 streams, {value('output_tokens_per_second'):.0f} tokens/s, first token after "
    f"{value('time_to_first_token_ms'):.0f} ms"
)
PY
  fi
fi

if fetch inference-perf 0.7.0; then
  cat >"$work/config.yaml" <<YAML
api: {type: completion, streaming: true}
data:
  type: synthetic
  input_distribution: {min: 10, max: 40, mean: 30, std_dev: 5, total_count: 60}
  output_distribution: {min: 16, max: 32, mean: 32, std_dev: 4, total_count: 60}
load:
  type: constant
  stages: [{rate: 4, duration: 15}]
  num_workers: 1
  lora_traffic_split: [{name: kjv, split: 0.25}, {name: holmes, split: 0.25}, {name: shakespeare, split: 0.25}, {name: quijote, split: 0.25}]
server: {type: vllm, model_name: base, base_url: "$CHOIR_HTTP", ignore_eos: false}
tokenizer: {pretrained_model_name_or_path: "$work/tokenizer"}
storage: {local_storage: {path: "$work/inference-perf"}}
YAML
  status=0
  HF_HUB_OFFLINE=1 timeout 300 "$cache/inference-perf-0.7.0/bin/inference-perf" -c "$work/config.yaml" >"$work/said" 2>&1 || status=$?
  if ran inference-perf "$status"; then
    python3 - "$work/inference-perf" <<'PY'
import json, sys

read = lambda name: json.load(open(f"{sys.argv[1]}/{name}_lifecycle_metrics.json"))
whole = read("summary")
assert whole["failures"]["count"] == 0 and whole["successes"]["count"] == 60, whole
split = {name: read(f"adapter_{name}")["successes"]["count"] for name in ("kjv", "holmes", "shakespeare", "quijote")}
assert sum(split.values()) == 60 and all(split.values()), split
print(f"ok inference-perf 0.7.0: 60 streams over four variants as adapters: {split}")
PY
  fi
fi
