"""qwen-vl data cache: what a frozen vision tower makes of all pictures of a data set, before training needs it.

Reads only the tower of a checkpoint. Pictures that the cache has are passed over, so an interrupted run goes on, and
several processes (torchrun) or machines share the work.
"""

from contextlib import nullcontext

import torch
from torch.utils.data import DataLoader, Dataset

from qwen_vl.checkpoint import loading
from qwen_vl.data import conversations
from qwen_vl.data.check.inspect_record import PICTURE
from qwen_vl.families import v1 as family
from qwen_vl.families.v1 import TOWER_OUTPUT
from qwen_vl.model.image_loading_qwen import open_picture
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.terminal import progress

from . import cache as vision_cache_cache


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
        tower.load_state_dict(dict(vision_cache_cache.tower_weights(name, cache_dir)))
    except RuntimeError as error:
        raise ValueError(f"{name}: the vision tower does not fit config.json: {error}") from error
    return tower.eval()


def references_of(path, image_folder):
    """All references to pictures in a conversation file, in order."""
    records = conversations.read(path, image_folder=image_folder)
    return [found for record in records for turn in record["conversations"] for found in PICTURE.findall(turn["value"])]
