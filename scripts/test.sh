#!/bin/sh
# sh scripts/test.sh [pytest arguments]     all tests, in .venv, which is made first where it is missing
set -eu

cd -- "$(dirname -- "$0")/.."
sh scripts/setup_venv.sh test
exec "${VENV:-.venv}/bin/python" -m pytest "$@"
