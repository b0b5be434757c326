#!/bin/sh
# Q-LoRA fine-tuning on several GPUs, or CPU processes, with DeepSpeed ZeRO-2. -h shows how to call it.
set -eu

# shellcheck disable=SC2034 # read by common.sh
WHAT="Q-LoRA fine-tuning with DeepSpeed ZeRO-2, on several GPUs or machines: adapters train on an Int4 checkpoint, or on a float one that is quantized while it loads (nf4). A GPU computes in fp16; --fp16 False --bf16 True changes that."
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
