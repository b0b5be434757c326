#!/bin/sh
# LoRA fine-tuning on several GPUs or in several CPU processes, with FSDP 2. See -h for usage.
set -eu

# shellcheck disable=SC2034 # read by common.sh
WHAT="LoRA fine-tuning with FSDP, on several GPUs or machines: trains adapters next to the frozen decoder; on a base model, also the embeddings and lm_head."
# shellcheck disable=SC2034
OUTPUT_DEFAULT=output/lora
# shellcheck disable=SC2034
PROCESSES=many
. "$(dirname -- "$0")/common.sh"

start --use_lora True --fsdp --fsdp_config "$ROOT/configs/fsdp/full_state_dict.json" "$@"
