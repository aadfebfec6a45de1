#!/usr/bin/env bash
# Trains a recipe as a Ray job; the arguments are those of `longshort train`.
#   bash launch/ray_job.sh recipes/x.yaml
#       on a head of its own on this machine, stopped afterwards
#   RAY_API_SERVER_ADDRESS=http://head:8265 bash launch/ray_job.sh recipes/x.yaml output_dir=/shared/runs/x
#       on a cluster that runs already: this folder goes with the job and Ray removes it later, so output_dir lies elsewhere
# A Ray head runs whatever code it is sent, so every head needs a token. For a cluster: `ray get-auth-token --generate` once, the same
# token on every node (RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH) and RAY_AUTH_MODE=token there and here.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
[[ -d .venv ]] && PATH=$root/.venv/bin:$PATH
(($#)) || { sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

free_port() { python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Starts a head behind the token, with a dashboard on loopback, and sees to it that it ends with this script.
start_head() {
    local log port
    RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
    log=$(mktemp -d /tmp/longshort-XXXXXX) port=$(free_port) # short: sockets lie below it, and their paths end at 107 bytes
    export RAY_AUTH_TOKEN RAY_API_SERVER_ADDRESS="http://127.0.0.1:$(free_port)"
    # The agent takes the jobs; on its default port it would collide with any other Ray on this machine.
    ray start --head --block --disable-usage-stats --temp-dir "$log" --node-ip-address 127.0.0.1 --port "$port" \
        --dashboard-host 127.0.0.1 --dashboard-port "${RAY_API_SERVER_ADDRESS##*:}" \
        --dashboard-agent-listen-port "$(free_port)" >"$log/head.log" 2>&1 &
    head=$!
    trap 'kill "$head" 2>/dev/null || true; wait "$head" 2>/dev/null || true; rm -rf "'"$log"'"' EXIT
    for ((tick = 1; tick <= 60; tick++)); do
        ray job list --address "$RAY_API_SERVER_ADDRESS" >/dev/null 2>&1 && return
        kill -0 "$head" 2>/dev/null || break
        ((tick % 3)) || echo "[ray] waiting for the head at $RAY_API_SERVER_ADDRESS"
        sleep 1
    done
    echo "[ray] the head did not start:" >&2
    tail -n 20 "$log/head.log" >&2
    exit 1
}

# A head accepts jobs only a few seconds after its first answer.
submit() {
    local answer
    for ((try = 1; try <= 20; try++)); do
        answer=$(ray job submit --no-wait --submission-id "$job" "$@" 2>&1) && return
        [[ $answer == *"No available agent"* ]] || break
        sleep 2
    done
    echo "$answer" >&2
    exit 1
}

if [[ -n ${RAY_API_SERVER_ADDRESS:-} ]]; then
    where=(--working-dir .) run=(longshort train "$@")
else
    start_head
    where=() run=(env -C "$root" longshort train "$@")
fi
export RAY_API_SERVER_ADDRESS
job=longshort-$(date +%Y%m%d-%H%M%S)-$$
echo "[ray] job $job at $RAY_API_SERVER_ADDRESS: ${run[*]}"
submit "${where[@]}" -- "${run[@]}"
ray job logs --follow "$job" --log-style record --log-color false || true
[[ $(ray job status "$job" --log-style record --log-color false 2>&1) == *succeeded* ]]
