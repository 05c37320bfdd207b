#!/usr/bin/env bash
# nginx and haproxy before a server, with the settings of deploy/proxies: streams, errors, cancels and an upload through each, over TLS.
# CHOIR names the binary [default: built here]. Needs Debian's nginx, haproxy, openssl and curl; what is missing is said.
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in openssl curl python3; do
  command -v "$tool" >/dev/null || {
    echo "NOT TRIED: proxies, since there is no $tool"
    exit 0
  }
done
choir=${CHOIR:-}
if [ -z "$choir" ]; then
  cargo build --locked --quiet
  choir=target/debug/choir
fi
choir=$(realpath "$choir")
work=$(mktemp -d)
running=()
finish() {
  [ ${#running[@]} -eq 0 ] || kill "${running[@]}" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

"$choir" serve --listen 127.0.0.1:0 --http 127.0.0.1:0 --data-dir "$work/store" --trust-client-id >"$work/out" 2>"$work/log" &
running+=($!)
until grep -qs ' and http://' "$work/out"; do
  kill -0 "${running[0]}"
  sleep 0.2
done
read -r _ grpc _ http < <(grep -o ' on 127.0.0.1:[0-9]* and http://[0-9.:]*' "$work/out")
direct="http://$grpc"

openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE \
  -keyout "$work/key.pem" -out "$work/cert.pem" 2>/dev/null
cat "$work/cert.pem" "$work/key.pem" >"$work/both.pem"

# A port that is free now.
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Everything that a person does, through one proxy.
through() {
  local name=$1 port=$2 at="https://localhost:$2" text
  export CHOIR_SERVER=$at CHOIR_TLS_CA="$work/cert.pem"
  for _ in $(seq 1 50); do
    curl -sS --cacert "$CHOIR_TLS_CA" "$at/health" >/dev/null 2>&1 && break
    sleep 0.2
  done
  text=$(unset CHOIR_TLS_CA && CHOIR_SERVER=$direct ask "And he said," -v kjv -n 200 --seed 3)
  [ "$(ask "And he said," -v kjv -n 200 --seed 3)" = "$text" ] || fail "$name changes a stream"
  text=$(curl -sSN --cacert "$CHOIR_TLS_CA" "$at/v1/completions" -H 'content-type: application/json' \
    -d '{"model": "kjv", "prompt": "And he said,", "max_tokens": 64, "stream": true}')
  [[ $text == *'data: [DONE]'* ]] || fail "$name: no events"
  { "$choir" generate "x" -v nobody 2>&1 || true; } | grep -q 'NotFound: .*nobody' || fail "$name changes an error"
  timeout --signal=INT 1 "$choir" generate "And he said," -v kjv -n 16000 >/dev/null 2>&1 || true
  for _ in $(seq 1 300); do
    leases=$(curl -sS "http://$http/metrics" | awk '$1 == "choir_generation_leases" { print $2 }')
    [ "$leases" = 0 ] && break
    sleep 0.2
  done
  [ "$leases" = 0 ] || fail "$name keeps a cancelled request"
  "$choir" variants add "by-$name" models/variants/kjv.safetensors >/dev/null || fail "$name: no upload"
  "$choir" variants remove "by-$name" >/dev/null || fail "$name: no removal"
  local put=(curl -sS --fail-with-body --cacert "$CHOIR_TLS_CA")
  "${put[@]}" -T models/variants/kjv.safetensors "$at/choir/v1/variants/put-$name" >/dev/null || fail "$name: no upload over HTTP"
  "${put[@]}" -X DELETE "$at/choir/v1/variants/put-$name" >/dev/null || fail "$name: no removal over HTTP"
  unset CHOIR_SERVER CHOIR_TLS_CA
  echo "ok $name: streams, events, errors, cancels, uploads"
}
ask() { "$choir" generate "$@" 2>/dev/null; }
fail() {
  echo "FAILED: $1" >&2
  exit 1
}
settle() {
  sed -e "s|RUN|$work|g; s|GRPC|$grpc|g; s|HTTP;|${http#http://};|; s|HTTP\$|${http#http://}|; s|LISTEN|127.0.0.1:$2|" \
    -e "s|CERTIFICATE|$work/cert.pem|; s|KEY|$work/key.pem|; s|PEM|$work/both.pem|" "$1"
}
http=${http#http://}

if command -v nginx >/dev/null; then
  port=$(free)
  settle deploy/proxies/nginx.conf "$port" >"$work/nginx.conf"
  nginx -e stderr -c "$work/nginx.conf" 2>"$work/nginx.log" &
  running+=($!)
  through nginx "$port"
  nginx -v 2>&1 | sed 's/^/   /'
else
  echo "NOT TRIED: there is no nginx"
fi
if command -v haproxy >/dev/null; then
  port=$(free)
  settle deploy/proxies/haproxy.cfg "$port" >"$work/haproxy.cfg"
  haproxy -f "$work/haproxy.cfg" 2>"$work/haproxy.log" &
  running+=($!)
  through haproxy "$port"
  haproxy -v | head -n 1 | sed 's/^/   /'
else
  echo "NOT TRIED: there is no haproxy"
fi
