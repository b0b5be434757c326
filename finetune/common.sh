# shellcheck shell=sh
# Shared by the launchers: each sources this file, then calls `start` with its own flags and "$@". This file reads MODEL,
# DATA and OUTPUT from the environment or from -m -d -o, and finds Python and the devices. It leaves the flags of
# finetune.py in "$@": first the recipe of Qwen-VL, then the caller's flags. finetune.py takes the last of repeated flags,
# so the caller's win. `start` runs one process, or one per device.
# The launcher sets WHAT (a line of help), OUTPUT_DEFAULT, and PROCESSES: "one" or "many". Optional: MODEL_DEFAULT, and
# PRECISION_DEFAULT, the precision on a GPU. Sets ROOT and PYTHON.

MODEL_DEFAULT=${MODEL_DEFAULT:-Qwen/Qwen-VL-Chat}
PRECISION_DEFAULT=${PRECISION_DEFAULT:-bf16}
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

usage() {
    cat <<END
$WHAT

sh $0 -d DATA [-m MODEL] [-o OUTPUT] [--flag value ..]

  -m, --model   MODEL    checkpoint folder or hub name (default: $MODEL_DEFAULT)
  -d, --data    DATA     conversation file, see docs/data.md
  -o, --output  OUTPUT   folder for the result (default: $OUTPUT_DEFAULT)
  -h, --help             this text

The environment may also set MODEL, DATA, OUTPUT, and PYTHON, the Python to use (default: the one in .venv, else python3).
All other flags go to finetune.py and override the launcher's own, for instance --num_train_epochs 1;
\`python finetune.py --help\` lists them. Relative paths start at the current folder.
END
    [ "$PROCESSES" = one ] || cat <<END

The environment may also set NPROC, the number of processes on this machine (default: one per GPU; 2 without a GPU or with
--use_cpu True), MAX_RESTARTS, how often all of them are restarted after one has died (default: 0), and SHUTDOWN_TIMEOUT,
the seconds for writing a checkpoint after a signal to stop (default: 600). On several machines, run the same command on
each, with NNODES (number of machines, all with the same number of processes), NODE_RANK (0 to NNODES - 1), MASTER_ADDR
(address of machine 0) and MASTER_PORT (default: 29500).
END
}

bad_usage() {
    echo "${0##*/}: $1; see -h for usage" >&2
    exit 2
}

# Go through all arguments once: remove our own, and move the others to the end in their order.
left=$#
device=gpu
while [ "$left" -gt 0 ]; do
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        -m | --model | -d | --data | -o | --output)
            [ "$left" -gt 1 ] || bad_usage "$1 needs a value"
            case $1 in
                -m | --model) MODEL=$2 ;;
                -d | --data) DATA=$2 ;;
                *) OUTPUT=$2 ;;
            esac
            shift 2
            left=$((left - 2))
            ;;
        *)
            case "$1 ${2:-}" in
                "--use_cpu "[Ff]alse | "--no_cuda "[Ff]alse) device=gpu ;;
                "--use_cpu "* | "--no_cuda "*) device=cpu ;;
            esac
            set -- "$@" "$1"
            shift
            left=$((left - 1))
            ;;
    esac
done
[ -z "${DATA:-}" ] || set -- --data_path "$DATA" "$@"

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x "$ROOT/.venv/bin/python" ] || PYTHON=$ROOT/.venv/bin/python
fi

# One process drives one GPU.
[ "$PROCESSES" = many ] || export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null) || {
    echo "${0##*/}: $PYTHON cannot import torch; install the requirements first: sh scripts/setup_venv.sh" >&2
    exit 1
}
if [ "$device" = gpu ] && [ "$gpus" -gt 0 ]; then
    set -- "--$PRECISION_DEFAULT" True "$@"
elif [ "$device" = gpu ]; then
    echo "${0##*/}: torch sees no GPU here; training on the CPU in fp32" >&2
    set -- --use_cpu True "$@"
    device=cpu
fi

set -- \
    --model_name_or_path "${MODEL:-$MODEL_DEFAULT}" \
    --output_dir "${OUTPUT:-$OUTPUT_DEFAULT}" \
    --num_train_epochs 5 \
    --per_device_train_batch_size 1 \
    --per_device_eval_batch_size 1 \
    --gradient_accumulation_steps 8 \
    --learning_rate 1e-5 \
    --lr_scheduler_type cosine \
    --warmup_steps 0.01 \
    --weight_decay 0.1 \
    --adam_beta2 0.95 \
    --model_max_length 2048 \
    --gradient_checkpointing True \
    --lazy_preprocess True \
    --save_strategy steps \
    --save_steps 1000 \
    --save_total_limit 10 \
    --resume auto \
    --logging_steps 1 \
    "$@"

# start FLAGS ..: replace this process by finetune.py with these flags.
start() {
    [ "$PROCESSES" = many ] || exec "$PYTHON" "$ROOT/finetune.py" "$@"
    if [ "$device" = cpu ]; then : "${NPROC:=2}"; else : "${NPROC:=$gpus}"; fi
    is_count "$NPROC" || bad_usage "NPROC is $NPROC; it takes a number from 1"
    is_count "${NNODES:-1}" || bad_usage "NNODES is $NNODES; it takes a number from 1"
    threads=$(($(getconf _NPROCESSORS_ONLN) / NPROC))
    [ "$threads" -gt 0 ] || threads=1
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"
    if [ "${NNODES:-1}" -eq 1 ]; then
        set -- --standalone "$ROOT/finetune.py" "$@"
    else
        [ -n "${MASTER_ADDR:-}" ] && [ -n "${NODE_RANK:-}" ] || bad_usage "NNODES $NNODES needs NODE_RANK and MASTER_ADDR"
        set -- --nnodes "$NNODES" --rdzv_backend machines --rdzv_endpoint "$MASTER_ADDR:${MASTER_PORT:-29500}" \
            --rdzv_conf "rank=$NODE_RANK" --rdzv_id qwen-vl "$ROOT/finetune.py" "$@"
    fi
    # The timeout gives a stopped process time to write a checkpoint.
    exec "$PYTHON" "$ROOT/scripts/torchrun.py" --nproc_per_node "$NPROC" --max_restarts "${MAX_RESTARTS:-0}" \
        --shutdown_timeout "${SHUTDOWN_TIMEOUT:-600}" "$@"
}

is_count() {
    case $1 in
        '' | *[!0-9]* | 0*) return 1 ;;
    esac
}
