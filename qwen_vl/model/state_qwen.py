"""Digests of a model's weights, adapters and settings, which tell whether it has changed between two calls."""

import itertools
import weakref
from hashlib import sha256
from typing import Any

import torch
from torch import nn

PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
LANES = (torch.int64, torch.int32, torch.int16, torch.uint8)  # integer types to read the bytes of a weight as
# The number of each model in this process, because offloaded weights are not compared.
NUMBERS: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
NEXT_NUMBER = itertools.count()
OF_TORCH = frozenset(vars(nn.Module()))  # attributes of every module; those that matter are named below


def settings_digest(model: nn.Module) -> str:
    """Return a digest of everything but the values of weights that decides what a model computes.

    It covers the identity of the model, its config, the plain attributes of each module (such as active, disabled or
    merged adapters, the training mode, and the ids of hooks), the dtype, device and version of each weight, and
    autocast. The version counts changes in place, such as an optimizer's, but not those through `.data`.
    """
    if model not in NUMBERS:
        NUMBERS[model] = next(NEXT_NUMBER)
    parts, kinds = [NUMBERS[model], plain(vars(model.config))], set()
    for name, module in model.named_modules():
        own = [(key, plain(value)) for key, value in vars(module).items() if key not in OF_TORCH]
        parts += [name, type(module).__qualname__, module.training, own]
        parts += [*module._forward_pre_hooks, *module._forward_hooks]
        for tensor in tensors_of(module):
            kinds.add(tensor.device.type)
            parts += [tensor.dtype, tensor.device, tensor.shape]
            parts.append(None if tensor.is_meta or tensor.is_inference() else tensor._version)
    for kind in sorted(kinds - {"meta"}):
        parts += [kind, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)]
    return sha256(repr(parts).encode()).hexdigest()


def weights_digest(model: nn.Module) -> str | None:
    """Return a digest of the values of a model's weights, None if this process does not hold all of them.

    Every byte is read once, as for one generated token. Offloaded weights count as unchanged.
    """
    sums: dict[torch.device, list[torch.Tensor]] = {}  # int64 scalars of each device
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if hasattr(tensor, "ds_id"):  # DeepSpeed's ZeRO-3 divides it among ranks
            return None
        if tensor.is_meta or tensor.numel() == 0:
            continue
        try:
            sums.setdefault(tensor.device, []).append(checksum(tensor))
        except (RuntimeError, TypeError, NotImplementedError):  # a tensor class that hides its bytes
            return None
    return sha256(repr([torch.stack(column).tolist() for column in sums.values()]).encode()).hexdigest()


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """Return the parameters and buffers of a module, without those of its submodules."""
    return [one for one in (*module._parameters.values(), *module._buffers.values()) if one is not None]


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum, int64 [], of a tensor's bytes, read as the widest integers that they divide into."""
    flat = tensor.detach().reshape(-1)
    start, length = flat.storage_offset() * flat.itemsize, flat.nbytes
    lane = next(lane for lane in LANES if start % lane.itemsize == 0 and length % lane.itemsize == 0)
    return flat.view(lane).sum(dtype=torch.int64)


def plain(value: Any) -> Any:
    """Return the plain data in a value as nested tuples, None for anything else, such as a tensor or a module."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, dict):
        return tuple((key, plain(item)) for key, item in value.items() if isinstance(key, PLAIN))
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(repr, value)))
    return None
