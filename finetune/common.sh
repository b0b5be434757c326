# shellcheck shell=sh
# The part that the launchers share; each sources it. It reads MODEL, DATA and OUTPUT from the environment or from
# -m -d -o, finds Python and the device, and leaves in "$@" the flags of finetune.py: the recipe of Qwen-VL first, then
# what the caller gave. Of a flag that is there twice finetune.py takes the last, so the caller wins.
# Expects from the launcher: WHAT (a line of help) and OUTPUT_DEFAULT. Sets ROOT and PYTHON.

ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

usage() {
    cat <<END
$WHAT

sh $0 -d DATA [-m MODEL] [-o OUTPUT] [--flag value ..]

  -m, --model   MODEL    checkpoint folder or hub name (default: Qwen/Qwen-VL-Chat)
  -d, --data    DATA     conversation file, see data/README.md
  -o, --output  OUTPUT   folder for the result (default: $OUTPUT_DEFAULT)
  -h, --help             this text

MODEL, DATA and OUTPUT are also read from the environment, and PYTHON: the Python to use (default: the one of .venv,
else python3). Everything else goes to finetune.py and wins over the launcher's own flags, for instance
--num_train_epochs 1; \`python finetune.py --help\` lists all of them. Relative paths are seen from where you stand.
END
}

bad_usage() {
    echo "${0##*/}: $1; -h shows how to call it" >&2
    exit 2
}

# One turn over all arguments: ours are taken out, the others move to the end in their order.
left=$#
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

# One process drives one GPU; more of them need a launcher of their own.
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
has_gpu=$("$PYTHON" -c 'import torch; print(torch.cuda.is_available())' 2>/dev/null) || {
    echo "${0##*/}: $PYTHON cannot import torch; install the requirements first: sh scripts/setup_venv.sh" >&2
    exit 1
}
if [ "$has_gpu" = True ]; then
    set -- --bf16 True "$@"
else
    echo "${0##*/}: torch sees no GPU here; training on the CPU in fp32" >&2
    set -- --use_cpu True "$@"
fi

set -- \
    --model_name_or_path "${MODEL:-Qwen/Qwen-VL-Chat}" \
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
    --logging_steps 1 \
    "$@"
