"""python scripts/benchmark_data.py [--model FOLDER] [--samples 64] [--records 10000] [--rounds 3] [--out table.md]

Measure the speed of the data path as ratios within one run: useful tokens a second of a training step with samples
packed, grouped by length, padded to their batch or padded to model_max_length; encoding compared with a bare tokenizer
loop; a start from the tokenized cache compared with tokenizing; `qwen-vl data check`. Without --model a tiny model is
built. Needs the extra `demo`.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from qwen_vl.startup import prepare

if __name__ == "__main__":
    prepare()  # before torch is imported

import torch
from PIL import Image

from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint import random_model as tiny
from qwen_vl.cli.run import run
from qwen_vl.data import conversations
from qwen_vl.data.chatml import IGNORE_INDEX, EncodeOptions, encode
from qwen_vl.data.check.check import Check
from qwen_vl.data.collator import HOST_KEYS, ConversationCollator
from qwen_vl.data.dataset import ConversationDataset
from qwen_vl.data.packing import PackedDataset, PackOptions
from qwen_vl.data.samplers import LengthGroupedSampler
from qwen_vl.data.sources import tokenized_cache
from qwen_vl.families import v1 as family
from qwen_vl.model.loss_qwen import target_index
from qwen_vl.terminal import markdown_table

MAX_LENGTH, BATCH = 2048, 4
WORDS = (
    "the",
    "a",
    "red",
    "small",
    "shape",
    "picture",
    "left",
    "of",
    "what",
    "where",
    "is",
    "图",
    "中",
    "什么",
    "颜色",
)


def write_data(folder, count, seed=0, *, images=16, size=(96, 64)):
    """Write a file of `count` conversations about one image each, with a few turns; return its path.

    The records use `images` different images of a size in turn.
    """
    generator = random.Random(seed)
    for name in range(images):
        noise = Image.frombytes("L", (16, 16), generator.randbytes(256)).resize(size)
        color = tuple(generator.randrange(256) for _ in range(3))
        Image.composite(Image.new("RGB", size, color), noise.convert("RGB"), noise).save(folder / f"{name}.png")

    def text(low, high):
        return " ".join(generator.choices(WORDS, k=generator.randint(low, high)))

    records = []
    for number in range(count):
        turns = []
        for turn in range(generator.choice([1, 1, 2, 2, 3])):
            image = f"Picture 1: <img>{number % images}.png</img>\n" if turn == 0 else ""
            turns.append({"from": "user", "value": image + text(3, 20)})
            turns.append({"from": "assistant", "value": text(1, 40)})
        records.append({"id": f"sample-{number}", "conversations": turns})
    path = folder / f"data_{count}.json"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def padded(batch, length, pad_id):
    """Return the batch with every row padded to `length`, as in the original trainer."""
    missing = length - batch["input_ids"].shape[1]
    values = {"input_ids": pad_id, "labels": IGNORE_INDEX, "attention_mask": 0}
    wider = {key: torch.nn.functional.pad(batch[key], (0, missing), value=value) for key, value in values.items()}
    return batch | wider | {"target_index": target_index(wider["labels"])}


def batches_of(samples, collator, pad_id):
    """Return {mode: list of batches}; each mode has every sample once."""
    indices = list(range(len(samples)))
    random.Random(0).shuffle(indices)
    groups = list(LengthGroupedSampler(samples.lengths, BATCH, seed=0))

    def in_order(order):
        return [collator([samples[i] for i in order[n : n + BATCH]]) for n in range(0, len(order), BATCH)]

    rows = PackedDataset(samples, PackOptions(MAX_LENGTH))
    shuffled = in_order(indices)
    return {
        "packed": [collator([rows[i]]) for i in range(len(rows))],
        "grouped by length": in_order(groups),
        "padded to the batch": shuffled,
        f"padded to {MAX_LENGTH}": [padded(batch, MAX_LENGTH, pad_id) for batch in shuffled],
    }


def train(model, optimizer, batches):
    """Return the seconds of one training pass over the batches."""
    start = time.perf_counter()
    for batch in batches:
        model(**{key: value for key, value in batch.items() if key not in HOST_KEYS}, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start


def measure(modes, rounds):
    """Return {mode: median seconds}; the modes alternate, so other load on the machine affects all of them."""
    seconds = {name: [] for name in modes}
    for _ in range(rounds):
        for name, task in modes.items():
            seconds[name].append(task())
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(task):
    """Wrap a task into one that returns its seconds."""

    def run_once():
        start = time.perf_counter()
        task()
        return time.perf_counter() - start

    return run_once


def training_table(folder, tokenizer, args):
    """Return the table of training throughput as lines."""
    model = loading.load_model(args.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    path = write_data(folder, args.samples)
    samples = ConversationDataset(
        conversations.read(path), tokenizer, EncodeOptions(MAX_LENGTH), search_dirs=conversations.search_dirs(path)
    )
    collator = ConversationCollator(tokenizer, family.image_size(model.config))
    modes = batches_of(samples, collator, tokenizer.pad_token_id)
    train(model, optimizer, modes["packed"][:1])  # warm-up
    seconds = measure({name: lambda b=b: train(model, optimizer, b) for name, b in modes.items()}, args.rounds)
    useful, slowest = sum(samples.lengths), max(seconds.values())
    yield f"Training on {len(samples)} samples of {useful // len(samples)} tokens on average, batches of {BATCH}:\n"
    rows = []
    for name, value in seconds.items():
        computed = sum(batch["input_ids"].numel() for batch in modes[name]) / useful
        rows.append((name, f"{useful / value:,.0f}", f"{slowest / value:.2f}x", f"{computed:.2f}"))
    yield markdown_table(("rows", "useful tokens/s", "against the last", "tokens computed for each useful one"), rows)


def data_table(folder, tokenizer, args):
    """Return the table of reading, encoding, caching and checking as lines."""
    path = write_data(folder, args.records)
    records = conversations.read(path)
    texts = [turn["value"] for record in records for turn in record["conversations"]]
    options = EncodeOptions(MAX_LENGTH)
    entries = folder / "cache"
    tokenized_cache.cached(path, tokenizer, options, folder=entries)
    check = Check(tokenizer=tokenizer, workers=2)
    tasks = {
        "tokenizer alone": lambda: [tokenizer.encode_message(text) for text in texts],
        "chatml.encode": lambda: [encode(record, tokenizer) for record in records],
        "read and tokenize": lambda: ConversationDataset(conversations.read(path), tokenizer, options),
        "start from the cache": lambda: tokenized_cache.cached(path, tokenizer, options, folder=entries),
        "check, images opened": lambda: check.file(path),
    }
    seconds = measure({name: timed(task) for name, task in tasks.items()}, args.rounds)
    yield f"\n{len(records)} conversations of {len(texts) / len(records):.1f} turns:\n"
    rows = [(name, f"{value:.3f}", f"{len(records) / value:,.0f}") for name, value in seconds.items()]
    yield markdown_table(("task", "seconds", "conversations/s"), rows)
    encoding = seconds["chatml.encode"] / seconds["tokenizer alone"]
    start = seconds["read and tokenize"] / seconds["start from the cache"]
    yield f"\nEncoding takes {encoding:.2f}x the time of the tokenizer alone; the cache starts {start:.0f}x faster."


def main(argv=None):
    """Measure as the command line says and print Markdown."""
    parser = argparse.ArgumentParser(prog="benchmark_data.py", description=__doc__.split("\n\n")[1])
    parser.add_argument("--model", help="checkpoint folder (default: a tiny random one)")
    parser.add_argument("--samples", type=int, default=64, help="samples that are trained on (default %(default)s)")
    parser.add_argument("--records", type=int, default=10_000, help="records to read and encode (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions; the median counts (default %(default)s)")
    parser.add_argument("--out", help="file to write the tables to, beside printing them")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if args.model is None:
            args.model = folder / "tiny"
            tiny.build(Path(__file__).parents[1] / "configs/model/benchmark.json", args.model)
        tokenizer = loading.load_tokenizer(args.model)
        lines = [*training_table(folder, tokenizer, args), *data_table(folder, tokenizer, args)]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        Path(args.out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
