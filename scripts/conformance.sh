#!/usr/bin/env bash
# Runs the suites of stores and buses, and writes docs/conformance.md: what is tested × case.
# Needs the Rust toolchain, Python 3, and Debian's postgresql and redis-server. With arguments, they are the files with the output of
# earlier runs.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -gt 0 ]; then
    python3 scripts/conformance.py "$@" > docs/conformance.md
    exit
fi
results=$(mktemp)
trap 'rm -f "$results"' EXIT
status=0
cargo test -p octollm-core --features conformance --test conformance 2>&1 | tee "$results" || status=$?
cargo test -p octollm-events --features sql,redis --test bus --test sql --test events --test redis -- --test-threads 2 2>&1 | tee -a "$results" || status=$?
python3 scripts/conformance.py "$results" > docs/conformance.md
exit "$status"
