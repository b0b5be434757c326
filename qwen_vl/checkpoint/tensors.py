"""The tensors of a checkpoint by name, as floats, read from mapped files on demand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from safetensors import safe_open

from . import int4_layout
from .dtypes import STORED
from .files import Folder, read_json, reading_weights, weight_files


class Weights:
    """The contents of a checkpoint as tensors of the float model; none stay in memory between two reads.

    A linear that is stored in 4 bits (AutoGPTQ's layout, or bitsandbytes nf4) appears as the weight that it represents.
    `is_quantized` says whether there are any. Raises ValueError for another kind of quantization or a damaged file.
    """

    def __init__(self, path: Folder, cache_dir: str | None = None) -> None:
        self.path = path
        settings = (read_json(path, "config.json", cache_dir) or {}).get("quantization_config") or {}
        self.is_quantized = bool(settings)
        method = settings.get("quant_method", "bitsandbytes" if self.is_quantized else None)
        is_packed = method == "gptq" and settings.get("bits") == int4_layout.BITS
        if self.is_quantized and not is_packed and not settings.get("load_in_4bit"):
            raise ValueError(
                f"{path}: quantized as {method} with {settings.get('bits', 8)} bits, which cannot be read here; "
                "4-bit GPTQ and bitsandbytes nf4 can"
            )
        form = settings.get("checkpoint_format") or settings.get("format") or "gptq"
        self._version = 2 if form == "gptq_v2" else 1
        self._stored: dict[str, Stored] = {}
        with reading_weights(path):
            for file in weight_files(path, cache_dir):
                self._stored |= open_file(file)

    def names(self) -> list[str]:
        """Return the names of the tensors, those of 4-bit linears as `.weight`."""
        inside = {f"{stem}.{part}" for stem in self._packed_stems() for part in int4_layout.PARTS}
        states = {name for name in self._stored if any(mark in name for mark in (".weight.", ".SCB", ".weight_format"))}
        packed = {f"{stem}.weight" for stem in self._packed_stems()}
        return sorted((set(self._stored) - inside - states) | packed)

    def _packed_stems(self) -> list[str]:
        return [name.removesuffix(int4_layout.SUFFIX) for name in self._stored if name.endswith(int4_layout.SUFFIX)]

    def dtype(self, name: str) -> torch.dtype:
        """Return the stored dtype of a tensor: that of its scales for a 4-bit linear, float32 for an nf4 one."""
        stem = name.removesuffix(".weight")
        if f"{stem}.scales" in self._stored:
            return self._stored[f"{stem}.scales"].dtype
        stored = self._stored[name].dtype
        return stored if stored.is_floating_point else torch.float32

    def shape(self, name: str) -> list[int] | None:
        """Return the shape of a tensor as a list; None for an nf4 one, which has no shape before it is read."""
        stem = name.removesuffix(".weight")
        if f"{stem}.qweight" in self._stored:
            words, out = self._stored[f"{stem}.qweight"].shape
            return [out, words * int4_layout.CODES_PER_WORD]
        entry = self._stored[name]
        return list(entry.shape) if entry.dtype.is_floating_point else None

    def read(self, name: str) -> torch.Tensor:
        """Return one float tensor, a view of the mapped file unless it was packed."""
        stem = name.removesuffix(".weight")
        with reading_weights(self.path):
            if f"{stem}.qweight" in self._stored:
                parts = {part: self._stored[f"{stem}.{part}"].read() for part in int4_layout.PARTS}
                return int4_layout.dequantize(parts, version=self._version)
            tensor = self._stored[name].read()
            return tensor if tensor.is_floating_point() else self._from_nf4(name, tensor)

    def _from_nf4(self, name: str, codes: torch.Tensor) -> torch.Tensor:
        from bitsandbytes import functional

        state = {other: entry.read() for other, entry in self._stored.items() if other.startswith(f"{name}.")}
        quant_state = functional.QuantState.from_dict(state, device=torch.device("cpu"))
        return functional.dequantize_4bit(codes, quant_state).float()


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: its shape and dtype, and `read()`."""

    shape: Sequence[int]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


def mapped(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor: the `read` of one whose file is mapped already."""
    return tensor


def open_file(file: str) -> dict[str, Stored]:
    """Return {name: Stored} of one weight file."""
    if not file.endswith(".safetensors"):
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return {name: Stored(tensor.shape, tensor.dtype, partial(mapped, tensor)) for name, tensor in tensors.items()}

    def reader(name: str) -> Callable[[], torch.Tensor]:
        def read() -> torch.Tensor:  # opened each time, so the mapping ends with the tensor
            with safe_open(file, framework="pt") as handle:
                return handle.get_tensor(name)

        return read

    with safe_open(file, framework="pt") as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {name: Stored(part.get_shape(), STORED[part.get_dtype()], reader(name)) for name, part in parts.items()}
