#!/usr/bin/env bash
# Serve an artifact with each engine in turn, and query it with curl and over gRPC. Every answer
# must equal the output of `bart-export generate`.
#
#     serving/demo.sh ARTIFACT TEXT        bart-export and the clients' packages on the PATH
set -euo pipefail
artifact=$1 text=$2
model=$(basename "$artifact")
clients=$(dirname "$0")/clients
scratch=$(mktemp -d)
log=$scratch/log
trap 'status=$?; kill "${server:-}" 2>/dev/null || true; [ $status = 0 ] || cat "$log" >&2; rm -rf "$scratch"' EXIT

compare() { # WHAT ANSWER EXPECTED
    printf '  %-34s %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { echo "Expected the output of bart-export generate: $3" >&2; exit 1; }
}

ask() { # ENGINE RECIPE
    local expected rest grpc body answer
    : >"$log"
    expected=$(bart-export generate "$artifact" "$text" --recipe "$2")
    bart-export serve "$artifact" --engine "$1" --port 0 --rest-api-port 0 >"$scratch/ready" 2>>"$log" &
    server=$!
    until grep -q '^Model' "$scratch/ready"; do
        kill -0 "$server" 2>/dev/null || { echo "The server ended." >&2; exit 1; }
        sleep 0.2
    done
    rest=$(sed -n 's,^REST: \(http://[^/]*\)/.*,\1,p' "$scratch/ready")
    grpc=$(sed -n 's,^gRPC: ,,p' "$scratch/ready")

    echo "Engine $1:"
    compare "bart-export generate" "$expected" "$expected"
    body=$(printf '%s' "$text" | python -c 'import json, sys; print(json.dumps({"instances": [sys.stdin.read()]}))')
    answer=$(curl --silent --show-error --fail --data "$body" "$rest/v1/models/$model:predict" |
        python -c 'import json, sys; print(json.load(sys.stdin)["predictions"][0])')
    compare "curl $model:predict" "$answer" "$expected"
    answer=$(python "$clients/grpc_client.py" --address "$grpc" --model "$model" "$text" 2>>"$log")
    compare "serving/clients/grpc_client.py" "$answer" "$expected"

    kill "$server"
    wait "$server"
}

ask tensorflow float32
ask litert dynamic_wi8_afp32
