#!/bin/sh
# sh scripts/setup_venv.sh [EXTRAS]
#
# Makes .venv beside this repository's README and installs the package into it with the versions of constraints.txt.
# EXTRAS: extras of pyproject.toml, separated by commas, such as demo,test. A second call without changes is instant.
#
# From the environment:
#   PYTHON            the Python (3.11 or newer) that creates the environment; default: the first one found
#   VENV              the folder of the environment, relative to the repository; default: .venv
#   TORCH_INDEX_URL   package index for torch alone, such as https://download.pytorch.org/whl/cpu; default: pip's own
set -eu

cd -- "$(dirname -- "$0")/.."
EXTRAS=${1:-}
VENV=${VENV:-.venv}
STAMP="$VENV/.installed-$(printf %s "$EXTRAS" | tr ',' '-')"
INPUTS="$(pwd) $(cat constraints.txt pyproject.toml setup.py | cksum)"

fail() {
    echo "setup_venv.sh: $1" >&2
    exit 1
}

find_python() {
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3 sh scripts/.."
}

if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$INPUTS" ]; then
    exit 0
fi
if ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
    if [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ]; then
        fail "$VENV exists and is no virtual environment; name another folder with VENV=.."
    fi
    FOUND=$(find_python)
    echo "making $VENV with $("$FOUND" --version)"
    "$FOUND" -m venv --clear "$VENV" ||
        fail "$FOUND cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"
fi
echo "installing torch, then the rest, into $VENV (the first time about 2 GB: a few minutes)"
pip() {
    "$VENV/bin/python" -m pip --disable-pip-version-check install --quiet -c constraints.txt "$@" ||
        fail "pip could not install ($*); its message stands above"
}
if [ -n "${TORCH_INDEX_URL:-}" ]; then
    pip --index-url "$TORCH_INDEX_URL" torch
else
    pip torch
fi
case ",$EXTRAS," in
    *,quant,* | *,test,*)
        # gptqmodel comes as source and builds in seconds with the installed torch.
        if [ "$(uname -s)" = Linux ]; then
            pip setuptools wheel ninja packaging
            pip --no-build-isolation gptqmodel
        fi
        ;;
esac
pip -e ".${EXTRAS:+[$EXTRAS]}"
printf '%s\n' "$INPUTS" >"$STAMP"
