#!/bin/sh
# Full fine-tuning in one process: on one GPU in bf16, or on the CPU in fp32. See -h for usage.
set -eu

# shellcheck disable=SC2034 # read by common.sh
WHAT="Full fine-tuning: trains everything but the vision tower; of the tower, only the resampler trains."
# shellcheck disable=SC2034
OUTPUT_DEFAULT=output/full
# shellcheck disable=SC2034
PROCESSES=one
. "$(dirname -- "$0")/common.sh"

start --fix_vit True "$@"
