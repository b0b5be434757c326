"""Batches without pictures among several processes: nobody waits for them, and they change nothing.

Processes gather weights and reduce gradients together, so where one has a picture, all go through the vision tower:
`QWenModel.embed` does that with a picture of zeros that adds nothing. What is left is a step in which no process has a
picture: one process alone would leave the vision tower as it is, where an optimizer that is given gradients of zero
goes on with momentum and weight decay. The same goes for one process where nothing but the vision tower trains: a batch
without pictures then gives a gradient of zero, without which there is no backward pass.
"""

import torch
from torch import distributed

from qwen_vl.families import v1 as family

PICTURES = ("pixel_values", "vit_features", "image_features")  # keys of a batch that has any
MARK = "is_vision"  # key of an optimizer group that holds parameters of the vision tower alone


def run_vision_always(model):
    """None; afterwards every pass goes through the vision tower, for processes that each hold a part of its weights."""
    family.inner_model(model).runs_vision_always = True


def trains_nothing_else(model: torch.nn.Module) -> bool:
    """Return whether the vision tower, or a part of it, is all that trains in a model."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return bool(names) and all(family.is_vision(name) for name in names)


def with_zero_gradient(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Return a loss on which nothing that trains has an effect, with one of 0: its backward pass changes nothing."""
    return loss + 0 * next(parameter for parameter in model.parameters() if parameter.requires_grad).sum()


class VisionKeeper:
    """Keeps an optimizer's hands off the vision tower in a step in which no process has a picture."""

    def __init__(self):
        self._seen, self._pending, self._kept = None, None, []

    def watch(self, optimizer, model):
        """None; afterwards parameters of the vision tower stand in groups of their own, which such a step passes over.

        optimizer: new, over parameters of `model`. The groups are the same for any number of processes.
        """
        of_vision = {id(parameter) for name, parameter in model.named_parameters() if family.is_vision(name)}
        groups = []
        for group in optimizer.param_groups:
            for is_vision in (False, True):
                parameters = [p for p in group["params"] if (id(p) in of_vision) == is_vision]
                groups += [group | {"params": parameters, MARK: is_vision}] if parameters else []
        optimizer.param_groups[:] = groups
        marks = [group[MARK] for group in groups]
        if all(marks) or (distributed.is_initialized() and any(marks)):
            self._seen = torch.ones(1)  # until a step begins: torch makes the states that a checkpoint is loaded into
            optimizer.register_step_pre_hook(self._before_step)
            optimizer.register_step_post_hook(self._after_step)

    def begin(self, batches):
        """None; asks all processes whether a batch of this step has a picture, without waiting for the answer."""
        if self._seen is None:
            return
        self._seen.fill_(any(key in batch for batch in batches for key in PICTURES))
        if distributed.is_initialized():
            self._pending = distributed.all_reduce(self._seen, op=distributed.ReduceOp.MAX, async_op=True)

    def _before_step(self, optimizer, args, kwargs):
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        if self._seen.item():
            return
        for group in optimizer.param_groups:
            if group[MARK]:
                self._kept.append((group, group["params"]))
                group["params"] = []

    def _after_step(self, optimizer, args, kwargs):
        for group, parameters in self._kept:
            group["params"] = parameters
        self._kept = []
