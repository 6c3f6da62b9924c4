#!/usr/bin/env bash
# Opens the page at /dashboard in a browser, below a prefix, behind a proxy that cuts its connections: tasks appear and move without a
# reload, it returns after a restart of the server, it shows texts as texts, and to each caller its own tasks.
#
#   scripts/dashboard.sh [--short | --pictures DIR]
#
# Needs Python 3; Debian's chromium is installed with apt-get when it is missing. --short leaves out the restart and the tokens. --pictures draws
# the page into DIR.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
    "" | --short | --pictures) ;;
    *) echo "usage: $0 [--short | --pictures DIR]" >&2; exit 2 ;;
esac
if ! command -v chromium > /dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium fonts-dejavu-core
fi

cargo build -q --features dashboard --example dashboard --example token
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export PYTHONDONTWRITEBYTECODE=1
timeout 400 python3 scripts/dashboard.py chromium "${CARGO_TARGET_DIR:-target}/debug/examples" "$folder" "$@"
