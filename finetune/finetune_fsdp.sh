#!/bin/sh
# Full fine-tuning on several GPUs, or CPU processes, with FSDP 2. -h shows how to call it.
set -eu

# shellcheck disable=SC2034 # read by common.sh
WHAT="Full fine-tuning with FSDP, on several GPUs or machines: everything trains but the vision tower, of which only the resampler does."
# shellcheck disable=SC2034
OUTPUT_DEFAULT=output/full
# shellcheck disable=SC2034
PROCESSES=many
. "$(dirname -- "$0")/common.sh"

start --fix_vit True --fsdp --fsdp_config "$ROOT/configs/fsdp/full_state_dict.json" "$@"
