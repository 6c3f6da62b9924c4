# Sourced by the scripts that read the documents of servers. Builds and starts those of examples/fuzz_target.rs, which end with the script.
# Sets `names`, `urls` by name, and `folder`, which is removed at the end: its key.pem signs tokens for the server `secure`.
cargo build -q --example fuzz_target
folder=$(mktemp -d)
exec 3< <(exec "${CARGO_TARGET_DIR:-target}/debug/examples/fuzz_target" "$folder/key.pem" 2> "$folder/target.log")
server=$!
trap 'kill "$server" 2> /dev/null || true; rm -rf "$folder"' EXIT
names=(arm orchestrator reflex secure hostile mounted)
declare -A urls
for _ in "${names[@]}"; do
    read -r -t 30 -u 3 name url || { cat "$folder/target.log" >&2; exit 1; }
    urls[$name]=$url
done
