#!/usr/bin/env bash
# Runs the suites of stores and buses, and writes docs/conformance.md: what is tested × case.
# Needs the Rust toolchain, Python 3, and Debian's postgresql and redis-server.
set -euo pipefail
cd "$(dirname "$0")/.."

results=$(mktemp)
trap 'rm -f "$results"' EXIT
status=0
cargo test -p octollm-core --features conformance --test conformance "$@" | tee "$results" || status=$?
cargo test -p octollm-events --features sql,redis --test bus "$@" | tee -a "$results" || status=$?
python3 scripts/conformance.py "$results" > docs/conformance.md
exit "$status"
