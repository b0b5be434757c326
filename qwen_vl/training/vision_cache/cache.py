"""Vision cache: features of a frozen vision tower on disk, so each image is encoded once and not in every epoch.

DIR/KIND-DIGEST/*.safetensors hold one tensor for each image, under the hash of its bytes. The digest covers everything
else that features depend on: the tower's weights, configuration and dtype, and the code of preprocessing and tower.
Features of another tower are therefore never found. Checksums detect damaged features.
"""

import json
import logging
import os
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwen_vl.checkpoint import files, loading
from qwen_vl.data import image_files
from qwen_vl.families import v1 as family
from qwen_vl.families.v1 import TOWER_OUTPUT, VIT_OUTPUT
from qwen_vl.files import replacing

logger = logging.getLogger(__name__)

TOWER = f"{family.TOWER}."
SHARD_IMAGES, SHARD_BYTES = 256, 2**28  # a shard is written when it holds one of these
OPEN_SHARDS = 64  # kept mapped by a reader


class VisionCache:
    """Reads and writes the features of one kind for one tower: `get`, `add`, `flush`.

    kind: TOWER_OUTPUT or VIT_OUTPUT. made_from: JSON values, everything but the image that features depend on.
    """

    def __init__(self, folder: str | Path, *, kind: str, made_from: Mapping[str, Any]) -> None:
        self.kind, self._made_from = kind, {"kind": kind, **made_from}
        self.digest = sha256(json.dumps(self._made_from, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder) / f"{kind}-{self.digest[:16]}"
        self._places: dict[str, list[tuple[Path, int]]] = {}  # by key: (shard, checksum)
        self._known: set[str] = set()  # names of shards
        self._seen_at: int | None = None
        self._keys: dict[str, tuple[tuple[int, int, int], str]] = {}  # by path: (version, key)
        self._open: dict[Path, Any] = {}
        self._new: dict[str, torch.Tensor] = {}
        self._refresh()

    def __getstate__(self) -> dict[str, Any]:  # a spawned data worker maps the files itself
        return self.__dict__ | {"_open": {}, "_new": {}}

    def num_images(self) -> int:
        """Return the number of cached images."""
        return len(self._places)

    def key(self, reference: str) -> str | None:
        """Return the key of an image, the hash of its bytes; None if it may change or is missing."""
        if not image_files.is_local(reference):
            return sha256(reference.encode()).hexdigest() if reference.startswith("data:") else None
        path = image_files.find(reference)
        if path is None:
            return None
        stat = os.stat(image_files.file_of(path))
        version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        known = self._keys.get(path)
        if known is None or known[0] != version:
            known = self._keys[path] = (version, sha256(image_files.content(path)).hexdigest())
        return known[1]

    def get(self, key: str) -> torch.Tensor | None:
        """Return the features of an image, or None; damaged features are skipped with a warning."""
        if key not in self._places:
            self._refresh()
        for shard, checksum in self._places.get(key, ()):
            try:
                features = self._mapped(shard).get_tensor(key)
            except (SafetensorError, OSError) as error:
                logger.warning("%s: %s cannot be read (%s); the image is encoded again", shard, key[:12], error)
                continue
            if _checksum(features) == checksum:
                return features
            logger.warning("%s: %s is damaged; the image is encoded again", shard, key[:12])
        return None

    def add(self, keys: Iterable[str | None], features: torch.Tensor) -> None:
        """Keep features [num_images, ..] and write them if they fill a shard; `flush` writes the rest."""
        for key, tensor in zip(keys, features, strict=True):
            if key is not None:
                self._new[key] = tensor.detach().to("cpu", copy=True).contiguous()
        first = next(iter(self._new.values()), None)
        if first is not None and len(self._new) >= min(SHARD_IMAGES, max(SHARD_BYTES // max(first.nbytes, 1), 1)):
            self.flush()

    def flush(self) -> None:
        """Write the features added since the last call into a new shard, atomically."""
        if not self._new:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        info = self.folder / "info.json"
        if not info.exists():
            with replacing(info) as unfinished:
                unfinished.write_text(json.dumps(self._made_from, indent=2) + "\n", encoding="utf-8")
        checksums = {key: _checksum(tensor) for key, tensor in self._new.items()}
        metadata = {"made_from": self.digest, "checksums": json.dumps(checksums)}
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        with replacing(shard) as unfinished:
            save_file(self._new, unfinished, metadata=metadata)
        self._new = {}

    def _refresh(self) -> None:
        """Register new shards, including those of other processes."""
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
                logger.warning("%s: damaged (%r); its images are encoded again", shard, error)
                continue
            if metadata.get("made_from") != self.digest:
                logger.warning("%s: features of another tower; not used", shard)
                continue
            for key, checksum in checksums.items():
                self._places.setdefault(key, []).append((shard, checksum))

    def _mapped(self, shard: Path) -> Any:
        """Return the shard, mapped into memory."""
        if shard not in self._open:
            while len(self._open) >= OPEN_SHARDS:
                self._open.pop(next(iter(self._open)))
            self._open[shard] = safe_open(shard, framework="pt")
        return self._open[shard]


class CacheFiller(TrainerCallback):
    """Adds the features of each batch, computed by the frozen tower during training, to a VisionCache."""

    def __init__(self, cache: VisionCache, model: torch.nn.Module) -> None:
        self._cache, tower = cache, family.tower(model)
        self._keys: Sequence[str | None] | None = None
        watched = tower if cache.kind == TOWER_OUTPUT else family.vit(tower)
        watched.register_forward_hook(self._after)

    def expect(self, keys: Sequence[str | None] | None) -> None:
        """Set the keys of the next batch's images; None if its features are not to be cached."""
        self._keys = keys

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._cache.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._cache.flush()

    def _after(self, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        keys, self._keys = self._keys, None
        if keys is not None:
            self._cache.add(keys, output)


def check_frozen(folder: str | None, model: torch.nn.Module, *, is_sharded: bool = False) -> None:
    """Raise ValueError if a cache folder is given and a run with this model cannot use it.

    That is the case if a part of the ViT trains, or if the weights are sharded across the ranks (ZeRO-3, FSDP).
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
            f"--vision_cache {folder}: the ViT trains, so the features of an image change with every step; leave "
            "out --vision_cache, or what trains the ViT: --fix_vit False, its adapters, its biases (--lora_bias all), "
            "or its modules in --modules_to_save"
        )


def opened(
    folder: str | None,
    model: torch.nn.Module,
    *,
    name: str,
    dtype: torch.dtype,
    cache_dir: str | None = None,
    is_sharded: bool = False,
) -> VisionCache | None:
    """Return the VisionCache in `folder` for the frozen tower of a model loaded from `name`; None without a folder.

    It holds outputs of the whole tower, or of the ViT if something after the ViT trains.
    Raise the errors of `check_frozen`, and OSError if the folder is not writable.
    """
    check_frozen(folder, model, is_sharded=is_sharded)
    if not folder:
        return None
    kind = VIT_OUTPUT if any(p.requires_grad for p in family.tower(model).parameters()) else TOWER_OUTPUT
    cache = of_checkpoint(folder, name, kind=kind, dtype=dtype, cache_dir=cache_dir)
    logger.info("vision cache %s: features of %d images (%s)", cache.folder, cache.num_images(), cache.kind)
    return cache


def of_checkpoint(
    folder: str | Path, name: str, *, kind: str, dtype: torch.dtype, cache_dir: str | None = None
) -> VisionCache:
    """Return the VisionCache in `folder` for the tower of a model folder."""
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


def tower_digest(name: str, *, kind: str, cache_dir: str | None = None) -> str:
    """Return a hex digest of all weights that features of a kind depend on, independent of the sharding."""
    lines = []
    for key, tensor in tower_weights(name, cache_dir):
        if kind == TOWER_OUTPUT or not key.startswith(family.AFTER_VIT):
            lines.append(f"{key} {tensor.dtype} {list(tensor.shape)} {sha256(_memory(tensor)).hexdigest()}")
    return sha256("\n".join(sorted(lines)).encode()).hexdigest()


def tower_weights(name: str, cache_dir: str | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name within the tower, tensor) of a model folder's vision tower; other weights are not read."""
    with files.reading_weights(name):
        for file in files.weight_files(name, cache_dir):
            for key, tensor in files.open_tensors(file):
                if key.startswith(TOWER):
                    yield key.removeprefix(TOWER), tensor[...]


def _checksum(tensor: torch.Tensor) -> int:
    """Return the CRC-32 of a CPU tensor's values."""
    return zlib.crc32(_memory(tensor))


def _memory(tensor: torch.Tensor) -> Any:  # of numpy; older stubs do not say that it is a buffer
    """Return the memory of a CPU tensor as a buffer of bytes."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
