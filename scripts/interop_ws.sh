#!/usr/bin/env bash
# Follows tasks over WebSockets with another library: Python's websockets opens, subscribes, cancels, fragments, pings and closes, shows tokens
# in both fields, and breaks rules as far as the library lets it. Each close code is checked.
#
#   scripts/interop_ws.sh
#
# Needs Python 3; the library is installed below target/ when it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

websockets=17.4

home=$PWD/target/interop_ws
mkdir -p "$home"
if [[ "$("$home/venv/bin/python" -c 'import websockets; print(websockets.__version__)' 2>&1)" != "$websockets" ]]; then
    python3 -c 'import ensurepip' 2> /dev/null || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q python3 python3-venv; }
    python3 -m venv --clear "$home/venv"
    "$home/venv/bin/pip" install -q --disable-pip-version-check "websockets==$websockets"
fi
cargo build -q --all-features --example bench_ws

folder=$(mktemp -d)
"${CARGO_TARGET_DIR:-target}/debug/examples/bench_ws" serve > "$folder/url" &
server=$!
trap 'kill "$server" 2> /dev/null || true; rm -rf "$folder"' EXIT
for _ in $(seq 100); do
    [[ -s "$folder/url" ]] && break
    sleep 0.1
done
PYTHONDONTWRITEBYTECODE=1 "$home/venv/bin/python" scripts/interop_ws.py "$(cat "$folder/url")" "$server"
