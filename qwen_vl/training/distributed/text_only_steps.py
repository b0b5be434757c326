"""Batches without images in a distributed run: they block no rank and leave the vision tower unchanged.

Ranks gather weights and reduce gradients together, so if one rank has an image, all run the vision tower:
`QWenModel.embed` uses an image of zeros that adds nothing. In a step without any image, the tower gets gradients of
zero. A single process would leave the tower unchanged, but an optimizer still applies momentum and weight decay to such
gradients; `VisionKeeper` prevents that. It also serves a single process that trains the vision tower alone: there a
batch without images needs a gradient of zero to have a backward pass at all.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed

from qwen_vl.families import v1 as family

IMAGES = ("pixel_values", "vit_features", "image_features")  # keys of a batch that has images
MARK = "is_vision"  # key of an optimizer group that holds parameters of the vision tower alone


def run_vision_always(model: torch.nn.Module) -> None:
    """Make every forward pass run the vision tower, as sharded weights require."""
    family.inner_model(model).runs_vision_always = True


def trains_nothing_else(model: torch.nn.Module) -> bool:
    """Return whether the vision tower, or a part of it, is all that trains in a model."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return bool(names) and all(family.is_vision(name) for name in names)


def with_zero_gradient(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Return the loss with a gradient of zero attached, so that a loss without gradients has a backward pass."""
    return loss + 0 * next(parameter for parameter in model.parameters() if parameter.requires_grad).sum()


class VisionKeeper:
    """Excludes the vision tower from the optimizer step if no rank has an image in this step."""

    def __init__(self) -> None:
        self._seen: torch.Tensor | None = None  # [1]: above 0 if a rank has an image
        self._pending: distributed.Work | None = None
        self._kept: list[tuple[dict[str, Any], list[torch.nn.Parameter]]] = []

    def watch(self, optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
        """Split the optimizer's groups so that those of the vision tower can be skipped, and skip them when needed.

        optimizer: new, over parameters of `model`. The groups are the same for any number of ranks.
        """
        of_vision = {id(parameter) for name, parameter in model.named_parameters() if family.is_vision(name)}
        groups: list[dict[str, Any]] = []
        for group in optimizer.param_groups:
            for is_vision in (False, True):
                parameters = [p for p in group["params"] if (id(p) in of_vision) == is_vision]
                groups += [group | {"params": parameters, MARK: is_vision}] if parameters else []
        optimizer.param_groups[:] = groups
        marks = [group[MARK] for group in groups]
        if all(marks) or (distributed.is_initialized() and any(marks)):
            self._seen = torch.ones(1)  # torch steps once to create the states that a checkpoint is loaded into
            optimizer.register_step_pre_hook(self._before_step)
            optimizer.register_step_post_hook(self._after_step)

    def begin(self, batches: Iterable[dict[str, Any]]) -> None:
        """Ask all ranks whether a batch of this step has an image, without blocking."""
        if self._seen is None:
            return
        self._seen.fill_(any(key in batch for batch in batches for key in IMAGES))
        if distributed.is_initialized():
            self._pending = distributed.all_reduce(self._seen, op=distributed.ReduceOp.MAX, async_op=True)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        assert self._seen is not None, "`watch` sets it before it registers this hook"
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        if self._seen.item():
            return
        for group in optimizer.param_groups:
            if group[MARK]:
                self._kept.append((group, group["params"]))
                group["params"] = []

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        for group, parameters in self._kept:
            group["params"] = parameters
        self._kept = []
