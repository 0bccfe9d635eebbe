#!/usr/bin/env bash
# Two studios and a proxy on this machine: deploy/local.sh, then open http://127.0.0.1:8080. Needs haproxy.
set -euo pipefail
cd "$(dirname "$0")"
export STUDIO_BIND=127.0.0.1:8080 STUDIO_A=127.0.0.1:7871 STUDIO_B=127.0.0.1:7872
SERVE=${SERVE:-causvid serve}
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
$SERVE --port 7871 &
$SERVE --port 7872 &
haproxy -f haproxy.cfg
