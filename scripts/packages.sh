#!/usr/bin/env bash
# Packages every crate and checks what is in the packages: sources, licences and a README, and no tests.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo package -q --workspace --exclude octollm-bench --allow-dirty --no-verify
for crate in octollm-core octollm-macros octollm-http octollm-events octollm; do
    files=$(cargo package -q -p "$crate" --list --allow-dirty)
    for wanted in src/lib.rs README.md LICENSE-MIT LICENSE-APACHE; do
        grep -qx "$wanted" <<<"$files" || { echo "$crate: $wanted is missing" >&2; exit 1; }
    done
    if grep -E '^(tests|examples|benches)/' <<<"$files"; then
        echo "$crate: packages files that only this repository needs" >&2
        exit 1
    fi
done
