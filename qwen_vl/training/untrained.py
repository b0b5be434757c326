"""Detection of parameters that should have trained but did not.

Two checks find them. Neither makes a step wait for its device.

Gradients, under every engine: each trainable parameter must get one in the first step, the vision tower in the first
step with an image. A parameter without a gradient is not part of the computation, such as a copy that never runs, and
the run ends. If the data hold no image, a trainable part of the tower cannot learn. That is a warning, or an error if
nothing else trains.

Values, at the end of a run: up to SAMPLED values of each parameter are compared with those at the start. It is an
error, raised after the result is saved, if no parameter changed. It is also an error if one did not change although
its gradients, by the optimizer's state, were not all 0. A learning rate of 0 asks for no change. Gradients that are all
0, such as for the row of a token that does not occur, are a warning. Some runs are not compared: resumed runs, whose
last steps may round to nothing; runs that end with the weights of an earlier step (--load_best_model_at_end); and
DeepSpeed and FSDP, where a rank holds a part of the values or a rounded copy.
"""

import logging
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwen_vl.adapters import build
from qwen_vl.families import v1 as family
from qwen_vl.training.distributed.text_only_steps import IMAGES

SAMPLED = 1024  # values of a parameter that are compared
FIRST_STEPS = 2  # the A side of an adapter may get only gradients of 0 in them
NAMED = 3  # parameters that a message names
ONLY_TOWER = "all that is to train is of the vision tower, and the data hold no image"

logger = logging.getLogger(__name__)


class UntrainedCheck(TrainerCallback):
    """Callback that ends a run if a trainable parameter gets no gradient; at the end `problem` names unchanged ones.

    by_hooks: whether the engine removes gradients before the optimizer's step (DeepSpeed). compares: whether each rank
    holds all trained values.
    """

    def __init__(self, *, by_hooks: bool = False, compares: bool = True) -> None:
        self.problem: str | None = None  # for the user, once the run is over
        self._by_hooks, self._compares = by_hooks, compares
        self._trains: dict[str, nn.Parameter] = {}
        self._waiting: dict[str, nn.Parameter] = {}  # those without a gradient so far
        self._first: dict[str, torch.Tensor] = {}  # their samples at the start of the run
        self._began, self._largest_rate = 0, 0.0
        self._has_image = self._had_image = False

    def begin(self, batches: list[dict]) -> None:
        """Record whether the batches of the next step have images."""
        self._has_image = any(key in batch for batch in batches for key in IMAGES)
        self._had_image |= self._has_image

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **kwargs: object,
    ) -> None:
        self._began = state.global_step
        self._trains = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._waiting = dict(self._trains)
        if self._by_hooks:
            for name, parameter in self._trains.items():
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._waiting.pop(name, None))
        if self._compares and not self._began:
            self._first = {name: sample(parameter) for name, parameter in self._trains.items()}

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        **kwargs: object,
    ) -> None:
        self._largest_rate = self._largest_rate or max(group["lr"] for group in optimizer.param_groups)
        if not self._waiting:
            return
        self._waiting = {name: parameter for name, parameter in self._waiting.items() if parameter.grad is None}
        lost = [name for name in self._waiting if self._has_image or not family.is_vision(name)]
        if lost:
            raise ValueError(
                f"step {state.global_step + 1}: {named(lost)} to train and got no gradient; leave them out of what "
                "trains (--modules_to_save, --lora_target_modules, --lora_bias, --fix_vit), or what cuts them off: "
                "use_reentrant in --gradient_checkpointing_kwargs, or the --vision_cache of parts of the vision tower"
            )

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        optimizer: Optimizer,
        **kwargs: object,
    ) -> None:
        steps = state.global_step - self._began
        if not steps:
            return
        in_tower = [name for name in self._trains if family.is_vision(name)]
        if in_tower and not self._had_image:
            if len(in_tower) == len(self._trains) and self._first:
                self.problem = f"nothing has trained: {ONLY_TOWER}"
                return
            if self._waiting and state.is_world_process_zero:
                logger.warning("%s to train and did not change, as no batch had an image", named(self._waiting))
        is_best = args.load_best_model_at_end and state.best_model_checkpoint  # values of an earlier step
        if self._first and not is_best:
            self.problem = self._unchanged(steps, optimizer, speaks=state.is_world_process_zero)

    def _unchanged(self, steps: int, optimizer: Optimizer, *, speaks: bool) -> str | None:
        """Return the problem if parameters still have their first values and should not, else None.

        speaks: whether this rank warns about parameters whose gradients were all 0.
        """
        groups = optimizer.param_groups
        rates = {id(p): group.get("initial_lr", group["lr"]) for group in groups for p in group["params"]}
        rated = {name: parameter for name, parameter in self._trains.items() if rates[id(parameter)]}
        same = [name for name, parameter in rated.items() if torch.equal(sample(parameter), self._first[name])]
        if same and len(same) == len(rated):
            cause = (
                "raise --learning_rate, see whether there is anything to learn in the answers, and prefer --bf16 to "
                "--fp16, which skips steps whose gradients are too large for it"
            )
            if not self._largest_rate:
                cause = "the learning rate was 0 in all of them; give fewer --warmup_steps, or more steps"
            return f"nothing has trained: {named(same)} to train and did not change in {steps} steps; {cause}"
        stuck = [name for name in same if has_moved(optimizer.state.get(rated[name], {}), rated[name])]
        if stuck:
            return f"{named(stuck)} to train and did not change in {steps} steps; their learning rate is too low for it"
        idle = [name for name in same if has_rested(optimizer.state.get(rated[name], {}), rated[name])]
        if idle and steps > FIRST_STEPS and speaks:
            said = (
                "%s to train and did not change, as all their gradients were 0: nothing in the data makes use of them"
            )
            logger.warning(said, named(idle))
        return None


def sample(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of up to SAMPLED evenly spread values of a tensor."""
    values = tensor.detach().flatten()
    return values[:: max(1, -(-len(values) // SAMPLED))].clone()


def moments(state: dict, parameter: torch.Tensor) -> list[torch.Tensor]:
    """Return the moments of a parameter in the optimizer's state: float tensors of its shape."""
    tensors = [value for value in state.values() if torch.is_tensor(value) and value.shape == parameter.shape]
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def has_moved(state: dict, parameter: torch.Tensor) -> bool:
    """Return whether the moments of a parameter are not all 0 at the values of `sample`."""
    return any(bool(sample(moment).any()) for moment in moments(state, parameter))


def has_rested(state: dict, parameter: torch.Tensor) -> bool:
    """Return whether the moments of a parameter exist and are all 0."""
    found = moments(state, parameter)
    return bool(found) and not any(bool(moment.any()) for moment in found)


def named(names: Iterable[str]) -> str:
    """Return the start of a sentence about parameters: their number and some names."""
    names = [build.without_wrappers(name) for name in names]
    some = ", ".join(names[:NAMED]) + (", .." if len(names) > NAMED else "")
    return f"1 parameter ({some}) was" if len(names) == 1 else f"{len(names)} parameters ({some}) were"
