"""`qwen-vl data cache`: compute the vision features of all images of a data set before training.

Only the tower of a checkpoint is read. Images already in the cache are skipped, so an interrupted run can be restarted,
and several processes (torchrun) or machines can share the work.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from qwen_vl.checkpoint import loading
from qwen_vl.data import conversations, image_files
from qwen_vl.data.check.inspect_record import IMAGE
from qwen_vl.families import v1 as family
from qwen_vl.families.v1 import TOWER_OUTPUT
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.terminal import progress

from . import cache as vision_cache_cache
from .cache import VisionCache


class Images(Dataset):
    """Images as (key of a VisionCache, pixels [3, size, size])."""

    def __init__(self, references: Sequence[str], cache: VisionCache, image_size: int) -> None:
        self._references, self._cache, self._image_size = references, cache, image_size

    def __len__(self) -> int:
        return len(self._references)

    def __getitem__(self, index: int) -> tuple[str | None, torch.Tensor]:
        reference = self._references[index]
        return self._cache.key(reference), pixels(image_files.read(reference), self._image_size)


def fill(
    cache: VisionCache,
    references: Iterable[str],
    *,
    tower: Any,
    image_size: int,
    batch_size: int,
    workers: int,
    autocast: torch.dtype | None = None,
) -> tuple[int, int, int]:
    """Encode all images that the cache lacks; return the numbers of (new, present, not cacheable) images.

    references: of images, see `references_of`. tower: that of `families.v1`. autocast: the dtype that training computes
    in, or None.
    Raise ImageError if an image cannot be opened.
    """
    keys: dict[str, str] = {}  # by key: the first reference with it
    unstable = 0
    for reference in dict.fromkeys(references):
        key = cache.key(reference)
        if key is None:
            unstable += 1
        else:
            keys.setdefault(key, reference)
    missing = [reference for key, reference in keys.items() if cache.get(key) is None]
    device = next(tower.parameters()).device
    context = torch.autocast(device.type, autocast) if autocast else nullcontext()
    images = Images(missing, cache, image_size)
    loader = DataLoader(images, batch_size=batch_size, num_workers=workers if missing else 0)
    with torch.no_grad(), context, progress("encoding images", len(missing)) as advance:
        for names, batch in loader:
            batch = batch.to(device)
            cache.add(names, tower(batch) if cache.kind == TOWER_OUTPUT else tower.encode(batch))
            advance(len(names))
    cache.flush()
    return len(missing), len(keys) - len(missing), unstable


def load_tower(name: str, *, dtype: torch.dtype) -> torch.nn.Module:
    """Return the vision tower of a model folder in eval mode, without the rest of the model."""
    config = loading.load_config(name)
    config._attn_implementation = "sdpa"
    tower = family.build_tower(config).to(dtype)
    try:
        tower.load_state_dict(dict(vision_cache_cache.tower_weights(name)))
    except RuntimeError as error:
        raise ValueError(f"{name}: the vision tower does not fit config.json: {error}") from error
    return tower.eval()


def references_of(path: str, image_folder: str | None) -> list[str]:
    """Return all references to images in a conversation file, in order, with paths for its local images."""
    records = conversations.read(path, image_folder=image_folder)
    folders = conversations.search_dirs(path, image_folder)
    turns = (turn for record in records for turn in record["conversations"])
    return [image_files.located(name, folders) for turn in turns for name in IMAGE.findall(turn["value"])]
