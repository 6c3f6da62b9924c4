#!/usr/bin/env bash
# Opens the page at /docs of an arm, an orchestrator, a reflex and others in a browser: it displays their documents, sends requests, and
# nothing goes to another origin or violates the policy of the page.
#
#   scripts/docs_page.sh [--pictures DIR]
#
# Needs Python 3; Debian's chromium and curl are installed with apt-get when they are missing. --pictures draws the page into DIR.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
    "" | --pictures) ;;
    *) echo "usage: $0 [--pictures DIR]" >&2; exit 2 ;;
esac
if ! { command -v chromium && command -v curl; } > /dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium curl fonts-dejavu-core
fi

cargo build -q --example fuzz_target --example token
built=${CARGO_TARGET_DIR:-target}/debug/examples
folder=$(mktemp -d)
exec 3< <(exec "$built/fuzz_target" "$folder/key.pem" 2> "$folder/target.log")
server=$!
trap 'kill "$server" 2> /dev/null || true; rm -rf "$folder"' EXIT
servers=()
for _ in arm orchestrator reflex secure hostile mounted; do
    read -r -t 30 -u 3 name url || { cat "$folder/target.log" >&2; exit 1; }
    servers+=("$name=$url")
done
# The same page over HTTP/2, which browsers speak only over TLS.
arm=${servers[0]#*=}
version=$(curl -sf --http2-prior-knowledge -o "$folder/page" -w '%{http_version}' "$arm/docs")
[[ $version == 2 ]] && cmp "$folder/page" octollm-http/src/server/docs.html
TOKEN=$("$built/token" issue --key "$folder/key.pem" --issuer fuzz --subject ali --audience secure --scope text:count)
export TOKEN PYTHONDONTWRITEBYTECODE=1
timeout 300 python3 scripts/docs_page.py chromium "$folder/profile" "$@" "${servers[@]}"
