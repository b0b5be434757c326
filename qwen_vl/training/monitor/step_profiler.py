"""Where the time of a step goes, measured in every so many steps; the others run as if nobody measured."""

import time

import torch

from qwen_vl.families import v1 as family

PHASES = (
    "data",  # waiting for batches
    "vision",  # vision tower, backward included where it trains
    "decoder_forward",
    "decoder_backward",
    "loss",  # lm_head and cross-entropy, forward and backward
    "communication",  # what ranks wait for after the last gradient; what hides behind the backward pass costs no time
    "optimizer",  # clipping, step, zeroing
    "other",
)


class PhaseMeter:
    """Seconds of each phase of the sampled steps since the last `take`: the second step and every `every`-th after it.

    A sampled step carries hooks on the model and cuts its time at marks: what lies between two marks belongs to the
    phase that the later one names. On a GPU marks are events in its queue, read when they are taken, so that even a
    sampled step does not wait for the device.
    """

    def __init__(self, model, device, *, every, is_distributed=False):
        self._model, self._inner = model, family.inner_model(model)
        self._device, self._every, self._is_distributed = torch.device(device), every, is_distributed
        self._hooks, self._marks, self._steps = [], [], 0
        self._last_gradient = self._vision_trains = None

    @property
    def is_on(self):
        """Whether this step is sampled."""
        return bool(self._hooks)

    def begin(self, step):
        """Sample the step that begins, if it is its turn; `step` counts from 0."""
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

    def mark(self, phase):
        """Everything since the last mark was `phase`."""
        if self.is_on:
            self._marks.append((phase, self._now()))

    def mark_backward(self):
        """The backward pass is over."""
        if not self.is_on:
            return
        last = "vision" if self._vision_trains else "decoder_backward"
        if self._last_gradient is not None:
            self._marks.append((last, self._last_gradient))
            last = "communication"
        self.mark(last)
        self._last_gradient = self._vision_trains = None

    def end(self):
        """The step is over; hooks are gone."""
        if not self.is_on:
            return
        self.mark("optimizer")
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._steps = [], self._steps + 1

    def take(self):
        """{"time/PHASE": seconds in a sampled step}, empty if none was sampled; then counting starts again."""
        if not self._steps or self.is_on:
            return {}
        seconds, before = dict.fromkeys(PHASES, 0.0), None
        for phase, moment in self._marks:
            if phase is not None:
                seconds[phase] += _between(before, moment)
            before = moment
        logs = {f"time/{phase}": round(value / self._steps, 5) for phase, value in seconds.items()}
        self._marks, self._steps = [], 0
        return logs

    def _now(self):
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event

    def _after_vision(self, module, args, features):
        self.mark("vision")
        if features.requires_grad:
            self._vision_trains = True
            features.register_hook(lambda gradient: self.mark("decoder_backward"))

    def _after_decoder(self, module, args, output):
        self.mark("decoder_forward")
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda gradient: self.mark("loss"))

    def _after_gradient(self, parameter):
        self._last_gradient = self._now()


def _between(first, second):
    """Seconds from one moment to another."""
    if isinstance(first, float):
        return second - first
    second.synchronize()
    return first.elapsed_time(second) / 1000
