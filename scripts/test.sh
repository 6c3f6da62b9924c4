#!/usr/bin/env bash
# Runs everything that has to hold: format, lints, tests, doc tests, docs, packages, and a short form of each benchmark
# and storm, of the load, of the attacks, and of the comparison of schemas and servers. Needs the Rust toolchain, for the comparisons
# Python 3 and PyPI, for the SQL store Debian's postgresql, for Redis its redis-server, for that of tokens Node.js and npm, for metrics and manifests Debian's prometheus, systemd and openssl, for the load
# wrk, nghttp2-client and openssl, and for the documentation page and the dashboard chromium.
set -euo pipefail
cd "$(dirname "$0")/.."

export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
# A build from nothing gains nothing from incremental compilation, which takes several GB.
[ -z "${CI:-}" ] || export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}
step() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS"; }

step format
cargo fmt --all --check

step lints
cargo clippy --workspace --all-targets --all-features -- -D warnings

step "features: each crate by itself, and the facade without any"
cargo check -q -p octollm-core --no-default-features
cargo check -q -p octollm-http --no-default-features
cargo check -q -p octollm --no-default-features

step tests
missing=()
[ -d /usr/lib/postgresql ] || missing+=(postgresql)
command -v redis-server >/dev/null || missing+=(redis-server)
if [ "${#missing[@]}" -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -q
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
fi
cargo test --workspace --all-features

step docs
RUSTDOCFLAGS="-D warnings" cargo doc -q --workspace --all-features --no-deps

step packages
scripts/packages.sh

step "short forms of the benchmarks and storms"
cargo run -q --example bench_call -- 8 400
for mode in live live16 clones publish; do
    cargo run -q --all-features --example bench_bus -- memory 64 20000 $mode
done
for mode in consume work paced-work; do
    cargo run -q --all-features --example bench_bus -- durable 64 5000 $mode
done
cargo run -q -p octollm-core --example bench_layers -- --short
cargo run -q --all-features --example bench_brain -- memory 8 1
cargo run -q --all-features --example bench_ws -- 20000 1
cargo run -q --all-features --example bench_ws -- sockets 1000 100
cargo run -q --all-features --example bench_ws -- first 50
cargo run -q --example soak -- 400 100
cargo run -q --example storm -- --short
cargo run -q --example storm -- memory --short
cargo run -q --example storm -- hops --short
cargo run -q --all-features --example storm -- kills --short
cargo run -q --all-features --example storm -- brains --short
cargo run -q --all-features --example storm -- redis --short
cargo run -q --all-features --example octopus -- --tasks 30
cargo run -q --all-features --example octopus -- --tasks 30 --chaos --seed 1

step "load by wrk and h2load"
scripts/load.sh --short

step "attacks on servers, clients and brains"
cargo run -q --example attack_kit -- --short

step "documents of servers"
scripts/openapi.sh

step "the documentation page in a browser"
scripts/docs_page.sh

step "the dashboard in a browser"
scripts/dashboard.sh --short

step "schemas against servers"
scripts/fuzz_schemas.sh --short

step "metrics for Prometheus"
scripts/prometheus.sh --short

step "manifests and alerts"
scripts/manifests.sh --short

step "tokens of other libraries"
scripts/interop_tokens.sh

step "WebSockets of another library"
scripts/interop_ws.sh

step done
