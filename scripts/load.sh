#!/usr/bin/env bash
# Puts wrk and h2load on a server with tokens, limits, ids, metrics, spans and the access log: HTTP/1.1, HTTP/2, TLS and gzip, a minute
# each at 1 000 requests in flight or more. No request may fail, and the memory of the server has to stay flat. A server of hyper alone
# is measured beside it.
#
#   scripts/load.sh [--short]
#
# --short runs 3 s each at a tenth of the connections. Needs Python 3 and openssl; Debian's wrk and nghttp2-client are installed with
# apt-get when they are missing. Everything listens on ports of loopback that the system chooses, and is ended with the script.
set -euo pipefail
cd "$(dirname "$0")/.."

profile=(--release) folder=release
case "${1:-}" in
    --short) profile=() folder=debug ;;
    "") ;;
    *) echo "usage: $0 [--short]" >&2; exit 2 ;;
esac

if ! { command -v wrk && command -v h2load && command -v openssl; } > /dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends wrk nghttp2-client openssl
fi

cargo build -q "${profile[@]}" --features full --example storm --example token
exec python3 scripts/load.py "${CARGO_TARGET_DIR:-target}/$folder/examples" "$@"
