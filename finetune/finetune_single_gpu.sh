#!/bin/sh
# Full fine-tuning in one process: on one GPU in bf16, on the CPU in fp32 where there is none. -h shows how to call it.
set -eu

# shellcheck disable=SC2034 # read by common.sh
WHAT="Full fine-tuning: everything trains but the vision tower, of which only the resampler does."
# shellcheck disable=SC2034
OUTPUT_DEFAULT=output/full
# shellcheck disable=SC2034
PROCESSES=one
. "$(dirname -- "$0")/common.sh"

start --fix_vit True "$@"
