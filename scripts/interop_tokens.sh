#!/usr/bin/env bash
# Compares tokens with two other libraries: PyJWT and jose issue tokens that we accept, and verify tokens that we issue, with EdDSA, ES256,
# RS256 and HS256. Both sides read the JWK set of the other. Changed tokens are refused by all.
#
#   scripts/interop_tokens.sh
#
# Needs Python 3 and Node.js; what is missing is installed: Node.js from Debian, and the libraries below target/.
set -euo pipefail
cd "$(dirname "$0")/.."

pyjwt=2.15.1 cryptography=50.0.2 jose=6.2.18

home=$PWD/target/interop
mkdir -p "$home"
install() { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$@"; }
if [[ "$("$home/venv/bin/python" -c 'import jwt; print(jwt.__version__)' 2>&1)" != "$pyjwt" ]]; then
    python3 -c 'import ensurepip' 2>/dev/null || install python3 python3-venv
    python3 -m venv --clear "$home/venv"
    "$home/venv/bin/pip" install -q --disable-pip-version-check "pyjwt==$pyjwt" "cryptography==$cryptography"
fi
command -v node > /dev/null && command -v npm > /dev/null || install nodejs npm
if [[ "$(cat "$home/node_modules/jose/package.json" 2>&1)" != *"\"version\": \"$jose\""* ]]; then
    npm install --silent --no-fund --no-audit --prefix "$home" "jose@$jose"
fi
cargo build -q --example token

ours() { "${CARGO_TARGET_DIR:-target}/debug/examples/token" "$@"; }
pyjwt() { "$home/venv/bin/python" scripts/interop_tokens.py "$@"; }
jose() { node scripts/interop_tokens.mjs "$home" "$@"; }
# The same token with another subject.
changed() {
    local head claims signature
    IFS=. read -r head claims signature
    claims=$(base64 -d <<< "$(tr '_-' '/+' <<< "$claims")===" 2> /dev/null | sed 's/"ali"/"eve"/' | base64 -w0 | tr '/+' '_-' | tr -d '=')
    echo "$head.$claims.$signature"
}
refuses() {
    local token=$1
    shift
    if "$@" <<< "$token" > "$keys/refused" 2>&1; then
        echo "accepted although it was changed: $* of $token" >&2
        exit 1
    fi
}

keys=$(mktemp -d)
trap 'rm -rf "$keys"' EXIT
pyjwt keys "$keys"
count=0
for alg in EdDSA ES256 RS256 HS256; do
    if [[ $alg == HS256 ]]; then file=$keys/$alg.jwk; else file=$keys/$alg.pem; fi
    token=$(ours issue --key "$file" --issuer brain --subject ali --audience judge --scope code:validate)
    [[ $alg == HS256 ]] || ours keygen "$file" > "$keys/$alg.ours.jwks"
    for other in pyjwt jose; do
        $other verify "$keys" "$alg" <<< "$token"
        refuses "$(changed <<< "$token")" $other verify "$keys" "$alg"

        theirs=$($other issue "$keys" "$alg")
        if [[ $alg == HS256 ]]; then known=(--key "$file"); else known=(--keys "$keys/$alg.$other.jwks"); fi
        ours verify "${known[@]}" --issuer brain --audience judge <<< "$theirs" > "$keys/verified"
        grep -q '"subject": "ali"' "$keys/verified"
        refuses "$(changed <<< "$theirs")" ours verify "${known[@]}" --issuer brain --audience judge
        grep -q 'its signature is not that of its key' "$keys/refused"
        refuses "$theirs" ours verify "${known[@]}" --issuer brain --audience coder
        count=$((count + 2))
    done
done
echo "$count tokens of EdDSA, ES256, RS256 and HS256 were accepted, ours by PyJWT and jose, and theirs by us"
