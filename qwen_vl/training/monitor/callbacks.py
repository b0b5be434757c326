"""Callbacks that log a run: one progress bar, and OUT/metrics.jsonl."""

import json
import time
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from qwen_vl.files import read_entries, whole_file
from qwen_vl.terminal import Bars

METRICS_FILE = "metrics.jsonl"


class ProgressBar(TrainerCallback):
    """A bar on a terminal, one line for each log elsewhere: step, loss, learning rate, speed; on rank zero.

    A log without a loss, such as that of an evaluation, is a line on a terminal too.
    """

    SHOWN = {  # noqa: RUF012 - key of a log: its text
        "loss": "loss {:.4f}",
        "eval_loss": "evaluation loss {:.4f}",
        "eval_score": "score of the answers {:.1f}",
        "learning_rate": "lr {:.2e}",
        "tokens_per_second": "tokens/s {:.0f}",
        "samples_per_second": "samples/s {:.2f}",
        "data_wait": "waiting for data {:.0%}",
        "padding": "padding {:.0%}",
        "mfu": "MFU {:.0%}",
        "memory_gib": "memory {:.1f} GiB",
        "train_loss": "mean loss {:.4f}",
        "train_runtime": "seconds {:.0f}",
    }

    def __init__(self) -> None:
        self._bars: Bars | None = None  # while rank zero trains
        self._num_evaluated = 0  # batches

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._bars = Bars(hidden=bool(args.disable_tqdm))
            self._show(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bars:
            self._show(state)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        if self._bars:
            self._num_evaluated += 1
            self._bars.show("evaluating", self._num_evaluated, size_of(eval_dataloader))

    def show_answered(self, num_answered: int, num_questions: int) -> None:
        """Show how many of the held-out questions of this process are answered."""
        if self._bars:
            self._bars.show("answering", num_answered, num_questions)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bars:
            self._num_evaluated = 0
            self._bars.drop("evaluating")
            self._bars.drop("answering")
            self._show(state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if not self._bars:
            return
        shown = [text.format(float(logs[key])) for key, text in self.SHOWN.items() if key in logs]
        shown += [f"{key} {value:.4f}" for key, value in logs.items() if key.startswith("loss/")]
        if "loss" in logs:
            self._show(state, note=", ".join(shown))
        if "loss" not in logs or not self._bars.shown:
            self._bars.write(f"step {state.global_step}/{state.max_steps}  {'  '.join(shown)}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the line of the bar. A failing run calls this before its error is printed."""
        if self._bars:
            self._bars.close()
        self._bars = None

    def _show(self, state: TrainerState, *, note: str | None = None) -> None:
        assert self._bars is not None, "the caller checks"
        self._bars.show("training", state.global_step, state.max_steps, note=note)


def size_of(loader: DataLoader | None) -> int | None:
    """Return how many batches a data loader has, or None if it does not know."""
    return len(loader) if loader is not None and has_length(loader) else None


class MetricsFile(TrainerCallback):
    """OUT/metrics.jsonl: the log, one JSON object a line, with its "step" and the "time" in seconds since 1970.

    A resumed run appends to the file. Entries of steps after its checkpoint are removed, since these steps run again.
    A new run starts a new file.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir, METRICS_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = read_entries(path) if state.global_step and path.is_file() else state.log_history
        kept = [entry for entry in entries if entry["step"] <= state.global_step and "train_runtime" not in entry]
        with whole_file(path) as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in kept).encode())

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        entry = {"step": state.global_step, "time": round(time.time(), 3), **logs}
        with open(Path(args.output_dir, METRICS_FILE), "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
