#!/bin/sh
# Full fine-tuning on several GPUs, or CPU processes, with DeepSpeed ZeRO-3. -h shows how to call it.
set -eu

# shellcheck disable=SC2034 # read by common.sh
WHAT="Full fine-tuning with DeepSpeed ZeRO-3, on several GPUs or machines: everything trains but the vision tower, of which only the resampler does."
# shellcheck disable=SC2034
OUTPUT_DEFAULT=output/full
# shellcheck disable=SC2034
PROCESSES=many
. "$(dirname -- "$0")/common.sh"

start --fix_vit True --deepspeed "$ROOT/configs/deepspeed/zero3.json" "$@"
