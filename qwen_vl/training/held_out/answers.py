"""Asking the model in training: its answers to the held-out questions, and their figures for the log."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

from qwen_vl.evaluation.answering import window_of
from qwen_vl.evaluation.greedy import Said, greedy_answers
from qwen_vl.evaluation.metrics.result import Result
from qwen_vl.evaluation.processes import Processes
from qwen_vl.evaluation.records import Answer
from qwen_vl.evaluation.runner import own_part
from qwen_vl.model import QWenLMHeadModel, QWenTokenizer
from qwen_vl.model.logits_qwen import LogitsError

from .questions import Questions, score

OnProgress = Callable[[int, int], None]  # called with (questions answered, all questions) of this process


class Answered(NamedTuple):
    """The answers of one evaluation, by record, and what they are worth."""

    answers: dict[str, Answer]
    result: Result

    @property
    def figures(self) -> dict[str, float]:
        """Return the figures of the log; shares are in percent, as in scores.json of `qwen-vl evaluate`."""
        return {name: figure.value for name, figure in self.result.figures.items()}

    @property
    def num_unanswered(self) -> int:
        """Return how many records have no answer, as an image could not be opened."""
        return sum(answer.error is not None for answer in self.answers.values())


class Asker:
    """Lets the model in training answer the questions, and measures how much of the time of the run that takes.

    Ranks divide the questions. is_sharded: whether each holds a part of the weights, so that all keep step.
    """

    def __init__(self, questions: Questions, tokenizer: QWenTokenizer, *, is_sharded: bool) -> None:
        self._questions, self._tokenizer, self._is_sharded = questions, tokenizer, is_sharded
        self._began: float | None = None
        self._seconds = 0.0

    def start_clock(self) -> None:
        """Begin to count the time of the run, if that is not done yet."""
        self._began = self._began or time.perf_counter()

    def ask(
        self, model: QWenLMHeadModel, *, autocast: AbstractContextManager, on_progress: OnProgress
    ) -> tuple[Answered, dict[str, float]]:
        """Return the answers of all ranks, and the entries of the log without their prefix; every rank must call this.

        Nothing of the model or of the random states changes. Raise ValueError, which names the records, for logits that
        are not finite.
        """
        self.start_clock()
        began = time.perf_counter()
        was_training = model.training
        model.eval()
        try:
            # Each length would be compiled for itself; one graph of `--torch_compile` gains nothing here.
            with autocast, torch.compiler.set_stance("force_eager"):
                answered = self._answered(model, on_progress)
        finally:
            model.train(was_training)
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()  # blocks of odd sizes, which training would not use
        now = time.perf_counter()
        self._seconds += now - began
        assert self._began is not None, "set above"
        logs = {
            **answered.figures,
            "generate_unanswered": answered.num_unanswered,
            "generate_runtime": round(now - began, 4),
            "generate_share": round(self._seconds / max(now - self._began, 1e-9), 4),
        }
        return answered, logs

    def _answered(self, model: QWenLMHeadModel, on_progress: OnProgress) -> Answered:
        """Return the answers of all ranks."""
        records, processes = self._questions.records, Processes.current()
        own = own_part(records, range(len(records)), processes)
        said = processes.together(lambda: self._said(model, own, on_progress))
        parts = processes.gather(said)
        by_index = {index: words for part in parts for index, words in part.items()}
        answers = {record.id: Answer(record.id, "", **by_index[i]._asdict()) for i, record in enumerate(records)}
        return Answered(answers, score(records, answers))

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
