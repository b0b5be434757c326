"""Features of a frozen vision tower on disk, so that a picture goes through the tower once and not in every epoch.

DIR/KIND-DIGEST/*.safetensors hold one tensor for each picture, under the hash of its bytes. The digest stands for all
that features depend on beside the picture: weights of the tower, its configuration, dtype, and the code of
preprocessing and tower. So features of anything else are never found, and damaged ones are told by their checksums.
"""

import json
import logging
import os
import uuid
import zlib
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

from qwen_vl.checkpoint import loading
from qwen_vl.families import v1 as family
from qwen_vl.families.v1 import TOWER_OUTPUT, VIT_OUTPUT
from qwen_vl.model.image_loading_qwen import find_picture, is_local

logger = logging.getLogger(__name__)

TOWER = f"{family.TOWER}."
SHARD_PICTURES, SHARD_BYTES = 256, 2**28  # a shard is written when it holds one of these
OPEN_SHARDS = 64  # that a reader keeps mapped


class VisionCache:
    """Reads and writes the features of one kind for one tower: `get`, `add`, `flush`.

    kind: TOWER_OUTPUT or VIT_OUTPUT. made_from: JSON values, all that features depend on beside the picture.
    """

    def __init__(self, folder, *, kind, made_from):
        self.kind, self._made_from = kind, {"kind": kind, **made_from}
        self.digest = sha256(json.dumps(self._made_from, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder) / f"{kind}-{self.digest[:16]}"
        self._places, self._known, self._seen_at = {}, set(), None  # places: [(shard, checksum), ..] by key
        self._keys, self._open, self._new = {}, {}, {}
        self._refresh()

    def __getstate__(self):  # a data worker that is spawned maps the files itself
        return self.__dict__ | {"_open": {}, "_new": {}}

    def num_pictures(self):
        """How many pictures there are features of."""
        return len(self._places)

    def key(self, reference, search_dirs=()):
        """The key of a picture: the hash of its bytes, or None for one that may change or is not there."""
        if not is_local(reference):
            return sha256(reference.encode()).hexdigest() if reference.startswith("data:") else None
        path = find_picture(reference, search_dirs)
        if path is None:
            return None
        stat = os.stat(path)
        version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        known = self._keys.get(path)
        if known is None or known[0] != version:
            known = self._keys[path] = (version, sha256(Path(path).read_bytes()).hexdigest())
        return known[1]

    def get(self, key):
        """The features of a picture, or None; those that are damaged are passed over with a warning."""
        if key not in self._places:
            self._refresh()
        for shard, checksum in self._places.get(key, ()):
            try:
                features = self._mapped(shard).get_tensor(key)
            except (SafetensorError, OSError) as error:
                logger.warning("%s: %s cannot be read (%s); the picture is encoded anew", shard, key[:12], error)
                continue
            if _checksum(features) == checksum:
                return features
            logger.warning("%s: %s is damaged; the picture is encoded anew", shard, key[:12])
        return None

    def add(self, keys, features):
        """Keep features [pictures, ..]; they are on disk after `flush`, or when there are enough for a shard."""
        for key, tensor in zip(keys, features, strict=True):
            if key is not None:
                self._new[key] = tensor.detach().to("cpu", copy=True).contiguous()
        first = next(iter(self._new.values()), None)
        if first is not None and len(self._new) >= min(SHARD_PICTURES, max(SHARD_BYTES // max(first.nbytes, 1), 1)):
            self.flush()

    def flush(self):
        """Write what was added since the last time into a new shard, which appears when it is complete."""
        if not self._new:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        info = self.folder / "info.json"
        if not info.exists():
            _write(info, lambda path: path.write_text(json.dumps(self._made_from, indent=2) + "\n", encoding="utf-8"))
        checksums = {key: _checksum(tensor) for key, tensor in self._new.items()}
        metadata = {"made_from": self.digest, "checksums": json.dumps(checksums)}
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        _write(shard, lambda path: save_file(self._new, path, metadata=metadata))
        self._new = {}

    def _refresh(self):
        """Take note of shards that are new, also of other processes."""
        try:
            changed_at = os.stat(self.folder).st_mtime_ns
        except FileNotFoundError:
            return
        if changed_at == self._seen_at:
            return
        self._seen_at = changed_at
        for shard in sorted(self.folder.glob("*.safetensors")):
            if shard.name in self._known:
                continue
            self._known.add(shard.name)
            try:
                with safe_open(shard, framework="pt") as file:
                    metadata = file.metadata() or {}
                checksums = json.loads(metadata["checksums"])
            except (SafetensorError, KeyError, ValueError, OSError) as error:
                logger.warning("%s: damaged (%r); its pictures are encoded anew", shard, error)
                continue
            if metadata.get("made_from") != self.digest:
                logger.warning("%s: features of another tower; not used", shard)
                continue
            for key, checksum in checksums.items():
                self._places.setdefault(key, []).append((shard, checksum))

    def _mapped(self, shard):
        """The shard, mapped into memory."""
        if shard not in self._open:
            while len(self._open) >= OPEN_SHARDS:
                self._open.pop(next(iter(self._open)))
            self._open[shard] = safe_open(shard, framework="pt")
        return self._open[shard]


class CacheFiller(TrainerCallback):
    """Adds what the frozen tower makes of the pictures of a batch to a VisionCache, in passing."""

    def __init__(self, cache, model):
        self._cache, self._keys, tower = cache, None, family.tower(model)
        watched = tower if cache.kind == TOWER_OUTPUT else family.vit(tower)
        watched.register_forward_hook(self._after)

    def expect(self, keys):
        """The pictures of the next batch have these keys; None if it needs none."""
        self._keys = keys

    def on_epoch_end(self, args, state, control, **kwargs):
        self._cache.flush()

    def on_train_end(self, args, state, control, **kwargs):
        self._cache.flush()

    def _after(self, module, args, output):
        keys, self._keys = self._keys, None
        if keys is not None:
            self._cache.add(keys, output)


def check_frozen(folder, model, *, is_sharded=False):
    """Raise ValueError where a run with this model cannot read features from the cache in `folder`, if it has one.

    That is where a part of the ViT trains, or where the weights are spread over the ranks (ZeRO-3, FSDP: is_sharded).
    """
    if not folder:
        return
    if is_sharded:
        raise ValueError(
            f"--vision_cache {folder}: ZeRO-3 and FSDP gather the tower's weights from all ranks whenever one needs "
            "them, and a rank that reads features would not take part; use DDP or ZeRO-2, or leave the flag out"
        )
    if family.tower(model).vit_trains():
        raise ValueError(
            f"--vision_cache {folder}: the ViT trains, so what it makes of a picture changes with every step; leave "
            "out --vision_cache, or what trains the ViT: --fix_vit False, its adapters, its biases (--lora_bias all), "
            "or its modules in --modules_to_save"
        )


def opened(folder, model, *, name, dtype, cache_dir=None, is_sharded=False):
    """Return the VisionCache in `folder` for the frozen tower of a model that was loaded from the checkpoint `name`.

    None without a folder. Of the whole tower's outputs, or of the ViT's where something after it trains.
    Raises as `check_frozen` does, and OSError if nothing can be written there.
    """
    check_frozen(folder, model, is_sharded=is_sharded)
    if not folder:
        return None
    kind = VIT_OUTPUT if any(p.requires_grad for p in family.tower(model).parameters()) else TOWER_OUTPUT
    cache = of_checkpoint(folder, name, kind=kind, dtype=dtype, cache_dir=cache_dir)
    logger.info("vision cache %s: features of %d pictures (%s)", cache.folder, cache.num_pictures(), cache.kind)
    return cache


def of_checkpoint(folder, name, *, kind, dtype, cache_dir=None):
    """The VisionCache in `folder` for the tower of a checkpoint."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    config = loading.load_config(name, cache_dir)
    code = sha256(b"".join(path.read_bytes() for path in family.tower_sources()))
    made_from = {
        "tower": tower_digest(name, kind=kind, cache_dir=cache_dir),
        **family.vision_settings(config),
        "dtype": str(dtype).removeprefix("torch."),
        "code": code.hexdigest(),
    }
    return VisionCache(folder, kind=kind, made_from=made_from)


def tower_digest(name, *, kind, cache_dir=None):
    """A hex digest of every weight that features of a kind depend on, the same however the checkpoint is sharded."""
    lines = []
    for key, tensor in tower_weights(name, cache_dir):
        if kind == TOWER_OUTPUT or not key.startswith(family.AFTER_VIT):
            content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            lines.append(f"{key} {tensor.dtype} {list(tensor.shape)} {sha256(content).hexdigest()}")
    return sha256("\n".join(sorted(lines)).encode()).hexdigest()


def tower_weights(name, cache_dir=None):
    """Yields (name within the tower, tensor) of the vision tower of a checkpoint; other weights are not read."""
    with loading.reading_weights(name):
        for file in loading.weight_files(name, cache_dir):
            for key, tensor in loading.open_tensors(file):
                if key.startswith(TOWER):
                    yield key.removeprefix(TOWER), tensor[...]


def _checksum(tensor):
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _write(path, write):
    """Write a file under another name and rename it; OSError that says where."""
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(staging)
        os.replace(staging, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path}: could not be written ({error}); free some space, or use another folder") from error
    finally:
        staging.unlink(missing_ok=True)
