"""`qwen-vl data cache`: encode all images with a frozen vision tower, before training."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence

import torch

from qwen_vl.checkpoint import loading
from qwen_vl.families import v1 as family
from qwen_vl.families.v1 import TOWER_OUTPUT, VIT_OUTPUT
from qwen_vl.startup import usable_cores
from qwen_vl.training import tuning
from qwen_vl.training.vision_cache import cache as vision_cache_cache
from qwen_vl.training.vision_cache.fill import fill, load_tower, references_of

from .parsers import Parser, add_hub, name_models


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments. Exit with code 2 if they are wrong."""
    parser = Parser(
        prog="qwen-vl data cache",
        description="Encode the images of conversation files with the frozen vision tower of a model, once, into the "
        "folder that training takes as --vision_cache. Give the flags that training is given.",
        epilog="Several GPUs: torchrun --nproc_per_node 8 -m qwen_vl.cli data cache ..",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="conversation files (docs/data.md)")
    add("--model", "--model_name_or_path", required=True, metavar="DIR", help="checkpoint with the tower")
    add("--vision_cache", required=True, metavar="DIR", help="folder to write the features to")
    add("--use_lora", action="store_true", help="for LoRA, which freezes the whole tower: cache its output; without it "
        "cache that of the ViT, because full training trains the resampler")  # fmt: skip
    add("--image_folder", metavar="DIR", help="where relative images are looked for after the file's own folder")
    add("--bf16", action="store_true", help="for training with --bf16")
    add("--fp16", action="store_true", help="for training with --fp16")
    add("--batch_size", type=int, default=16, help="images at once (%(default)s)")
    add("--workers", type=int, default=usable_cores(), help="processes that open images (%(default)s)")
    add_hub(parser)
    args = parser.parse_args(argv)
    name_models(args, "model")
    if args.batch_size < 1 or args.workers < 0:
        parser.error("--batch_size is at least 1, --workers at least 0")
    if args.bf16 and args.fp16:
        parser.error("--bf16 and --fp16: choose one")
    return args


def main(argv: Sequence[str]) -> None:
    """Fill the cache with this process's share of the images, and say on stderr what was done."""
    args = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    dtype = tuning.compute_dtype(bf16=args.bf16, fp16=args.fp16)
    references = [references_of(path, args.image_folder)[rank::world_size] for path in args.files]
    kind = TOWER_OUTPUT if args.use_lora else VIT_OUTPUT
    cache = vision_cache_cache.of_checkpoint(args.vision_cache, args.model, kind=kind, dtype=dtype)
    tower = load_tower(args.model, dtype=dtype)
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        tower.to(torch.device(device.type, int(os.environ.get("LOCAL_RANK", 0))))
    image_size, started, counts = family.image_size(loading.load_config(args.model)), time.perf_counter(), [0, 0, 0]
    for found in references:
        done = fill(
            cache,
            found,
            tower=tower,
            image_size=image_size,
            batch_size=args.batch_size,
            workers=args.workers,
            autocast=None if dtype == torch.float32 else dtype,
        )
        counts = [sum(pair) for pair in zip(counts, done, strict=True)]
    made, there, unstable = counts
    seconds = time.perf_counter() - started
    text = f"{made} images encoded in {seconds:.1f} s, {there} were there already: {cache.folder}"
    unread = f"; {unstable} on the web, whose content may change, are not cached" if unstable else ""
    print(text + unread, file=sys.stderr)
