#!/usr/bin/env bash
# Clients that nobody here wrote, against a server started here: the programs of docs/clients.md, and scripts/clients/check.py.
# CHOIR names the binary [default: built here]. What cannot be had (Python, packages, Node) is said and left out. With
# --load-generators also aiperf, guidellm and inference-perf.
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/choir/clients"
# The versions of docs/compatibility.md: another release of theirs is no fault of ours.
packages=("openai==3.57.0" "tritonclient[grpc]==2.73.0" "grpcio==1.85.3" "grpcio-tools==1.81.1" "grpcio-reflection==1.81.1"
  "grpcio-health-checking==1.81.1" "prometheus-client==0.26.0" "buf-bin==1.75.0")
work=$(mktemp -d)
servers=()
finish() {
  [ ${#servers[@]} -eq 0 ] || kill "${servers[@]}" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

choir=${CHOIR:-}
if [ -z "$choir" ]; then
  cargo build --locked --quiet
  choir=target/debug/choir
fi

python="$cache/venv/bin/python"
if ! "$python" -c 'import grpc_tools, openai, tritonclient.grpc, prometheus_client' 2>/dev/null || [ ! -x "$cache/venv/bin/buf" ]; then
  rm -rf "$cache/venv"
  mkdir -p "$cache"
  python3 -m venv "$cache/venv" 2>/dev/null && timeout 300 "$python" -m pip install -q "${packages[@]}" 2>/dev/null || {
    echo "NOT TRIED: Python or its packages are not at hand; nothing was asked by real clients"
    exit 0
  }
fi

# Starts a server and says where it is: start NAME OPTION... A machine too slow for it is no fault of the server.
start() {
  local name=$1 line
  shift
  "$choir" serve --listen 127.0.0.1:0 --http 127.0.0.1:0 --data-dir "$work/$name" "$@" >"$work/$name.out" 2>"$work/$name.log" &
  servers+=($!)
  for _ in $(seq 1 600); do
    line=$(grep -os ' on 127.0.0.1:[0-9]* and http://[0-9.:]*' "$work/$name.out" || true)
    if [ -n "$line" ]; then
      read -r _ grpc _ http <<<"$line"
      return 0
    fi
    kill -0 "${servers[-1]}" 2>/dev/null || {
      cat "$work/$name.log" >&2
      echo "FAILED: the server ended" >&2
      exit 1
    }
    sleep 0.2
  done
  echo "NOT TRIED: the server did not start in two minutes; nothing was asked by real clients"
  exit 0
}

export CHOIR_API_KEY="a-key-of-these-tests"
printf 'tests admin %s\n' "$CHOIR_API_KEY" >"$work/keys"
start keyed --api-keys "$work/keys"
export CHOIR_KEYED_GRPC=$grpc CHOIR_KEYED_HTTP=$http
start open
export CHOIR_GRPC=$grpc CHOIR_HTTP=$http CHOIR_PROTO="$PWD/proto"

"$python" scripts/clients/check.py

# The programs of the documentation: fenced blocks with a file's name.
mkdir "$work/programs"
awk -v out="$work/programs" '/^```[a-z]+ [a-z_]+\.[a-z]+$/ { file = out "/" $2; next } /^```$/ { file = "" } file { print > file }' docs/clients.md
"$python" -m grpc_tools.protoc -I proto --python_out="$work/programs" --grpc_python_out="$work/programs" proto/choir/v1/*.proto
run() {
  local program=$1 status=0
  shift
  (cd "$work/programs" && timeout 120 "$@" "$program") >"$work/said" 2>&1 || status=$?
  if [ "$status" = 124 ]; then
    echo "NOT TRIED TO ITS END: $program of docs/clients.md took more than two minutes"
    return
  fi
  if [ "$status" != 0 ]; then
    cat "$work/said" >&2
    echo "FAILED: $program of docs/clients.md" >&2
    exit 1
  fi
  echo "ok docs/clients.md: $program"
}
for program in "$work"/programs/*.py; do run "$(basename "$program")" "$python"; done
run curl.sh bash -euo pipefail
# grpcurl itself cannot be had from package registries: what its calls in the documents say is asked by buf, which reads the same
# reflection and writes the same JSON.
"$python" - "$cache/venv/bin/buf" "$CHOIR_GRPC" <<'PY'
import re, subprocess, sys

buf, address = sys.argv[1:]
for path in ("README.md", "docs/clients.md"):
    calls = re.findall(r"grpcurl -plaintext -d '(.*?)' \\\n\s+\S+ (\S+)", open(path).read())
    assert calls, f"{path} has no call by grpcurl"
    for data, method in calls:
        said = subprocess.run(
            [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", data, f"http://{address}/{method}"],
            capture_output=True, text=True, timeout=60,
        )
        assert said.returncode == 0 and '"finished"' in said.stdout, said
        print(f"ok {path}: grpcurl's call of {method}, by buf 1.75.0")
PY
CHOIR_VARIANT="$PWD/models/variants/kjv.safetensors" run variants.sh bash -euo pipefail

if command -v npm >/dev/null; then
  if [ -d "$cache/node/node_modules/@grpc/grpc-js" ] ||
    timeout 120 npm install --silent --no-audit --no-fund --prefix "$cache/node" @grpc/grpc-js@1.14.7 @grpc/proto-loader@0.8.1 >/dev/null 2>&1; then
    ln -s "$cache/node/node_modules" "$work/programs/node_modules"
    run node.mjs node
    echo "ok @grpc/grpc-js $(node -p "require('$cache/node/node_modules/@grpc/grpc-js/package.json').version")"
  else
    echo "NOT TRIED: @grpc/grpc-js could not be fetched"
  fi
else
  echo "NOT TRIED: there is no Node"
fi
echo "ok $(curl --version | head -n 1 | cut -d' ' -f1-2)"
if [ "${1:-}" = --load-generators ]; then
  scripts/clients/load.sh
else
  echo "NOT TRIED: aiperf, guidellm and inference-perf, eight gigabytes of packages; scripts/clients.sh --load-generators does"
fi
