#!/usr/bin/env bash
# Compares the published schemas with the servers: schemathesis reads the document of an arm, an orchestrator and a reflex,
# sends what it calls valid and invalid, and fails where the server and the document disagree.
#
#   scripts/fuzz_schemas.sh [--short]
#
# SEED chooses other requests (default 1). Needs Python 3; schemathesis is installed below target/ when it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

schemathesis=4.32.5
examples=200
case "${1:-}" in
    --short) examples=15 ;;
    "") ;;
    *) echo "usage: $0 [--short]" >&2; exit 2 ;;
esac

home=$PWD/target/fuzz
mkdir -p "$home"
if [[ "$("$home/venv/bin/st" --version 2>&1)" != *"$schemathesis"* ]]; then
    python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q python3 python3-venv; }
    python3 -m venv --clear "$home/venv"
    "$home/venv/bin/pip" install -q --disable-pip-version-check "schemathesis==$schemathesis"
fi

cargo build -q --example fuzz_target
exec 3< <(exec "${CARGO_TARGET_DIR:-target}/debug/examples/fuzz_target" 2> "$home/target.log")
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
declare -A urls
for _ in arm orchestrator reflex; do
    read -r -t 30 -u 3 name url || { cat "$home/target.log" >&2; exit 1; }
    urls[$name]=$url
done

failed=()
cd "$home" # where schemathesis leaves its cache
for name in arm orchestrator reflex; do
    printf '\n== %s\n' "$name"
    SCHEMATHESIS_HOOKS=fuzz_hooks PYTHONPATH=$OLDPWD/scripts PYTHONDONTWRITEBYTECODE=1 "$home/venv/bin/st" --config-file "$OLDPWD/scripts/schemathesis.toml" run "${urls[$name]}/openapi.json" \
        --max-examples "$examples" --seed "${SEED:-1}" --no-color || failed+=("$name")
done
if ((${#failed[@]})); then
    echo "the documents of these servers disagree with them: ${failed[*]}" >&2
    exit 1
fi
