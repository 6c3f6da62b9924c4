#!/usr/bin/env bash
# Compares the published schemas with the servers: schemathesis reads the document of an arm, an orchestrator, a reflex, an arm below a
# prefix and a server with tokens, sends what it calls valid and invalid, and fails where the server and the document disagree. Tokens that
# are not valid are sent too, see fuzz_hooks.py.
#
#   scripts/fuzz_schemas.sh [--short]
#
# SEED chooses other requests (default 1). Needs Python 3; schemathesis is installed below target/ when it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

schemathesis=4.32.5 pyjwt=2.15.1 cryptography=50.0.2
examples=200
case "${1:-}" in
    --short) examples=15 ;;
    "") ;;
    *) echo "usage: $0 [--short]" >&2; exit 2 ;;
esac

home=$PWD/target/fuzz
mkdir -p "$home"
if [[ "$("$home/venv/bin/st" --version 2>&1)$("$home/venv/bin/python" -c 'import jwt, cryptography; print(jwt.__version__)' 2>&1)" != *"$schemathesis"*"$pyjwt" ]]; then
    python3 -c 'import ensurepip' 2>/dev/null || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q python3 python3-venv; }
    python3 -m venv --clear "$home/venv"
    "$home/venv/bin/pip" install -q --disable-pip-version-check "schemathesis==$schemathesis" "pyjwt==$pyjwt" "cryptography==$cryptography"
fi

. scripts/fuzz_servers.sh

failed=()
scripts=$PWD/scripts
cd "$home" # where schemathesis leaves its cache
export SCHEMATHESIS_HOOKS=fuzz_hooks PYTHONPATH=$scripts PYTHONDONTWRITEBYTECODE=1
for name in arm orchestrator reflex mounted secure; do
    printf '\n== %s\n' "$name"
    if [[ $name == secure ]]; then
        export FUZZ_KEY=$folder/key.pem FUZZ_JWKS=${urls[secure]}/.well-known/jwks.json
    fi
    # schemathesis does not resolve the URL of the server against that of the document.
    "$home/venv/bin/st" --config-file "$scripts/schemathesis.toml" run "${urls[$name]}/openapi.json" --url "${urls[$name]}" \
        --max-examples "$examples" --seed "${SEED:-1}" --no-color || failed+=("$name")
done
if ((${#failed[@]})); then
    echo "the documents of these servers disagree with them: ${failed[*]}" >&2
    exit 1
fi
