#!/usr/bin/env bash
# Lets a real Prometheus read the metrics of a running system: a brain that calls two arms over HTTP, under some load. Asks
# Prometheus for rates, errors and durations, and lets promtool read the page.
#
#   scripts/prometheus.sh [--short]
#
# Needs curl and Python 3; Debian's prometheus is installed with apt-get when it is missing. Everything listens on ports of
# loopback that the system chooses, and is ended with the script.
set -euo pipefail
cd "$(dirname "$0")/.."

tasks=300
case "${1:-}" in
    --short) tasks=40 ;;
    "") ;;
    *) echo "usage: $0 [--short]" >&2; exit 2 ;;
esac

if ! { command -v prometheus && command -v promtool && command -v curl; } > /dev/null; then
    # Without its service, which would listen on a port of its own.
    apt-get update -q
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends prometheus curl
fi

cargo build -q --example orchestrate
folder=$(mktemp -d)
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
    wait 2> /dev/null || true
    rm -rf "$folder"
}
trap finish EXIT

fail() { echo "$*" >&2; tail -n 20 "$folder"/*.log >&2 || true; exit 1; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
# Runs a command until it succeeds, for at most 30 s.
await() {
    for _ in $(seq 150); do
        if "$@"; then return 0; fi
        sleep 0.2
    done
    return 1
}

server=127.0.0.1:$(free_port)
RUST_LOG=warn "${CARGO_TARGET_DIR:-target}/debug/examples/orchestrate" "$server" > "$folder/server.log" 2>&1 &
pids+=($!)
await curl -sf -o /dev/null "http://$server/health" || fail "the server does not answer"

listen=127.0.0.1:$(free_port)
cat > "$folder/prometheus.yml" << YAML
global: { scrape_interval: 1s, scrape_timeout: 1s }
scrape_configs:
  - job_name: octollm
    static_configs: [ { targets: [ "$server" ] } ]
YAML
prometheus --config.file="$folder/prometheus.yml" --storage.tsdb.path="$folder/data" --web.listen-address="$listen" \
    > "$folder/prometheus.log" 2>&1 &
pids+=($!)
await curl -sf -o /dev/null "http://$listen/-/ready" || fail "Prometheus does not start"

# The value of a query, as one number; nothing where it has no result.
query() {
    curl -sf --data-urlencode "query=$1" "http://$listen/api/v1/query" |
        python3 -c 'import json, sys; r = json.load(sys.stdin)["data"]["result"]; print(r[0]["value"][1] if r else "")'
}
# Whether a query has a value for which an expression holds, in which the value is x.
holds() {
    local value
    value=$(query "$1") || return 1
    [[ -n $value ]] && python3 -c "x = float('$value'); import sys; sys.exit(not ($2))"
}
check() { await holds "$1" "$2" || fail "$1 is not $2: $(query "$1")"; }

check 'up{job="octollm"}' 'x == 1'
for number in $(seq "$tasks"); do
    curl -sf -o /dev/null -H 'content-type: application/json' -d "{\"goal\":\"task $number of many\"}" "http://$server/tasks"
done
curl -s -o /dev/null "http://$server/no/such/route"
curl -s -o /dev/null -H 'content-type: application/json' -d '{"goal":""}' "http://$server/tasks"

echo "queries"
check 'sum(octollm_tasks_submitted_total{brain="orchestrator"})' "x == $tasks"
check 'sum(octollm_tasks_ended_total{brain="orchestrator",status="completed"})' "x == $tasks"
check 'octollm_tasks_running{brain="orchestrator"}' 'x == 0'
check 'octollm_tasks_queued' 'x == 0'
check 'octollm_journal_writes_total{brain="orchestrator"}' "x >= 5 * $tasks"
check 'octollm_http_requests_total{server="brain",method="POST",route="/tasks",status="2xx"}' "x == $tasks"
check 'octollm_http_requests_total{server="brain",method="POST",route="/tasks",status="4xx"}' 'x == 1'
check 'octollm_http_requests_total{server="brain",route="unmatched",status="4xx"}' 'x == 1'
check 'octollm_arm_runs_total{arm="shouter",contract="word.shout",code="ok"}' "x == 4 * $tasks"
check 'octollm_client_requests_total{arm="shouter",contract="word.shout",code="ok"}' "x == 4 * $tasks"
check 'sum(octollm_http_request_duration_seconds_count{server="splitter",route="/split"})' "x == $tasks"
check 'sum(octollm_client_connections{arm="shouter"})' 'x >= 1'
check 'histogram_quantile(0.99, sum by (le) (octollm_arm_run_duration_seconds_bucket{contract="text.split"}))' '0 < x < 60'
check 'sum(rate(octollm_http_requests_total{server="brain"}[30s]))' 'x > 0'
# No sample was refused, and all of them are of a bounded number.
check 'scrape_samples_scraped{job="octollm"}' '0 < x < 2000'
check 'scrape_samples_post_metric_relabeling{job="octollm"} - scrape_samples_scraped{job="octollm"}' 'x == 0'

echo "promtool"
curl -sf "http://$server/metrics" > "$folder/page"
promtool check metrics < "$folder/page" || fail "promtool has found fault with the page"

echo "Prometheus has read $(grep -vc '^#' "$folder/page") samples"
