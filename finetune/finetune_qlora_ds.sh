#!/bin/sh
# Q-LoRA fine-tuning on several GPUs or in several CPU processes, with DeepSpeed ZeRO-2. See -h for usage.
set -eu

# shellcheck disable=SC2034 # read by common.sh
WHAT="Q-LoRA fine-tuning with DeepSpeed ZeRO-2, on several GPUs or machines: trains adapters on an Int4 checkpoint, or on a float one that is quantized to nf4 during loading. GPUs compute in fp16, or in bf16 with --fp16 False --bf16 True."
# shellcheck disable=SC2034
OUTPUT_DEFAULT=output/qlora
# shellcheck disable=SC2034
MODEL_DEFAULT=Qwen/Qwen-VL-Chat-Int4
# shellcheck disable=SC2034
PRECISION_DEFAULT=fp16
# shellcheck disable=SC2034
PROCESSES=many
. "$(dirname -- "$0")/common.sh"

start --use_lora True --q_lora True --deepspeed "$ROOT/configs/deepspeed/zero2.json" "$@"
