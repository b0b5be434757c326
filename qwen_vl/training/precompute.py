"""qwen-vl data cache: what a frozen vision tower makes of all pictures of a data set, before training needs it.

Reads only the tower of a checkpoint. Pictures that the cache has are passed over, so an interrupted run goes on, and
several processes (torchrun) or machines share the work.
"""

import argparse
import logging
import os
import sys
import time
from contextlib import nullcontext

import torch
from torch.utils.data import DataLoader, Dataset

from qwen_vl.data import conversations
from qwen_vl.data.inspection import PICTURE
from qwen_vl.data.parallel import default_workers
from qwen_vl.families import v1 as family
from qwen_vl.families.v1 import TOWER_OUTPUT, VIT_OUTPUT
from qwen_vl.model.image_processing_qwen import open_picture, pixels
from qwen_vl.terminal import progress

from . import loading, tuning, vision_cache


class Pictures(Dataset):
    """pictures[i] is (key, pixels [3, size, size]) of a reference; keys are those of a VisionCache."""

    def __init__(self, references, search_dirs, cache, image_size):
        self._references, self._search_dirs = references, search_dirs
        self._cache, self._image_size = cache, image_size

    def __len__(self):
        return len(self._references)

    def __getitem__(self, index):
        reference, dirs = self._references[index], self._search_dirs
        return self._cache.key(reference, dirs), pixels(open_picture(reference, search_dirs=dirs), self._image_size)


def fill(cache, references, search_dirs, *, tower, image_size, batch_size, workers, autocast=None):
    """(pictures made, pictures that were there, pictures that cannot be cached) after the cache has all it can have.

    references: of pictures, each looked for in `search_dirs`. autocast: the dtype that training computes in, or None.
    Raises PictureError for a picture that cannot be opened.
    """
    keys = {}  # by key: the first reference with it
    unstable = 0
    for reference in dict.fromkeys(references):
        key = cache.key(reference, search_dirs)
        if key is None:
            unstable += 1
        else:
            keys.setdefault(key, reference)
    missing = [reference for key, reference in keys.items() if cache.get(key) is None]
    device = next(tower.parameters()).device
    context = torch.autocast(device.type, autocast) if autocast else nullcontext()
    loader = DataLoader(
        Pictures(missing, search_dirs, cache, image_size), batch_size=batch_size, num_workers=workers if missing else 0
    )
    with torch.no_grad(), context, progress("encoding pictures", len(missing)) as advance:
        for names, batch in loader:
            batch = batch.to(device)
            cache.add(names, tower(batch) if cache.kind == TOWER_OUTPUT else tower.encode(batch))
            advance(len(names))
    cache.flush()
    return len(missing), len(keys) - len(missing), unstable


def load_tower(name, *, dtype, attn_implementation="sdpa", cache_dir=None):
    """The vision tower of a checkpoint in eval mode, without the rest of the model."""
    config = loading.load_config(name, cache_dir)
    config._attn_implementation = attn_implementation
    tower = family.build_tower(config).to(dtype)
    try:
        tower.load_state_dict(dict(vision_cache.tower_weights(name, cache_dir)))
    except RuntimeError as error:
        raise ValueError(f"{name}: the vision tower does not fit config.json: {error}") from error
    return tower.eval()


def references_of(path, image_folder):
    """All references to pictures in a conversation file, in order."""
    records = conversations.read(path, image_folder=image_folder)
    return [found for record in records for turn in record["conversations"] for found in PICTURE.findall(turn["value"])]


def parse(argv):
    """The arguments; what is wrong with them exits with code 2."""
    parser = argparse.ArgumentParser(
        prog="qwen-vl data cache",
        description="Encode the pictures of conversation files with the frozen vision tower of a model, once, into the "
        "folder that training takes as --vision_cache. Give the flags that training is given.",
        epilog="Several GPUs: torchrun --nproc_per_node 8 -m qwen_vl.cli data cache ..",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="conversation files (data/README.md)")
    add("--model", "--model_name_or_path", required=True, metavar="DIR", help="checkpoint whose tower is used")
    add("--vision_cache", required=True, metavar="DIR", help="folder of the features")
    add("--use_lora", action="store_true", help="for LoRA: the whole tower is frozen, and its output is kept; without "
        "it that of the ViT, as full training trains the resampler")  # fmt: skip
    add("--image_folder", metavar="DIR", help="where relative pictures are looked for after the file's own folder")
    add("--bf16", action="store_true", help="for training with --bf16")
    add("--fp16", action="store_true", help="for training with --fp16")
    add("--batch_size", type=int, default=16, help="pictures at once (%(default)s)")
    add("--workers", type=int, default=default_workers(), help="processes that open pictures (%(default)s)")
    args = parser.parse_args(argv)
    if args.batch_size < 1 or args.workers < 0:
        parser.error("--batch_size is at least 1, --workers at least 0")
    if args.bf16 and args.fp16:
        parser.error("--bf16 and --fp16: choose one")
    return args


def main(argv):
    """Fill the cache with this process's share of the pictures; a line on stderr says what was done."""
    args = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    dtype = tuning.compute_dtype(bf16=args.bf16, fp16=args.fp16)
    references = {path: references_of(path, args.image_folder)[rank::world_size] for path in args.files}
    kind = TOWER_OUTPUT if args.use_lora else VIT_OUTPUT
    cache = vision_cache.of_checkpoint(args.vision_cache, args.model, kind=kind, dtype=dtype)
    tower = load_tower(args.model, dtype=dtype)
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        tower.to(torch.device(device.type, int(os.environ.get("LOCAL_RANK", 0))))
    image_size, started, counts = family.image_size(loading.load_config(args.model)), time.perf_counter(), [0, 0, 0]
    for path, found in references.items():
        done = fill(
            cache,
            found,
            conversations.search_dirs(path, args.image_folder),
            tower=tower,
            image_size=image_size,
            batch_size=args.batch_size,
            workers=args.workers,
            autocast=None if dtype == torch.float32 else dtype,
        )
        counts = [sum(pair) for pair in zip(counts, done, strict=True)]
    made, there, unstable = counts
    seconds = time.perf_counter() - started
    text = f"{made} pictures encoded in {seconds:.1f} s, {there} were there already: {cache.folder}"
    unread = f"; {unstable} on the web, whose content may change, are not cached" if unstable else ""
    print(text + unread, file=sys.stderr)
