"""Time and memory of merging and answering at the published size, with random weights.

    python scripts/full_size_check.py [--config CONFIG.json] [--folder DIR] [--out table.md]

Writes a bf16 checkpoint (by default of the published architecture: 9.7 B weights, 19.3 GB), an adapter, the merged
model and an Int4 version into a temporary folder, at most about 41 GB at once, and deletes them. Each stage is its own
process and reports its peak resident memory and the part that is not mapped files. Prints a Markdown table.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from qwen_vl.startup import prepare

if __name__ == "__main__":
    prepare()  # before torch is imported

import torch
from transformers import GenerationConfig

from qwen_vl.adapters import build, inference, on_disk
from qwen_vl.adapters.adapter import Adapter
from qwen_vl.adapters.options import LoraOptions
from qwen_vl.checkpoint import int4_layout, loading, shard_writer
from qwen_vl.checkpoint.disk_model import DiskModel
from qwen_vl.checkpoint.files import ADAPTER_BASE
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.checkpoint.random_model import build_tokenizer
from qwen_vl.cli.run import run
from qwen_vl.evaluation import generation, probe_prompts
from qwen_vl.export import model_folder
from qwen_vl.export.quantize import quantize
from qwen_vl.export.verify import comparison, verify
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenConfig, QWenLMHeadModel
from qwen_vl.terminal import markdown_table
from qwen_vl.training.monitor.throughput import own_memory

GIB = 2**30
GROUP_SIZE = 128
NEW_TOKENS = 3
DRAWN = 2**24 + 43  # random values, which each tensor repeats from another offset: drawing all takes minutes


def write_base(folder, config):
    """Write the bf16 checkpoint: norms with their initial values, random values elsewhere."""
    with torch.device("meta"):
        model = QWenLMHeadModel(config)
    tokenizer = build_tokenizer(config)
    ends = {"eos_token_id": tokenizer.eod_id, "pad_token_id": tokenizer.eod_id}
    model.generation_config = GenerationConfig(chat_format=family.CHAT_FORMAT, max_new_tokens=NEW_TOKENS, **ends)
    folder.mkdir()
    shard_writer.write_companions(folder, model, tokenizer, dtype=torch.bfloat16)
    outlines = {name: torch.empty_like(value, dtype=torch.bfloat16) for name, value in model.named_parameters()}

    torch.manual_seed(0)
    drawn = (config.initializer_range * torch.randn(DRAWN)).bfloat16()

    def draw(name):
        shape = outlines[name].shape
        if family.is_norm(name):
            return torch.full(shape, float(name.endswith("weight")), dtype=torch.bfloat16)
        pieces, start, left = [], int(torch.randint(DRAWN, ())), shape.numel()
        while left:
            pieces.append(drawn[start : start + left])
            start, left = 0, left - pieces[-1].numel()
        return torch.cat(pieces).view(shape)

    shard_writer.write_weights(folder, outlines, draw)
    return f"{sum(value.numel() for value in outlines.values()):,} weights"


def write_adapter(folder, base):
    """Write an adapter with the default rank and targets and no zero weights."""
    options = LoraOptions()
    model = build.add_adapters(DiskModel(base).model, options)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:  # zero in a new adapter
            parameter.data.normal_(0, 0.01)
    model.save_pretrained(folder)
    record = {"name": str(base), "fingerprint": loading.fingerprint(base)}
    (folder / ADAPTER_BASE).write_text(json.dumps(record), encoding="utf-8")
    return f"rank {options.r} on {', '.join(options.targets)}"


def write_int4(folder, base):
    """Write the checkpoint in the published Int4 layout, each weight rounded to the nearest code."""
    disk = DiskModel(base)
    stems = family.packed_linears(disk.model.config)
    outlines, pending = {}, {}
    for name, shape in disk.shapes().items():
        if name.removesuffix(".weight") not in stems:
            outlines[name] = torch.empty(shape, dtype=torch.float16, device="meta")
    for stem in stems:
        out, inputs = disk.shapes()[f"{stem}.weight"]
        sizes = {"qweight": (inputs // 8, out), "qzeros": (inputs // GROUP_SIZE, out // 8)}
        sizes |= {"scales": (inputs // GROUP_SIZE, out), "g_idx": (inputs,)}
        for part, size in sizes.items():
            dtype = torch.float16 if part == "scales" else torch.int32
            outlines[f"{stem}.{part}"] = torch.empty(size, dtype=dtype, device="meta")
        outlines.setdefault(f"{stem}.bias", torch.empty(out, dtype=torch.float16, device="meta"))

    def read(name):
        stem, _, part = name.rpartition(".")
        if part in int4_layout.PARTS:
            if name not in pending:
                found = int4_layout.pack(*int4_layout.round_to_nearest(disk.weights.read(f"{stem}.weight"), GROUP_SIZE))
                pending.update({f"{stem}.{key}": value for key, value in found.items()})
            return pending.pop(name)
        return disk.weights.read(name).half() if name in disk.places else torch.zeros(outlines[name].shape).half()

    folder.mkdir()
    settings = {"group_size": GROUP_SIZE, "desc_act": False, "damp": 0.01}
    disk.model.config.quantization_config = quantize.quantization_config(**settings)
    shard_writer.write_companions(folder, disk.model, loading.load_tokenizer(base), dtype=torch.float16)
    shard_writer.write_weights(folder, outlines, read)
    return f"{sum(file.stat().st_size for file in folder.glob('*.safetensors')) / GIB:.1f} GiB"


def merge_adapter(base, adapter, merged):
    """Write the merged model, without the comparison that `qwen-vl merge` makes afterwards."""
    disk = DiskModel(base)
    merged.mkdir()
    on_disk.adapt(disk, Adapter.open(adapter))
    model_folder.write(merged, disk, loading.load_tokenizer(base), dtypes=model_folder.dtypes_of(disk, "auto"))
    return f"shards of {shard_writer.SHARD_SIZE}"


def compare(base, adapter, merged):
    """Compare the logits of base + adapter and of the merged model, one after the other, on a prompt with an image."""
    prompt = [comparison.image_prompt(loading.load_tokenizer(base), loading.load_config(base))]
    options = {"dtype": torch.bfloat16}
    adapted = comparison.logits_from_disk(base, prompt, adapter=Adapter.open(adapter), **options)
    difference = comparison.compare(adapted, comparison.logits_from_disk(merged, prompt, **options))
    comparison.check(difference, torch.bfloat16, "merged and base + adapter differ")
    return str(difference)


def answer(folder, *, from_disk):
    """Answer one question about an image."""
    folder = ModelFolder.open(folder)
    if from_disk:
        model, tokenizer, _ = verify.open_on_disk(folder, "auto", "cpu")
    else:
        model, tokenizer = inference.load(folder, device="cpu")
    start, records = time.monotonic(), probe_prompts.built_in()[:1]
    (said,) = generation.answer(model, tokenizer, records, max_new_tokens=NEW_TOKENS)
    tokens = probe_prompts.inputs_of(records[0], tokenizer, family.image_size(model.config))["input_ids"].shape[1]
    seconds = time.monotonic() - start
    return f"{tokens} tokens in, {NEW_TOKENS} at most out ({len(said)} characters), {seconds:.0f} s after opening"


STAGES = {  # in order: (name in the table, function of the folder, what to delete after it)
    "base": ("write the bf16 checkpoint", lambda at, config: write_base(at / "base", config), ()),
    "adapter": ("write an adapter", lambda at, _: write_adapter(at / "adapter", at / "base"), ()),
    "merge": (
        "merge it shard by shard",
        lambda at, _: merge_adapter(at / "base", at / "adapter", at / "merged"),
        (),
    ),
    "compare": (
        "compare base + adapter and merged",
        lambda at, _: compare(at / "base", at / "adapter", at / "merged"),
        ("merged",),
    ),
    "answer": ("answer in bf16, block by block", lambda at, _: answer(at / "base", from_disk=True), ()),
    "int4": ("write the Int4 twin", lambda at, _: write_int4(at / "int4", at / "base"), ("base",)),
    "int4-disk": ("answer in Int4, block by block", lambda at, _: answer(at / "int4", from_disk=True), ()),
    "int4-memory": ("answer in Int4, in memory", lambda at, _: answer(at / "int4", from_disk=False), ()),
}


class Peak:
    """Context manager that measures the peak resident and the peak anonymous memory of this process."""

    def __enter__(self):
        self.anonymous, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._ended.wait(0.2):
            self.anonymous = max(self.anonymous, own_memory("RssAnon"))

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
        self.anonymous, self.resident = max(self.anonymous, own_memory("RssAnon")), own_memory("VmHWM")


def do_stage(name, folder, config):
    """Run a stage; return its row of the table: name, seconds, peak GiB, anonymous part, result."""
    title, work, obsolete = STAGES[name]
    start = time.monotonic()
    with Peak() as peak:
        result = work(folder, config)
    seconds = time.monotonic() - start
    for gone in obsolete:
        shutil.rmtree(folder / gone)
    return [title, f"{seconds:.0f}", f"{peak.resident / GIB:.1f}", f"{peak.anonymous / GIB:.1f}", result]


def make_parser():
    """Return the parser of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="JSON file with another architecture, such as configs/model/tiny.json")
    parser.add_argument("--folder", help="where the temporary folder is made (default: the system's)")
    parser.add_argument("--out", help="file for the table, too")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES, help="only these (default: all)")
    parser.add_argument("--in_process", action="store_true", help="all in this process; memory then says nothing")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)  # run one stage in an existing --folder
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv=None):
    """Run the stages and print the table."""
    args = make_parser().parse_args(argv)
    config = QWenConfig(**json.loads(Path(args.config).read_text(encoding="utf-8"))) if args.config else QWenConfig()
    if args.stage:
        print(json.dumps(do_stage(args.stage, Path(args.folder), config)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="full-size-") as folder:
        for name in args.stages:
            if args.in_process:
                rows.append(do_stage(name, Path(folder), config))
            else:
                words = ["--stage", name, "--folder", folder, *(["--config", args.config] if args.config else [])]
                done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}: {rows[-1]}", file=sys.stderr, flush=True)
    table = markdown_table(("stage", "seconds", "peak GiB", "of it in no file", "result"), rows)
    print(table)
    if args.out:
        Path(args.out).write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
