#!/bin/sh
# Full fine-tuning on several GPUs or in several CPU processes, with DeepSpeed ZeRO-3. See -h for usage.
set -eu

# shellcheck disable=SC2034 # read by common.sh
WHAT="Full fine-tuning with DeepSpeed ZeRO-3, on several GPUs or machines: trains everything but the vision tower; of the tower, only the resampler trains."
# shellcheck disable=SC2034
OUTPUT_DEFAULT=output/full
# shellcheck disable=SC2034
PROCESSES=many
. "$(dirname -- "$0")/common.sh"

start --fix_vit True --deepspeed "$ROOT/configs/deepspeed/zero3.json" "$@"
