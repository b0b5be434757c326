#!/bin/sh
# sh scripts/test.sh [pytest arguments]     all tests, in .venv, which is created first if it is missing
#
# Test files are spread over up to 4 processes, each of which computes in one thread. `-n 0` runs everything in one.
set -eu

cd -- "$(dirname -- "$0")/.."
sh scripts/setup_venv.sh test
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMP_NUM_THREADS
exec "${VENV:-.venv}/bin/python" -m pytest -n logical --maxprocesses 4 --dist loadfile "$@"
