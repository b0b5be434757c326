"""python scripts/profile_finetune.py [--model CHAT --base BASE --int4 INT4 | --config FILE.json] [--out table.md]

Measure the training table of the Qwen-VL README on this device and print it as Markdown: peak memory and seconds a step
of LoRA on a base model, LoRA on a chat model and Q-LoRA, with samples of 384, 512, 1024 and 2048 tokens and one image
each (batch 1, accumulation 8, gradient checkpointing). Each run is a process of its own and is shown next to the
estimate of `qwen-vl plan`. Without --model small random models are built (configs/model/benchmark.json), with nf4 for
Q-LoRA. Memory is that of the whole process on a CPU. On a GPU it is that of the tensors, and the estimate leaves out
context and fragmentation as well. Needs the extra `demo`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from qwen_vl.startup import prepare

if __name__ == "__main__":
    prepare()  # before torch is imported

import torch
from PIL import Image

from qwen_vl.checkpoint import loading, random_model
from qwen_vl.cli.run import run
from qwen_vl.data.chatml import encode
from qwen_vl.files import read_entries
from qwen_vl.terminal import markdown_table
from qwen_vl.training.monitor.callbacks import METRICS_FILE
from qwen_vl.training.plan import memory_model, planner

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/model/benchmark.json"
WAYS = ("full", "LoRA (base)", "LoRA (chat)", "Q-LoRA")
MINUTES = 30  # time limit of a cell


def build_models(config, folder):
    """Build models with random weights, return {way: folder}; generation_config marks the base model as such."""
    random_model.build(config, folder / "chat")
    random_model.build(config, folder / "base")
    path = folder / "base" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_format": "raw"}))
    return {way: folder / ("base" if "base" in way else "chat") for way in WAYS}


def write_data(folder, tokenizer, length, count):
    """Write `count` conversations of one image and exactly `length` tokens; return (path, share of targets)."""
    Image.effect_noise((96, 64), 60).convert("RGB").save(folder / "picture.png")

    def record(number, words):
        turns = [("user", "Picture 1: <img>picture.png</img>\nWhat?"), ("assistant", " ".join(["a"] * words))]
        return {"id": str(number), "conversations": [{"from": role, "value": text} for role, text in turns]}

    missing = length - len(encode(record(0, 1), tokenizer).input_ids)
    if missing < 0:
        raise ValueError(f"--lengths {length}: an image and its question alone take {length - missing} tokens")
    sample = encode(record(0, 1 + missing), tokenizer)
    assert len(sample.input_ids) == length
    path = folder / f"data_{length}.json"
    path.write_text(json.dumps([record(n, 1 + missing) for n in range(count)]), encoding="utf-8")
    return path, sum(label != -100 for label in sample.labels) / length


def measure(model, data, out, flags):
    """Return (peak bytes, seconds of the last step) of a run. Raise ValueError with its output if it fails."""
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    words += ["--model_name_or_path", str(model), "--data_path", str(data), "--output_dir", str(out)]
    done = subprocess.run(
        [sys.executable, ROOT / "finetune.py", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
    )
    if done.returncode:
        raise ValueError(f"finetune.py {' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")
    steps = [entry for entry in read_entries(out / METRICS_FILE) if "step_seconds" in entry]
    return max(entry["memory_gib"] for entry in steps) * 2**30, steps[-1]["step_seconds"]


def planned(config, way, length, share, args, on_cpu):
    """Return the planned bytes of the same run; None if the planner does not support it."""
    method = {"full": "full", "Q-LoRA": "qlora"}.get(way, "lora")
    if on_cpu and method == "qlora":
        return None
    setup = memory_model.Setup(
        method=method,
        length=length,
        accumulation=args.accumulation,
        targets=share,
        half=not on_cpu,
        checkpointing=not args.no_checkpointing,
        on_cpu=on_cpu,
    )
    weights = memory_model.weigh(config, setup, memory_model.Trained(base_model="base" in way))
    found = planner.need(config, setup, planner.assumed(on_cpu), weights)
    return found.total - (0 if on_cpu else found.parts["context"] + found.parts["fragmentation"])


def cell(way, model, length, folder, args, on_cpu):
    """Return a cell of the table as text."""
    tokenizer, config = loading.load_tokenizer(model), loading.load_config(model)
    data, share = write_data(folder, tokenizer, length, args.accumulation)
    flags = {
        "model_max_length": length,
        "max_steps": args.steps,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": args.accumulation,
        "gradient_checkpointing": not args.no_checkpointing,
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        **({"use_cpu": True} if on_cpu else {"bf16": True}),
        **{"full": {}, "Q-LoRA": {"q_lora": True}}.get(way, {"use_lora": True}),
    }
    size, seconds = measure(model, data, folder / "out" / f"{WAYS.index(way)}-{length}", flags)
    plan = planned(config, way, length, share, args, on_cpu)
    beside = "not planned" if plan is None else f"planned {plan / 1e9:.2f}, {plan / size - 1:+.0%}"
    print(f"{way}, {length} tokens: {size / 1e9:.2f} GB ({beside}), {seconds:.2f} s", file=sys.stderr)
    return f"{size / 1e9:.2f} GB ({beside}), {seconds:.2f} s"


def main(argv=None):
    """Measure, print Markdown and write it into --out."""
    parser = argparse.ArgumentParser(description="Memory and speed of fine-tuning, as Markdown.", allow_abbrev=False)
    add = parser.add_argument
    add("--model", help="chat checkpoint for LoRA and full training; without it random ones are made")
    add("--base", help="base checkpoint, whose LoRA trains wte and lm_head as well")
    add("--int4", help="quantized checkpoint for Q-LoRA")
    add("--config", default=CONFIG, help="configuration of the random models (default: %(default)s)")
    add("--ways", nargs="+", choices=WAYS, default=WAYS[1:], help="rows of the table (default: the three published)")
    add("--lengths", type=int, nargs="+", default=planner.LENGTHS, help="tokens (default: 384 512 1024 2048)")
    add("--steps", type=int, default=2, help="steps of a cell; the last is timed (default: %(default)s)")
    add("--accumulation", type=int, default=8, help="micro-batches of a step (default: %(default)s)")
    add("--no_checkpointing", action="store_true", help="without gradient checkpointing")
    add("--cpu", action="store_true", help="on the CPU even where there is a GPU")
    add("--out", help="file for the table")
    add("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    on_cpu = args.cpu or not torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if args.model or args.base or args.int4:
            given = dict(zip(WAYS, (args.model, args.base, args.model, args.int4), strict=True))
            models = {way: given[way] for way in args.ways if given[way]}
        else:
            built = build_models(args.config, folder)
            models = {way: built[way] for way in args.ways}
        rows = []
        for way, model in models.items():
            cells = [cell(way, model, length, folder, args, on_cpu) for length in args.lengths]
            rows.append([way, *cells])
    table = markdown_table(["", *(f"{length} tokens" for length in args.lengths)], rows)
    device = "cpu" if on_cpu else torch.cuda.get_device_name()
    text = f"Peak memory and seconds of a step, {device}, batch 1 x {args.accumulation}:\n\n{table}\n"
    print(text)
    if args.out:
        Path(args.out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
