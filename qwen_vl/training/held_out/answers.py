"""Asking the model in training: its answers to the held-out questions, and their figures for the log."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwen_vl.evaluation.answering import window_of
from qwen_vl.evaluation.greedy import Said, greedy_answers
from qwen_vl.evaluation.processes import Processes
from qwen_vl.evaluation.records import Answer
from qwen_vl.evaluation.runner import own_part
from qwen_vl.model import QWenLMHeadModel, QWenTokenizer
from qwen_vl.model.logits_qwen import LogitsError

from . import answer_log
from .questions import Questions, score

RESUME = "no answer of this evaluation is kept: start the same command again with --resume auto"
OnProgress = Callable[[int, int], None]  # called with (questions answered, all questions) of this process


class Asker(TrainerCallback):
    """Callback that lets the model in training answer the questions, and keeps the answers in eval_answers.jsonl.

    Ranks divide the questions. is_sharded: whether each holds a part of the weights, so that all keep step. A resumed
    run removes the answers of steps after its checkpoint, since these steps run again; a new run starts a new file.
    """

    def __init__(
        self, questions: Questions, tokenizer: QWenTokenizer, *, output_dir: str | Path, is_sharded: bool
    ) -> None:
        self._questions, self._tokenizer, self._is_sharded = questions, tokenizer, is_sharded
        self._path = Path(output_dir, answer_log.FILE)
        self._began: float | None = None
        self._seconds = 0.0
        self._last_step: int | None = None  # of which answers were written here

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = self._began or time.perf_counter()
        if state.is_world_process_zero and state.global_step:
            answer_log.keep(self._path, lambda step: step <= state.global_step)
        elif state.is_world_process_zero:
            self._path.unlink(missing_ok=True)

    def ask(
        self, model: QWenLMHeadModel, *, step: int, autocast: AbstractContextManager, on_progress: OnProgress
    ) -> dict[str, float]:
        """Return the entries of the log without their prefix; every rank must call this.

        Figures are those of scores.json of `qwen-vl evaluate`, shares in percent. Nothing of the model or of the random
        states changes. Raise ValueError, which names the records, for logits that are not finite.
        """
        began = time.perf_counter()
        self._began = self._began or began
        was_training = model.training
        model.eval()
        try:
            # Each length would be compiled for itself; one graph of `--torch_compile` gains nothing here.
            with autocast, torch.compiler.set_stance("force_eager"):
                answers = self._answers(model, on_progress)
        finally:
            model.train(was_training)
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()  # blocks of odd sizes, which training would not use
        records = self._questions.records
        result = score(records, answers, self._questions.whole)
        if Processes.current().is_first:
            if self._last_step is None or step <= self._last_step:
                answer_log.keep(self._path, lambda earlier: earlier < step)
            self._last_step = step
            answer_log.append(self._path, answer_log.entries_of(step, records, answers, result))
        now = time.perf_counter()
        self._seconds += now - began
        return {
            **{name: figure.value for name, figure in result.figures.items()},
            "generate_unanswered": sum(answer.error is not None for answer in answers.values()),
            "generate_runtime": round(now - began, 4),
            "generate_share": round(self._seconds / max(now - self._began, 1e-9), 4),
        }

    def _answers(self, model: QWenLMHeadModel, on_progress: OnProgress) -> dict[str, Answer]:
        """Return the answers of all ranks by the id of the record."""
        records, processes = self._questions.records, Processes.current(RESUME)
        own = own_part(records, range(len(records)), processes)
        parts = processes.gather(processes.together(lambda: self._said(model, own, on_progress)))
        said = {index: words for part in parts for index, words in part.items()}
        return {record.id: Answer(record.id, "", **said[i]._asdict()) for i, record in enumerate(records)}

    def _said(self, model: QWenLMHeadModel, own: list[int], on_progress: OnProgress) -> dict[int, Said]:
        """Return {index of a record: what was said} of the part of this rank."""
        said: dict[int, Said] = {}

        def keep(batch: list[tuple[int, Said]]) -> None:
            said.update((own[index], words) for index, words in batch)
            on_progress(len(said), len(own))

        try:
            greedy_answers(
                model,
                self._tokenizer,
                [self._questions.prompts[index] for index in own],
                self._questions.decoding,
                batch_size=self._questions.batch_size,
                on_batch=keep,
                synced=self._is_sharded,
                max_window_size=window_of(model),
            )
        except LogitsError as error:
            names = ", ".join(self._questions.records[own[index]].id for index in getattr(error, "prompts", []))
            raise ValueError(
                f"--eval_generate: the logits are not finite for {names or 'records of another rank'}; lower "
                "--learning_rate, use --bf16 instead of --fp16, or look at these records"
            ) from error
        return said
