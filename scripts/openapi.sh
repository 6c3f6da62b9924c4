#!/usr/bin/env bash
# Validates the OpenAPI documents of an arm, an orchestrator, a reflex, a server with tokens, and an arm below a prefix, with
# openapi-spec-validator and rules of our own. They have contracts in two versions, and recursive and generic types.
#
#   scripts/openapi.sh
#
# Needs Python 3; the validator is installed below target/ when it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

validator=0.9.0
home=$PWD/target/openapi
mkdir -p "$home"
if [[ "$("$home/venv/bin/openapi-spec-validator" --version 2>&1)" != *"$validator"* ]]; then
    python3 -c 'import ensurepip' 2> /dev/null || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q python3 python3-venv; }
    python3 -m venv --clear "$home/venv"
    "$home/venv/bin/pip" install -q --disable-pip-version-check "openapi-spec-validator==$validator"
fi

. scripts/fuzz_servers.sh
documents=()
for name in "${names[@]}"; do
    documents+=("${urls[$name]}")
done
PYTHONDONTWRITEBYTECODE=1 "$home/venv/bin/python" scripts/openapi.py "${documents[@]}"
