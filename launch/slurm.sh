#!/usr/bin/env bash
# Trains a recipe on a Slurm allocation: a Ray cluster over its nodes, protected by a token, then one job on it.
#   sbatch --nodes=2 launch/slurm.sh recipes/x.yaml
# Read against Slurm's and Ray's documentation but never run: no Slurm here. The nodes must share this folder and its .venv.
#SBATCH --job-name=longshort
#SBATCH --ntasks-per-node=1
#SBATCH --output=runs/slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run this with sbatch}"
export PATH=$PWD/.venv/bin:$PATH RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

port=6379
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{ print $1 }')
cpus=${SLURM_CPUS_ON_NODE:?}

srun --overlap --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
    ray start --head --block --node-ip-address "$address" --port "$port" --num-cpus "$cpus" --include-dashboard false &
sleep 15
for node in "${nodes[@]:1}"; do
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" ray start --block --address "$address:$port" --num-cpus "$cpus" &
done
sleep 10

RAY_ADDRESS=$address:$port longshort train "$@"
