#!/usr/bin/env bash
# The page, in headless Chromium: what scripts/page/check.mjs does on it. CHOIR names the binary [default: built here]; SCREENSHOTS a
# folder for pictures [default: none]. What cannot be had (Node, Debian's Chromium, playwright-core from npm) is said.
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/choir/page"
skip() {
  echo "NOT TRIED: the page, since $1"
  exit 0
}
command -v npm >/dev/null || skip "there is no Node"
if ! command -v chromium >/dev/null; then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || skip "there is no Chromium"
  (timeout 120 apt-get update && timeout 300 apt-get install -y --no-install-recommends chromium fonts-dejavu-core) >/dev/null 2>&1 ||
    skip "Chromium could not be fetched"
fi
if [ ! -d "$cache/node_modules/playwright-core" ]; then
  PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 timeout 120 npm install --silent --no-audit --no-fund --prefix "$cache" playwright-core@1.65.1 >/dev/null 2>&1 ||
    skip "playwright-core could not be fetched"
fi

choir=${CHOIR:-}
if [ -z "$choir" ]; then
  cargo build --locked --quiet
  choir=target/debug/choir
fi
work=$(mktemp -d)
server=
finish() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

export CHOIR_KEY_ADMIN="an-admin-key-of-these-tests" CHOIR_KEY_INFER="an-infer-key-of-these-tests"
printf 'ops admin %s\nann infer %s\n' "$CHOIR_KEY_ADMIN" "$CHOIR_KEY_INFER" >"$work/keys"
"$choir" serve --listen 127.0.0.1:0 --http 127.0.0.1:0 --data-dir "$work/store" --api-keys "$work/keys" >"$work/out" 2>"$work/log" &
server=$!
for _ in $(seq 1 600); do
  grep -qs ' and http://' "$work/out" && break
  kill -0 "$server" 2>/dev/null || {
    cat "$work/log" >&2
    echo "FAILED: the server ended" >&2
    exit 1
  }
  sleep 0.2
done
CHOIR_HTTP=$(grep -o 'http://[0-9.:]*' "$work/out" | head -n 1) || skip "the server did not start in two minutes"
export CHOIR_HTTP CHOIR_VARIANT="$PWD/tests/fixtures/packed/kjv.safetensors" CHOIR_CONFIG="$PWD/models/base/config.json" WORK="$work" NODE_PATH="$cache/node_modules"
chromium=$(command -v chromium) node scripts/page/check.mjs
