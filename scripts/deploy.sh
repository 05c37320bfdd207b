#!/usr/bin/env bash
# The manifests against Kubernetes' schemas, and the systemd unit by systemd's own check, where these can be had.
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${XDG_CACHE_HOME:-$HOME/.cache}/choir/deploy"
python="$venv/bin/python"
if ! "$python" -c 'import kubernetes_validate, yaml' 2>/dev/null; then
  rm -rf "$venv"
  python3 -m venv "$venv" && timeout 120 "$python" -m pip install -q kubernetes-validate==1.37.0 pyyaml || {
    echo "NOT TRIED: kubernetes-validate could not be fetched"
    exit 0
  }
fi
"$python" - deploy/kubernetes/*.yaml <<'PY'
import sys, yaml, kubernetes_validate
version = kubernetes_validate.latest_version()
for path in sys.argv[1:]:
    for document in yaml.safe_load_all(open(path)):
        kubernetes_validate.validate(document, version, strict=True)
        print(f"ok {path}: {document['kind']}, Kubernetes {version}")
PY
unit=$(mktemp -d)
trap 'rm -rf "$unit"' EXIT
printf '[Service]\nExecStart=/bin/true\n' >"$unit/any.service"
# Where systemd's check refuses any unit, it says nothing of ours.
if systemd-analyze verify --man=no "$unit/any.service" >/dev/null 2>&1; then
  # The binary need not be installed here.
  sed 's|^ExecStart=/usr/local/bin/choir|ExecStart=/bin/true|' deploy/choir.service >"$unit/choir.service"
  systemd-analyze verify --man=no "$unit/choir.service"
  echo "ok deploy/choir.service"
else
  echo "NOT TRIED: deploy/choir.service, since systemd-analyze is not at hand or does not work here"
fi
