#!/usr/bin/env bash
# Trains a recipe on this machine; the arguments are those of `longshort train`.
#   bash launch/local.sh recipes/x.yaml max_steps=20
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ -d $root/.venv ]] && PATH=$root/.venv/bin:$PATH
export TOKENIZERS_PARALLELISM=false RAY_USAGE_STATS_ENABLED=0
exec longshort train "$@"
