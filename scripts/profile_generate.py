"""python scripts/profile_generate.py [--model FOLDER | --config FILE.json] [--lengths 2048 8192] [--out table.md]

Measure the inference table of the Qwen-VL README on this device and print it as Markdown: tokens a second of generation
after one image up to a length of 2048 and 8192 tokens, and the peak memory of reading 2048 tokens and of generating to
8192. Then ratios, measured in alternating pairs: our KV cache and one that concatenates; prefill logits of one position
and of all; four rows at once and one by one; a conversation with and without a kept KV cache. Without --model a small
random model is built (configs/model/benchmark.json). On a CPU memory is that of the whole process. Needs the extra
`demo`.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from qwen_vl.startup import prepare

if __name__ == "__main__":
    prepare()  # before torch is imported

import torch
from PIL import Image
from transformers import DynamicCache

from qwen_vl.checkpoint import random_model
from qwen_vl.cli.run import run
from qwen_vl.families import v1 as family
from qwen_vl.serving import engine
from qwen_vl.terminal import markdown_table
from qwen_vl.training.monitor import flops
from qwen_vl.training.monitor.throughput import peak_memory

CONFIG = Path(__file__).resolve().parents[1] / "configs/model/benchmark.json"
QUESTIONS = ("What is in the picture?", "And the colors?", "Where is the largest part?", "Thank you. Anything else?")
PUBLISHED = {"bf16": "28.87 / 24.32 tokens/s, 22.60 / 28.01 GB", "Int4": "37.79 / 34.34 tokens/s, 11.82 / 17.23 GB"}


def prompt(model, length, rows=1):
    """Return inputs of `generate` with one image a row, filled up to `length` ids."""
    start, span = family.image_start_id(model.config), family.tokens_per_image(model.config)
    ids = [start, *[start + 2] * (span - 2), start + 1]
    ids = torch.tensor([ids + [11] * (length - len(ids))] * rows, device=model.device)
    size = family.image_size(model.config)
    pixels = torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels.to(model.device)}


def write(model, inputs, tokens, **options):
    """Generate exactly `tokens` tokens greedily."""
    output = model.generate(**inputs, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, **options)
    assert output.shape[1] == inputs["input_ids"].shape[1] + tokens


def table(model, lengths):
    """Return Markdown: the speed of generation up to each length, and the peak memory of reading and generating."""
    picture, rows = family.tokens_per_image(model.config), []
    for length in sorted(lengths):  # ascending, since the peak of a CPU process never falls
        memories = []
        for inputs, tokens in ((prompt(model, length - 1), 1), (prompt(model, picture), length - picture)):
            if model.device.type != "cpu":
                torch.accelerator.reset_peak_memory_stats()
            took = flops.seconds_of(lambda i=inputs, n=tokens: write(model, i, n), model.device)
            memories.append(peak_memory(model.device) / 1e9)
        speed = (length - picture) / took
        rows.append((length, f"{speed:.2f}", f"{memories[0]:.2f}", f"{memories[1]:.2f}"))
    return markdown_table(("tokens", "tokens/s, writing", "GB, reading and writing one", "GB, writing"), rows)


def ratio(one, other, device, rounds):
    """Return the median of the time of `other` divided by that of `one`, in alternating pairs."""
    one(), other()
    return statistics.median(flops.seconds_of(other, device) / flops.seconds_of(one, device) for _ in range(rounds))


def ratios(model, tokenizer, length, rounds, folder):
    """Return Markdown: the speedup of each optimization."""
    device, picture = model.device, family.tokens_per_image(model.config)
    short, long = prompt(model, picture), prompt(model, length - 1)
    tokens = length - picture
    image = folder / "picture.png"
    Image.effect_noise((96, 64), 60).convert("RGB").save(image)

    def converse(memory):
        history = []
        for number, question in enumerate(QUESTIONS):
            query = f"Picture 1: <img>{image}</img>\n{question}" if number == 0 else question
            _, history = model.chat(tokenizer, query, history=history, memory=memory, do_sample=False, max_new_tokens=4)

    def concatenating():
        write(model, short, tokens, past_key_values=DynamicCache(config=model.config))

    def one_by_one():
        for _ in range(4):
            write(model, short, tokens // 4)

    with torch.no_grad():
        found = {
            f"cache written in place, against concatenated: {tokens} tokens": ratio(
                lambda: write(model, short, tokens), concatenating, device, rounds
            ),
            f"prefill of {length - 1} tokens, logits of one position against all": ratio(
                lambda: model(**long, logits_to_keep=1), lambda: model(**long), device, rounds
            ),
            f"4 rows of {tokens // 4} tokens together, against one by one": ratio(
                lambda: write(model, prompt(model, picture, rows=4), tokens // 4), one_by_one, device, rounds
            ),
            f"conversation of {len(QUESTIONS)} turns about an image, with a memory against without": ratio(
                lambda: converse(model.new_memory()), lambda: converse(None), device, rounds
            ),
        }
    return markdown_table(("saving", "times as fast"), [(name, f"{times:.2f}") for name, times in found.items()])


def main(argv=None):
    """Measure, print Markdown and write it into --out."""
    parser = argparse.ArgumentParser(description="Speed and memory of generation, as Markdown.", allow_abbrev=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="checkpoint folder or hub name; without it a random one is made")
    which.add_argument("--config", default=CONFIG, help="configuration of the random model (default: %(default)s)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192], help="tokens (default: 2048 8192)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of each ratio (default: %(default)s)")
    parser.add_argument("--device", help="cuda, cpu .. (default: the GPU where there is one)")
    parser.add_argument("--dtype", default="auto", help="dtype of the weights (default: the file's)")
    parser.add_argument("--out", help="file for the table")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or Path(folder, "model")
        if args.model is None:
            random_model.build(args.config, path)
        model, tokenizer = engine.load(path, device=args.device, dtype=args.dtype)
        shortest = family.tokens_per_image(model.config) + 8
        if min(args.lengths) < shortest:
            raise ValueError(f"--lengths {min(args.lengths)}: an image and some text take {shortest} tokens at least")
        device = torch.cuda.get_device_name() if model.device.type == "cuda" else str(model.device)
        parts = [
            f"{args.model or args.config} in {str(model.dtype).removeprefix('torch.')} on {device}. Published, on an "
            f"A100, for 2048 / 8192 tokens: {'; '.join(f'{name} {text}' for name, text in PUBLISHED.items())}.",
            table(model, args.lengths),
            ratios(model, tokenizer, min(args.lengths), args.rounds, Path(folder)),
        ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if args.out:
        Path(args.out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
