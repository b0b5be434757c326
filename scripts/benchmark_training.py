"""python scripts/benchmark_training.py [--quick] [--sizes tiny small medium] [--samples 96] [--rounds 2] [--out FOLDER]

How fast training is and how much memory it takes, as ratios measured side by side in one run on models with random
weights: against a plain loop that works as the reference trainer does (every sample padded to the longest length, all
logits, eager attention, images opened in the step); against a bare loop over the same batches, which shows what the
trainer itself costs; against the machine's own products of matrices (MFU); an epoch from the vision cache against one
without; and what a start costs from 1,000 to 100,000 samples. Writes training.md and training.png. Needs the extra
`demo`. About 20 minutes on 2 idle CPU cores.
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
from benchmark_data import padded, write_data
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from qwen_vl.adapters import build as adapters_build
from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint import random_model as tiny
from qwen_vl.cli.run import run
from qwen_vl.data import conversations
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.collator import HOST_KEYS, ConversationCollator
from qwen_vl.data.dataset import ConversationDataset
from qwen_vl.data.packing import PackedDataset, PackOptions
from qwen_vl.data.sources import tokenized_cache
from qwen_vl.families import v1 as family
from qwen_vl.families import v1_costs as costs
from qwen_vl.model import QWenConfig
from qwen_vl.model.image_loading_qwen import read_image
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.terminal import markdown_table
from qwen_vl.training import trainer, tuning
from qwen_vl.training.distributed.host_memory import keep_freed_memory
from qwen_vl.training.flags import arguments
from qwen_vl.training.monitor import flops
from qwen_vl.training.monitor import throughput as monitor_throughput
from qwen_vl.training.vision_cache import cache

ROOT = Path(__file__).resolve().parents[1]
BATCH = 4  # samples of a step in the reference's way; full rows of one where the trainer is measured by itself
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
    """Checkpoint folder of a random model: configs/model/benchmark.json with changes, `vision` those of its tower."""
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


def loaded(name, method, **options):
    """The model of a folder, in training mode, with what trains in `full` or `lora`."""
    model = loading.load_model(name, **options)
    if method == "full":
        return tuning.freeze_for_full(model, fix_vit=True).train()
    lora = {"r": 64, "alpha": 16, "dropout": 0.0, "bias": "none", "modules_to_save": None}
    return adapters_build.add_adapters(model, targets=family.DEFAULT_LORA_TARGETS, **lora).train()


def dataset(path, tokenizer, length):
    """The samples of a conversation file."""
    dirs = conversations.search_dirs(path)
    return ConversationDataset(conversations.read(path), tokenizer, EncodeOptions(length), search_dirs=dirs)


def optimizer_for(model, **kind):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, **kind)


def update(model, optimizer, loss):
    """Backward pass, clipping and step, as every way of training does them."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()


def loss_of_all_logits(model, batch, images):
    """The loss from the logits of every position; they are gone before the backward pass, as the reference's are."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    logits = model(**inputs, pixel_values=images, use_cache=False).logits.float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].reshape(-1))


def reference_way(model, samples, tokenizer, length, steps):
    """(tokens of samples, seconds) of steps as the reference takes them; only its work, without its trainer."""
    size, optimizer, tokens = family.image_size(model.config), optimizer_for(model, foreach=False), 0
    collator = ConversationCollator(tokenizer, size)
    start = time.perf_counter()
    for step in range(steps):
        chosen = [samples[index % len(samples)] for index in range(BATCH * step, BATCH * (step + 1))]
        batch = padded(collator([sample | {"images": []} for sample in chosen]), length, tokenizer.pad_token_id)
        images = [pixels(read_image(image), size) for sample in chosen for image in sample["images"]]
        update(model, optimizer, loss_of_all_logits(model, batch, torch.stack(images)))
        tokens += sum(batch["lengths"])
    return tokens, time.perf_counter() - start


def gib_of_all_logits(models, size, length):
    """What the reference's way takes for logits and their gradients at the most, GiB."""
    return 3.4 * 4 * BATCH * length * loading.load_config(models[size]).vocab_size / 2**30


def too_large(models, args):
    """{(size, length): GiB} of the reference's way, where it needs more memory than is free."""
    free = psutil.virtual_memory().available / 2**30
    wanted = {*args.pairs, *((size, args.length) for size in args.memory)}
    return {pair: gib for pair in wanted if (gib := gib_of_all_logits(models, *pair)) > free - 2}


def rows_of(samples, length, most):
    """At most so many packed rows, each a batch of its own: at 2048 tokens about as many samples as the reference's."""
    rows = PackedDataset(samples, PackOptions(length))
    rows.rows, rows.lengths, rows.num_images = rows.rows[:most], rows.lengths[:most], rows.num_images[:most]
    return rows


def train(model, rows, tokenizer, folder, *, features=None, epochs=1, workers=1, batch=1):
    """{epoch: (tokens, seconds)} of a run of our trainer over the rows, its first step left out."""
    words = ["--data_path", "none", "--output_dir", str(folder), "--use_cpu", "--num_train_epochs", str(epochs)]
    words += ["--per_device_train_batch_size", str(batch), "--save_strategy", "no", "--logging_steps", "1"]
    words += ["--learning_rate", "1e-5", "--dataloader_num_workers", str(workers), "--packing", "auto"]
    words += ["--disable_tqdm", "True"]
    training = arguments.parse(words)[3]
    collator = ConversationCollator(tokenizer, family.image_size(model.config), vision_cache=features)
    run_trainer = trainer.QWenTrainer(
        model=model,
        args=training,
        train_dataset=rows,
        data_collator=collator,
        tokenizer=tokenizer,
        vision_cache=features,
    )
    run_trainer.pop_callback(trainer.ProgressBar)
    clock = Clock()
    run_trainer.add_callback(clock)
    run_trainer.train()
    steps = [entry for entry in run_trainer.state.log_history if "loss" in entry]
    measured = {}
    for entry, before, after in zip(steps[1:], clock.moments[:-1], clock.moments[1:], strict=True):
        epoch = int(entry["epoch"] - 1e-6) + 1
        tokens, seconds = measured.get(epoch, (0, 0.0))
        measured[epoch] = tokens + entry["tokens_per_second"] * entry["step_seconds"], seconds + after - before
    return measured


class Clock(TrainerCallback):
    """The moments at which steps end: between two of them lies all that the trainer does, logging included."""

    def __init__(self):
        self.moments = []

    def on_step_end(self, args, state, control, **kwargs):
        self.moments.append(time.perf_counter())


def bare_loop(model, rows, tokenizer):
    """(tokens a second, MFU) of a loop of a few lines over the rows that `train` sees, its first step left out."""
    collator = ConversationCollator(tokenizer, family.image_size(model.config))
    optimizer, meter = optimizer_for(model, fused=True), monitor_throughput.SpeedMeter(model, "cpu", torch.float32)
    tokens = started = 0

    for batch in DataLoader(rows, batch_size=BATCH, shuffle=True, collate_fn=collator):
        inputs = {key: value for key, value in batch.items() if key not in HOST_KEYS}
        update(model, optimizer, model(**inputs, use_cache=False).loss)
        if started:
            tokens += sum(batch["segment_lengths"])
            meter.add(batch)
        started = started or time.perf_counter()
    seconds = time.perf_counter() - started
    flops.measured_peak.cache_clear()  # measured beside the loop, as the machine is now
    peak = flops.measured_peak(torch.device("cpu"), torch.float32)
    return tokens / seconds, meter.operations() / seconds / peak


def rate(measured):
    tokens, seconds = measured
    return tokens / seconds


def against_reference(models, path, args):
    """Rows (size, method, length, tokens/s of the reference's way, ours, ratio)."""
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
    """Rows (size, share of time that the trainer adds to the bare loop, MFU of the loop's steps)."""
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
    """(visual settings, ratio) of a vision tower that costs as much beside the small decoder as the published one.

    In operations of a step of LoRA on samples of 384 tokens with one image.
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
    """(ratio of the second epoch's rates, cost of tower / decoder here, published)."""
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
    """(peak MiB of this process in two steps in one of the ways, MiB before them): a process of its own calls this."""
    tokenizer = loading.load_tokenizer(name)
    samples, way_of_attention = dataset(path, tokenizer, length), {"reference": "eager", "ours": "sdpa"}
    model = loaded(name, method, attn_implementation=way_of_attention[way])
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # what importing took at most does not count
    before = monitor_throughput.own_memory("VmRSS") / 2**20
    if way == "reference":
        reference_way(model, samples, tokenizer, length, 2)
    else:
        with tempfile.TemporaryDirectory() as folder:
            train(model, rows_of(samples, length, 2), tokenizer, folder, workers=0)
    return monitor_throughput.own_memory("VmHWM") / 2**20, before


def memory_table(models, path, args):
    """Rows (size, method, MiB of the reference's way, ours, before the first step) at one length."""
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
    """Rows (samples, seconds to read and tokenize, seconds from the cache, MiB of memory that the latter takes)."""
    tokenizer = loading.load_tokenizer(name)
    gc.collect()  # or the models of before are freed in the middle of a start
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


def table(head, rows):
    """A Markdown table and an empty line."""
    return [markdown_table(head, rows), ""]


def draw(results, path):
    """Write an image of throughput, memory and start."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    names = [f"{size}\n{method}\n{length}" for size, method, length, *_ in results["throughput"]]
    left.bar(names, [row[-1] for row in results["throughput"]], color="#1f6fb2")
    left.set(title="tokens/s, times the reference's way")
    left.tick_params(axis="x", labelsize=6.5)
    names = [f"{size} {method}" for size, method, *_ in results["memory"]]
    for offset, (column, label) in enumerate(((2, "reference's way"), (3, "ours"), (4, "before a step"))):
        places = [index + 0.27 * (offset - 1) for index in range(len(names))]
        middle.bar(places, [row[column] for row in results["memory"]], width=0.25, label=label)
    middle.set_xticks(range(len(names)), names, fontsize=8)
    middle.set(title="peak memory, MiB", ylim=(0, 1.35 * max(row[2] for row in results["memory"])))
    middle.legend(fontsize=8, loc="upper center")
    counts = [row[0] for row in results["start"]]
    right.loglog(counts, [row[1] for row in results["start"]], "o-", label="read and tokenize, s")
    right.loglog(counts, [row[2] for row in results["start"]], "o-", label="from the cache, s")
    right.set(title="start, by samples")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def markdown(results, args):
    """The report as text."""
    gain, reached, wanted = results["cache"]
    throughput = [[*row[:3], f"{row[3]:,.0f}", f"{row[4]:,.0f}", f"{row[5]:.1f}x"] for row in results["throughput"]]
    memory = [
        [
            size,
            method,
            *(f"{mib:,.0f}" for mib in (reference, ours)),
            f"{reference / ours:.1f}x",
            f"{before:,.0f}",
            f"{(reference - before) / max(ours - before, 1):.1f}x",
        ]
        for size, method, reference, ours, before in results["memory"]
    ]
    overhead = [[size, f"{added:+.1%}", f"{share:.0%}"] for size, added, share in results["overhead"]]
    starts = [[f"{row[0]:,}", f"{row[1]:.2f}", f"{row[2]:.2f}", f"{row[3]:.1f}"] for row in results["start"]]
    return "\n".join([
        f"Measured on {torch.get_num_threads()} CPU threads in float32, {args.samples} conversations with a picture "
        f"each; ways in turn, medians of {args.rounds} rounds.\n",
        f"Useful tokens a second; the reference's way takes batches of {BATCH} and pads them to the length.\n",
        *table(["model", "method", "length", "reference's way", "ours", "ratio"], throughput),
        f"Peak memory in MiB at length {args.length}, batch {BATCH}, each in a process of its own.\n",
        *table(["model", "method", "reference's way", "ours", "ratio", "before a step", "ratio above that"], memory),
        *(
            f"Not measured: {size} at {length}, where the reference's way takes {gib} GiB, more than is free here.\n"
            for size, length, gib in results["left out"]
        ),
        f"What the trainer adds to a bare loop over the same rows, {BATCH} of 2048 tokens to a step; the loop's share "
        "of this machine's peak.\n",
        *table(["model", "trainer adds", "MFU"], overhead),
        f"Second epoch from the vision cache: {gain:.2f}x the tokens a second (LoRA; the tower takes {reached:.2f} "
        f"times the operations of the decoder, {wanted:.2f} in the published model at 384 tokens).\n",
        "Start, and the memory that the samples take when they are opened from the cache.\n",
        *table(["samples", "read and tokenize, s", "from the cache, s", "MiB"], starts),
    ])  # fmt: skip


def parse(argv):
    """The arguments, with what --quick makes of them."""
    parser = argparse.ArgumentParser(prog="benchmark_training.py", description=__doc__.split("\n\n")[1])
    parser.add_argument("--quick", action="store_true", help="a minute on one small model: does it all work")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="models (default: all)")
    parser.add_argument("--samples", type=int, default=96, help="conversations that are trained on (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="repetitions; medians count (%(default)s)")
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
    """Measure what the command line says; the tables go to the screen and to training.md."""
    args = parse(argv)
    if args.memory_of:
        way, name, method, path, length = args.memory_of
        print(*memory_of(way, name, method, path, int(length)))
        return
    keep_freed_memory()  # for all ways alike, as they take turns in this process
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
            "memory": list(memory_table(models, path, args)),  # first, as this process keeps what it frees
            "throughput": list(against_reference(models, path, args)),
            "overhead": list(overhead_and_mfu(models, path, args)),
            "cache": vision_cache_gain(folder, args),
            "start": list(start_table(models[args.sizes[0]], folder, args)),
        }
    text = markdown(results, args)
    print(text)
    (out / "training.md").write_text(text, encoding="utf-8")
    (out / "training.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(results, out / "training.png")


if __name__ == "__main__":
    run(main)
