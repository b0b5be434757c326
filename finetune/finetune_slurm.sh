#!/bin/sh
# Slurm: sbatch finetune/finetune_slurm.sh -m MODEL -d DATA -o OUTPUT [--flag value ..]
# Each machine gets one task, which starts one process per GPU. Adapt the lines below; options of sbatch override them, as in
# `sbatch --nodes 4 --partition long finetune/finetune_slurm.sh ..`. LAUNCHER selects the launcher (default: finetune_ds.sh).
#SBATCH --job-name=qwen-vl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -eu

# Slurm runs a copy of this file, so the repository is taken from the folder in which sbatch was called.
ROOT=${ROOT:-${SLURM_SUBMIT_DIR:-.}}
launcher=$ROOT/finetune/${LAUNCHER:-finetune_ds.sh}
[ -f "$launcher" ] || {
    echo "finetune_slurm.sh: no $launcher; call sbatch in the repository, or set ROOT to it" >&2
    exit 2
}

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}
NNODES=$SLURM_JOB_NUM_NODES
export MASTER_ADDR MASTER_PORT NNODES

# shellcheck disable=SC2016 # the task's own variable, not this shell's
exec srun --kill-on-bad-exit=1 sh -c 'NODE_RANK=$SLURM_NODEID exec sh "$@"' sh "$launcher" "$@"
