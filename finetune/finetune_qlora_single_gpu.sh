#!/bin/sh
# Q-LoRA fine-tuning in one process: on one GPU in fp16, or on the CPU in fp32. See -h for usage.
set -eu

# shellcheck disable=SC2034 # read by common.sh
WHAT="Q-LoRA fine-tuning: trains adapters on an Int4 checkpoint, or on a float one that is quantized to nf4 during loading. GPUs compute in fp16, or in bf16 with --fp16 False --bf16 True."
# shellcheck disable=SC2034
OUTPUT_DEFAULT=output/qlora
# shellcheck disable=SC2034
MODEL_DEFAULT=Qwen/Qwen-VL-Chat-Int4
# shellcheck disable=SC2034
PRECISION_DEFAULT=fp16
# shellcheck disable=SC2034
PROCESSES=one
. "$(dirname -- "$0")/common.sh"

start --use_lora True --q_lora True "$@"
