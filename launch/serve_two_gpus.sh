#!/usr/bin/env bash
# Serves a team with one GPU for each model; the arguments are those of `longshort serve`.
#   bash launch/serve_two_gpus.sh runs/x/team --port 8000
#       on this machine's GPUs
#   RAY_ADDRESS=head:6379 bash launch/serve_two_gpus.sh /shared/team --host 0.0.0.0 --api-key-file key
#       on two GPUs of a Ray cluster (launch/ray_job.sh says how its token is made); the endpoint itself listens on this machine
#   RAY_JOB_STOP_WAIT_TIME_S=60 on the head, then: ray job submit --no-wait -- longshort serve /shared/team --host 0.0.0.0 long.engine.num_gpus=1 short.engine.num_gpus=1
#       as a job of that cluster, on its head; `ray job stop` gives it those 60 seconds to finish the answers under way
# Never run: no GPU here. On one GPU, 0.45 of it each: long.engine.num_gpus=0.45 short.engine.num_gpus=0.45
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -d $root/.venv ]] && PATH=$root/.venv/bin:$PATH
export TOKENIZERS_PARALLELISM=false RAY_USAGE_STATS_ENABLED=0
exec longshort serve "$@" long.engine.num_gpus=1 short.engine.num_gpus=1
