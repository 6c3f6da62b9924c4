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

cargo build -q --example token
. scripts/fuzz_servers.sh
servers=()
for name in "${names[@]}"; do
    servers+=("$name=${urls[$name]}")
done
# The same page over HTTP/2, which browsers speak only over TLS.
version=$(curl -sf --http2-prior-knowledge -o "$folder/page" -w '%{http_version}' "${urls[arm]}/docs")
[[ $version == 2 ]] && cmp "$folder/page" octollm-http/src/server/docs.html
TOKEN=$("${CARGO_TARGET_DIR:-target}/debug/examples/token" issue --key "$folder/key.pem" --issuer fuzz --subject ali --audience secure --scope text:count)
export TOKEN PYTHONDONTWRITEBYTECODE=1
timeout 300 python3 scripts/docs_page.py chromium "$folder/profile" "$@" "${servers[@]}"
