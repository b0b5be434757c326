#!/bin/sh
# `qwen-vl evaluate` in several processes, one per GPU, each with the whole model and a part of the records.
set -eu

ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

usage() {
    cat <<END
qwen-vl evaluate in several processes: one per GPU, each with the whole model and a part of the records.

sh $0 MODEL.. --benchmarks NAME.. [--data_dir DIR] [--output_dir DIR] [--flag value ..]

All arguments go to qwen-vl evaluate; \`python -m qwen_vl.cli evaluate --help\` lists them. Answers are the same for any
number of processes, and a killed run is resumed by the same command, with another number of them too.

The environment may set NPROC, the number of processes on this machine (default: one per GPU; 2 without a GPU or with
--device cpu), and PYTHON, the Python to use (default: the one in .venv, else python3). On several machines with a shared
--output_dir, run the same command on each, with NNODES (number of machines), NODE_RANK (0 to NNODES - 1), MASTER_ADDR
(address of machine 0) and MASTER_PORT (default: 29500).
END
}

bad_usage() {
    echo "${0##*/}: $1; see -h for usage" >&2
    exit 2
}

is_count() {
    case $1 in
        '' | *[!0-9]* | 0*) return 1 ;;
    esac
}

[ "$#" -gt 0 ] || bad_usage "name a model and benchmarks"
device=gpu
before=
for word in "$@"; do
    case "$before $word" in
        *" -h" | *" --help")
            usage
            exit 0
            ;;
        "--device cpu" | *" --device=cpu") device=cpu ;;
    esac
    before=$word
done

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x "$ROOT/.venv/bin/python" ] || PYTHON=$ROOT/.venv/bin/python
fi
gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null) || {
    echo "${0##*/}: $PYTHON cannot import torch; install the requirements first: sh scripts/setup_venv.sh" >&2
    exit 1
}
if [ "$device" = cpu ] || [ "$gpus" -eq 0 ]; then : "${NPROC:=2}"; else : "${NPROC:=$gpus}"; fi
is_count "$NPROC" || bad_usage "NPROC is $NPROC; it takes a number from 1"
is_count "${NNODES:-1}" || bad_usage "NNODES is $NNODES; it takes a number from 1"
threads=$(($(getconf _NPROCESSORS_ONLN) / NPROC))
[ "$threads" -gt 0 ] || threads=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" # a clone works without being installed

set -- -m qwen_vl.cli evaluate "$@"
if [ "${NNODES:-1}" -eq 1 ]; then
    set -- --standalone "$@"
else
    [ -n "${MASTER_ADDR:-}" ] && [ -n "${NODE_RANK:-}" ] || bad_usage "NNODES $NNODES needs NODE_RANK and MASTER_ADDR"
    set -- --nnodes "$NNODES" --rdzv_backend machines --rdzv_endpoint "$MASTER_ADDR:${MASTER_PORT:-29500}" \
        --rdzv_conf "rank=$NODE_RANK" --rdzv_id qwen-vl "$@"
fi
exec "$PYTHON" "$ROOT/scripts/torchrun.py" --nproc_per_node "$NPROC" --max_restarts 0 "$@"
