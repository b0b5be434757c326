"""python scripts/benchmark_training.py [--quick] [--sizes tiny small medium] [--samples 96] [--rounds 2] [--out FOLDER]

Measure speed and memory of training on models with random weights, as ratios within one run. Training is compared with
a plain loop that works like the original trainer (samples padded to the longest length, all logits, eager attention,
images opened in the step) and with a bare loop over the same batches, which shows the overhead of the trainer. Also
measured: MFU, the share of the machine's matrix-product speed; an epoch with the vision cache; a start with 1,000 to
100,000 samples. Writes training.md and training.svg. Needs the extra `demo`. Takes 20 minutes on 2 idle CPU cores.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parent))

from qwen_vl.startup import prepare

if __name__ == "__main__":
    prepare()  # before torch is imported

import psutil
import torch
from benchmark_data import write_data
from training_report import markdown, svg
from training_ways import BATCH, bare_loop, dataset, loaded, rate, reference_way, rows_of, train

from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint import random_model as tiny
from qwen_vl.cli.run import run
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.sources import tokenized_cache
from qwen_vl.families import v1 as family
from qwen_vl.families import v1_costs as costs
from qwen_vl.model import QWenConfig
from qwen_vl.training.distributed.host_memory import keep_freed_memory
from qwen_vl.training.monitor import throughput as monitor_throughput
from qwen_vl.training.vision_cache import cache

ROOT = Path(__file__).resolve().parents[1]
SIZES = {  # what differs from configs/model/benchmark.json
    "tiny": {"hidden_size": 128, "kv_channels": 32, "intermediate_size": 512, "vocab_size": 151_936},  # as published
    "small": {"vocab_size": 151_936},
    "medium": {"hidden_size": 1024, "kv_channels": 128, "num_attention_heads": 8, "num_hidden_layers": 4,
               "intermediate_size": 5632, "vocab_size": 32265},
}  # fmt: skip
METHODS = ("full", "lora")
MOST_ROWS = {"tiny": 16, "small": 16, "medium": 8}  # of 2048 tokens, or as many tokens in shorter ones
PAIRS = [("tiny", 512), ("tiny", 2048), ("small", 512), ("small", 2048), ("medium", 512)]


def build(folder, name, changes, **vision):
    """Write a random model and return its folder.

    changes, vision: settings of the model and of its tower that differ from configs/model/benchmark.json.
    """
    settings = json.loads((ROOT / "configs/model/benchmark.json").read_text(encoding="utf-8")) | changes
    settings["visual"] |= {
        "output_dim": settings["hidden_size"],
        "image_start_id": min(settings["vocab_size"] - 3, family.image_start_id(QWenConfig())),
        **vision,
    }
    config, out = Path(folder, f"{name}.json"), Path(folder, f"model-{name}")
    config.write_text(json.dumps(settings), encoding="utf-8")
    tiny.build(config, out)
    return out


def gib_of_all_logits(models, size, length):
    """Return the peak GiB of the logits and their gradients in the original's way."""
    return 3.4 * 4 * BATCH * length * loading.load_config(models[size]).vocab_size / 2**30


def too_large(models, args):
    """Return {(size, length): GiB} of the pairs for which the original's way needs more memory than is free."""
    free = psutil.virtual_memory().available / 2**30
    wanted = {*args.pairs, *((size, args.length) for size in args.memory)}
    return {pair: gib for pair in wanted if (gib := gib_of_all_logits(models, *pair)) > free - 2}


def against_reference(models, path, args):
    """Yield rows (size, method, length, tokens/s of the original's way, ours, ratio)."""
    for size, length in args.pairs:
        tokenizer = loading.load_tokenizer(models[size])
        samples = dataset(path, tokenizer, length)
        rows = rows_of(samples, length, MOST_ROWS[size] * 2048 // length)
        for method in args.methods if size != "medium" else args.methods[:1]:
            plain, ours = loaded(models[size], method, attn_implementation="eager"), loaded(models[size], method)
            reference_way(plain, samples, tokenizer, 512, 1)  # warm-up
            rates = {"reference": [], "ours": []}
            for _ in range(args.rounds):
                rates["reference"].append(rate(reference_way(plain, samples, tokenizer, length, args.steps)))
                with tempfile.TemporaryDirectory() as folder:
                    measured = train(ours, rows, tokenizer, folder, batch=2048 // length)  # about BATCH samples
                    rates["ours"].append(rate(measured[1]))
            medians = {name: statistics.median(values) for name, values in rates.items()}
            ratio = statistics.median(o / r for o, r in zip(rates["ours"], rates["reference"], strict=True))
            yield size, method, length, medians["reference"], medians["ours"], ratio
            print(f"{size} {method} {length}: {ratio:.1f}x", file=sys.stderr)


def overhead_and_mfu(models, path, args):
    """Yield rows (size, share of time that the trainer adds to the bare loop, MFU of the loop's steps)."""
    for size in args.sizes:
        tokenizer = loading.load_tokenizer(models[size])
        rows, model = rows_of(dataset(path, tokenizer, 2048), 2048, MOST_ROWS[size]), loaded(models[size], "full")
        ratios, shares = [], []
        bare_loop(model, rows, tokenizer)  # warm-up
        for _ in range(args.rounds if size == "medium" else 2 * args.rounds):
            bare, share = bare_loop(model, rows, tokenizer)
            shares.append(share)
            with tempfile.TemporaryDirectory() as folder:
                ours = rate(train(model, rows, tokenizer, folder, workers=0, batch=BATCH)[1])
            ratios.append(bare / ours - 1)
        yield size, statistics.median(ratios), statistics.median(shares)


def published_ratio_tower(hidden):
    """Return (visual settings, ratio, published ratio) of a tower with the published cost relative to its decoder.

    The ratio is that of operations in a LoRA step on samples of 384 tokens with one image.
    """
    batch = costs.work([384], targets=100, images=1)

    def ratio(config):
        counted = costs.training_operations(config, batch, trained=set(), adapter_parameters=1)
        tower = sum(counted[part] for part in costs.TOWER_PARTS)
        return tower / (sum(counted.values()) - tower)

    wanted, base = ratio(QWenConfig()), json.loads((ROOT / "configs/model/benchmark.json").read_text(encoding="utf-8"))
    towers = []
    for layers in range(1, 40):
        vision = {"image_size": 224, "width": 128, "heads": 2, "layers": layers, "n_queries": 256}
        settings = base | {"visual": base["visual"] | vision, "hidden_size": hidden}
        towers.append((abs(ratio(QWenConfig(**settings)) - wanted), vision, ratio(QWenConfig(**settings))))
    _, vision, reached = min(towers, key=lambda tower: tower[0])
    return vision, reached, wanted


def vision_cache_gain(folder, args):
    """Return (ratio of the second epoch's rates, cost of tower / decoder here, published)."""
    vision, reached, wanted = published_ratio_tower(256)
    name = build(folder, "cached", {}, **vision)
    images = Path(folder, "distinct")
    images.mkdir()
    path = write_data(images, args.samples, seed=1, images=args.samples, size=(640, 480))
    tokenizer, ratios = loading.load_tokenizer(name), []
    rows = rows_of(dataset(path, tokenizer, 2048), 2048, MOST_ROWS["small"])
    for number in range(args.rounds):
        model, rates = loaded(name, "lora"), []
        features = cache.opened(Path(folder, f"cache-{number}"), model, name=name, dtype=torch.float32)
        for kept in (None, features):
            with tempfile.TemporaryDirectory() as out:
                rates.append(rate(train(model, rows, tokenizer, out, features=kept, epochs=2)[2]))
        ratios.append(rates[1] / rates[0])
    return statistics.median(ratios), reached, wanted


def memory_of(way, name, method, path, length):
    """Return (peak MiB of this process in two steps of a way, MiB before them). Call it in a new process."""
    tokenizer = loading.load_tokenizer(name)
    samples, way_of_attention = dataset(path, tokenizer, length), {"reference": "eager", "ours": "sdpa"}
    model = loaded(name, method, attn_implementation=way_of_attention[way])
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak, so imports do not count
    before = monitor_throughput.own_memory("VmRSS") / 2**20
    if way == "reference":
        reference_way(model, samples, tokenizer, length, 2)
    else:
        with tempfile.TemporaryDirectory() as folder:
            train(model, rows_of(samples, length, 2), tokenizer, folder, workers=0)
    return monitor_throughput.own_memory("VmHWM") / 2**20, before


def memory_table(models, path, args):
    """Yield rows (size, method, MiB of the original's way, ours, before the first step) at one length."""
    for size in args.memory:
        for method in args.methods:
            found = {}
            for way in ("reference", "ours"):
                words = ["--memory_of", way, str(models[size]), method, str(path), str(args.length)]
                done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, timeout=600)
                if done.returncode:
                    raise RuntimeError(done.stderr[-2000:])
                found[way], before = map(float, done.stdout.split()[-2:])
            yield size, method, found["reference"], found["ours"], before


def start_table(name, folder, args):
    """Yield rows (samples, seconds to read and tokenize, seconds from the cache, MiB of the samples from it)."""
    tokenizer = loading.load_tokenizer(name)
    gc.collect()  # so earlier models are not freed during a start
    for count in args.starts:
        place = Path(folder, f"start-{count}")
        place.mkdir()
        path = write_data(place, count)
        options, cache = EncodeOptions(2048), place / "cache"
        start = time.perf_counter()
        tokenized_cache.cached(path, tokenizer, options, folder=cache)
        made = time.perf_counter() - start
        before, start = monitor_throughput.own_memory("RssAnon") / 2**20, time.perf_counter()
        samples = tokenized_cache.cached(path, tokenizer, options, folder=cache)
        opened = time.perf_counter() - start
        yield count, made, opened, monitor_throughput.own_memory("RssAnon") / 2**20 - before
        assert len(samples) == count


def parse(argv):
    """Return the arguments, as changed by --quick."""
    parser = argparse.ArgumentParser(prog="benchmark_training.py", description=__doc__.split("\n\n")[1])
    parser.add_argument(
        "--quick", action="store_true", help="a minute on one small model, to see that everything works"
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="models (default: all)")
    parser.add_argument("--samples", type=int, default=96, help="training conversations (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="repetitions; results are medians (%(default)s)")
    parser.add_argument("--out", default="output/benchmark", help="folder of the results (%(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--memory_of", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.methods, args.steps, args.length, args.starts = METHODS, 1, 2048, (1000, 3000, 10_000, 30_000, 100_000)
    args.memory = [size for size in args.sizes if size != "medium"]
    args.pairs = [(size, length) for size, length in PAIRS if size in args.sizes]
    if args.quick:
        args.sizes, args.samples, args.rounds, args.starts = ["small"], 40, 1, (100, 300)
        args.methods, args.length, args.pairs, args.memory = METHODS[:1], 512, [("small", 512)], ["small"]
    return args


def main(argv=None):
    """Measure as the command line says; print the tables and write them to training.md."""
    args = parse(argv)
    if args.memory_of:
        way, name, method, path, length = args.memory_of
        print(*memory_of(way, name, method, path, int(length)))
        return
    keep_freed_memory()  # for all ways, since they alternate in this process
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        models = {size: build(folder, size, SIZES[size]) for size in args.sizes}
        data = Path(folder, "data")
        data.mkdir()
        path = write_data(data, args.samples, images=args.samples, size=(640, 480))
        left_out = too_large(models, args)
        args.pairs = [pair for pair in args.pairs if pair not in left_out]
        args.memory = [size for size in args.memory if (size, args.length) not in left_out]
        results = {
            "left out": [[size, length, round(gib)] for (size, length), gib in left_out.items()],
            "memory": list(memory_table(models, path, args)),  # first, since this process keeps freed memory
            "throughput": list(against_reference(models, path, args)),
            "overhead": list(overhead_and_mfu(models, path, args)),
            "cache": vision_cache_gain(folder, args),
            "start": list(start_table(models[args.sizes[0]], folder, args)),
        }
    text = markdown(results, args)
    print(text)
    (out / "training.md").write_text(text, encoding="utf-8")
    (out / "training.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (out / "training.svg").write_text(svg(results), encoding="utf-8")


if __name__ == "__main__":
    run(main)
