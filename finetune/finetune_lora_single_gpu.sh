#!/bin/sh
# LoRA fine-tuning in one process: on one GPU in bf16, or on the CPU in fp32. See -h for usage.
set -eu

# shellcheck disable=SC2034 # read by common.sh
WHAT="LoRA fine-tuning: trains adapters next to the frozen decoder; on a base model, also the embeddings and lm_head."
# shellcheck disable=SC2034
OUTPUT_DEFAULT=output/lora
# shellcheck disable=SC2034
PROCESSES=one
. "$(dirname -- "$0")/common.sh"

start --use_lora True "$@"
