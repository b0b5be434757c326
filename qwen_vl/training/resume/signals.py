"""SIGTERM and SIGINT end a run after the current step, with a checkpoint: for Slurm, spot machines and Ctrl-C."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
REPEATED = 2.0  # seconds within which a second signal is ignored: a terminal and torchrun both send one


class StopOnSignal(TrainerCallback):
    """Callback that requests a checkpoint and the end of the run once a rank has received one of SIGNALS.

    All ranks stop after the same step. A second signal, later than REPEATED, ends the process at once.
    `signal` is the number of the signal that stopped the run, or None. `evaluation_due` is whether an evaluation was
    skipped because of it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.evaluation_due = False
        self._received, self._since, self._speaks = 0, 0.0, False
        self._group: dist.ProcessGroup | None = None
        self._pending: tuple[torch.Tensor, dist.Work] | None = None  # the signal of all ranks, and when it is there

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGNALS within this block, then restore the previous handlers."""
        if threading.current_thread() is not threading.main_thread():  # Python sets handlers on the main thread only
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received and time.monotonic() - self._since > REPEATED:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self._received:
            self._received, self._since = number, time.monotonic()
            if self._speaks:
                os.write(2, f"{name(number)}: the run stops after this step, with a checkpoint\n".encode())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # A separate group on the CPU, so the question waits neither for a device nor for its communication.
        self._speaks = state.is_world_process_zero
        self._group = dist.new_group(backend="gloo") if args.world_size > 1 else None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._group is not None:
            flag = torch.tensor(self._received)
            self._pending = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        received = self._received
        if self._pending is not None:
            flag, work = self._pending
            work.wait()
            received, self._pending = int(flag), None
        if received and state.global_step < state.max_steps:
            self.signal = received
            control.should_save = True
            # The sender of a signal soon kills the process, so the resumed run makes this evaluation first.
            self.evaluation_due, control.should_evaluate = control.should_evaluate, False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        if self.signal:  # not earlier, since the checkpoint stores `control`
            control.should_training_stop = True


def name(number: int) -> str:
    """Return the name of a signal, such as SIGTERM."""
    return signal.Signals(number).name


def keep_apart(worker: int | None = None) -> None:
    """Move a data worker out of the terminal's process group, since the training process ends its workers itself."""
    os.setpgid(0, 0)
