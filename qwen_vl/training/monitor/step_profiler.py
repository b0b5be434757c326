"""Step profiler: the time of each phase of a step, sampled in every n-th step; other steps run without hooks."""

import time
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from qwen_vl.families import v1 as family

PHASES = (
    "data",  # waiting for batches
    "vision",  # vision tower, backward included where it trains
    "decoder_forward",
    "decoder_backward",
    "loss",  # lm_head and cross-entropy, forward and backward
    "communication",  # after the last gradient; communication that overlaps the backward pass costs no time
    "optimizer",  # clipping, step, zeroing
    "other",
)

Moment = float | torch.Event  # in seconds on the CPU, else an event of the device


class PhaseMeter:
    """Seconds of each phase of the sampled steps since the last `take`: the second step and every `every`-th after it.

    A sampled step has hooks on the model that set marks. The time between two marks belongs to the phase of the later
    one. On a GPU marks are events in its queue that `take` reads, so a sampled step does not wait for the device.
    """

    def __init__(
        self, model: torch.nn.Module, device: torch.device | str, *, every: int, is_distributed: bool = False
    ) -> None:
        self._model, self._inner = model, family.inner_model(model)
        self._device, self._every, self._is_distributed = torch.device(device), every, is_distributed
        self._hooks: list[RemovableHandle] = []
        self._marks: list[tuple[str | None, Moment]] = []  # (phase that ends here, when); None begins a step
        self._steps = 0
        self._last_gradient: Moment | None = None
        self._vision_trains = False

    @property
    def is_on(self) -> bool:
        """Return whether this step is sampled."""
        return bool(self._hooks)

    def begin(self, step: int) -> None:
        """Begin a step, counted from 0, and sample it if it is due."""
        if self.is_on or not self._every or step % self._every != (1 if self._every > 1 else 0):
            return
        tower = family.tower(self._inner)
        self._hooks = [
            tower.register_forward_pre_hook(lambda *_: self.mark("decoder_forward")),
            tower.register_forward_hook(self._after_vision),
            self._inner.register_forward_hook(self._after_decoder),
        ]
        if self._is_distributed:
            trained = (parameter for parameter in self._model.parameters() if parameter.requires_grad)
            self._hooks += [parameter.register_post_accumulate_grad_hook(self._after_gradient) for parameter in trained]
        self._marks.append((None, self._now()))

    def mark(self, phase: str) -> None:
        """Assign the time since the last mark to a phase."""
        if self.is_on:
            self._marks.append((phase, self._now()))

    def mark_backward(self) -> None:
        """Mark the end of the backward pass."""
        if not self.is_on:
            return
        last = "vision" if self._vision_trains else "decoder_backward"
        if self._last_gradient is not None:
            self._marks.append((last, self._last_gradient))
            last = "communication"
        self.mark(last)
        self._last_gradient, self._vision_trains = None, False

    def end(self) -> None:
        """End the step and remove the hooks."""
        if not self.is_on:
            return
        self.mark("optimizer")
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._steps = [], self._steps + 1

    def take(self) -> dict[str, float]:
        """Return {"time/PHASE": seconds of a sampled step}, {} if none was sampled, and reset."""
        if not self._steps or self.is_on:
            return {}
        seconds, before = dict.fromkeys(PHASES, 0.0), self._marks[0][1]
        for phase, moment in self._marks:
            if phase is not None:
                seconds[phase] += _between(before, moment)
            before = moment
        logs = {f"time/{phase}": round(value / self._steps, 5) for phase, value in seconds.items()}
        self._marks, self._steps = [], 0
        return logs

    def _now(self) -> "Moment":
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event

    def _after_vision(self, module: torch.nn.Module, args: tuple[Any, ...], features: torch.Tensor) -> None:
        self.mark("vision")
        if features.requires_grad:
            self._vision_trains = True
            features.register_hook(lambda gradient: self.mark("decoder_backward"))

    def _after_decoder(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.mark("decoder_forward")
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda gradient: self.mark("loss"))

    def _after_gradient(self, parameter: torch.Tensor) -> None:
        self._last_gradient = self._now()


def _between(first: Moment, second: Moment) -> float:
    """Return the seconds between two moments of the same kind."""
    if isinstance(first, float):
        assert isinstance(second, float)
        return second - first
    assert isinstance(second, torch.Event)
    second.synchronize()
    return first.elapsed_time(second) / 1000
