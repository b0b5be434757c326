#!/bin/sh
# sh scripts/quickstart.sh
#
# From nothing to a fine-tuned Qwen-VL on any machine with Python 3.11 or newer, no GPU needed: installs into .venv,
# builds conversations about real images, trains a tiny model, LoRA-tunes it on another task, merges, chats, reports.
# Writes only .venv and output/quickstart, which it empties first. PYTHON, VENV and TORCH_INDEX_URL: setup_venv.sh.
set -eu

cd -- "$(dirname -- "$0")/.."
OUT=output/quickstart
sh scripts/setup_venv.sh demo
PYTHON=${VENV:-.venv}/bin/python
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1  # everything is local from here on
eval "$("$PYTHON" -m qwen_vl.startup --use_cpu)"        # settings of threads for the CPU

rm -rf "$OUT"
mkdir -p "$OUT"
step() {
    "$PYTHON" scripts/quickstart/progress.py "$OUT/progress.json" "$1" "$2"
}

step data "conversations from easy-vqa's images, and a tiny model with random weights"
"$PYTHON" scripts/quickstart/make_data.py "$OUT/data"
"$PYTHON" -m qwen_vl.cli.random_model configs/model/tiny.json "$OUT/tiny"

step boxes "full training from nothing: what is where"
"$PYTHON" finetune.py configs/train/quickstart_boxes.yaml \
    --model_name_or_path "$OUT/tiny" --data_path "$OUT/data/boxes.json" --output_dir "$OUT/boxes"

step full "full training goes on: questions and boxes in English"
"$PYTHON" finetune.py configs/train/quickstart_full.yaml \
    --model_name_or_path "$OUT/boxes" --data_path "$OUT/data/full.json" --output_dir "$OUT/full"

step lora "LoRA training: the same in Chinese, which the model has not read before"
"$PYTHON" finetune.py configs/train/quickstart_lora.yaml \
    --model_name_or_path "$OUT/full" --data_path "$OUT/data/lora.json" --output_dir "$OUT/lora"

step merge "merge base and adapter into one standalone checkpoint"
"$PYTHON" scripts/merge_and_unload.py "$OUT/lora" "$OUT/merged"

step chat "chat with the merged folder in a process that does not know this repository"
"$PYTHON" scripts/chat_with_folder.py "$OUT/merged" "$OUT/data/test/3.png" "$OUT/chat.png" \
    "what color is the shape?" "图形在哪里？"

step report "answers of every stage to held-out questions"
"$PYTHON" scripts/quickstart/evaluate.py "$OUT/data/test.json" "$OUT/report" \
    --stage "before=$OUT/tiny" --stage "after full=$OUT/full" --stage "after LoRA, merged=$OUT/merged" \
    --curve "boxes=$OUT/boxes" --curve "full=$OUT/full" --curve "LoRA=$OUT/lora"

step done "done; look at $OUT/report/report.md"
