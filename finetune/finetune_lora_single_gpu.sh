#!/bin/sh
# LoRA fine-tuning in one process: on one GPU in bf16, on the CPU in fp32 where there is none. -h shows how to call it.
set -eu

# shellcheck disable=SC2034 # read by common.sh
WHAT="LoRA fine-tuning: adapters train beside the frozen decoder, on a base model the embeddings and lm_head as well."
# shellcheck disable=SC2034
OUTPUT_DEFAULT=output/lora
# shellcheck disable=SC2034
PROCESSES=one
. "$(dirname -- "$0")/common.sh"

start --use_lora True "$@"
