"""The held-out questions of a run: the same records of the evaluation data at every evaluation.

Reader, prompts, subset and scores are those of `qwen-vl evaluate --data FILE --limit N`, so the figures are, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from qwen_vl.evaluation import prompts
from qwen_vl.evaluation.benchmarks.own_data import own_data
from qwen_vl.evaluation.encoding import encode
from qwen_vl.evaluation.metrics.own_data import OWN_DATA
from qwen_vl.evaluation.metrics.result import Pair, Result
from qwen_vl.evaluation.records import Answer, Decoding, Prompt, Record
from qwen_vl.evaluation.tasks import Subset
from qwen_vl.model import QWenTokenizer
from qwen_vl.training.flags.arguments import DataArguments, TrainingArguments
from qwen_vl.training.monitor import selection

NUM_NAMED = 3  # records that an error names


class Questions(NamedTuple):
    """What the model is asked at each evaluation, and how."""

    records: Sequence[Record]
    prompts: Sequence[Prompt]  # of the records, in their order
    decoding: Decoding
    batch_size: int
    figures: tuple[str, ...]  # the names that the answers' figures will have
    whole: Sequence[Record]  # all records of the file

    @property
    def measured(self) -> tuple[str, ...]:
        """Return the names of all that an evaluation with these questions logs, without "eval_"."""
        return (*selection.MEASURED, *self.figures)


def asked_by(data: DataArguments, training: TrainingArguments) -> Questions | None:
    """Return the questions of --eval_generate, None without it. Errors are those of `read`."""
    if not training.eval_generate or not data.eval_data_path:
        return None
    return read(
        data.eval_data_path,
        image_folder=data.image_folder,
        limit=training.eval_generate_limit,
        max_new_tokens=training.eval_generate_max_new_tokens,
        batch_size=training.eval_generate_batch_size,
    )


def read(path: str, *, image_folder: str | None, limit: int, max_new_tokens: int, batch_size: int) -> Questions:
    """Return the questions of a conversation file: those of `limit` records, or of all if there are fewer.

    Raise ValueError if a record has no answer that a metric can score, OSError if the file cannot be read, ImportError
    if a metric needs a library that is not installed.
    """
    benchmark = own_data(path, image_folder)
    files = {role: Path(file.path) for role, file in benchmark.files.items()}
    try:
        whole = benchmark.reader(files)
        records = Subset(limit).of(whole)
        if not records:
            raise ValueError(f"{path}: has no records; give a file with some")
        asked = [prompts.build(one, template=benchmark.template, style=benchmark.style) for one in records]
        unsaid = score(records, {record.id: Answer(record.id, "", text="") for record in records}, whole)
    except ValueError as error:
        raise ValueError(f"--eval_generate: {error}; or leave the flag out") from error
    assert isinstance(benchmark.decoding, Decoding), "the model writes its answers to a user's own questions"
    decoding = replace(benchmark.decoding, max_new_tokens=max_new_tokens)
    return Questions(records, asked, decoding, batch_size, tuple(unsaid.figures), whole)


def score(records: Sequence[Record], answers: Mapping[str, Answer], whole: Sequence[Record]) -> Result:
    """Return the figures and samples of the answered records, by the metric of `qwen-vl evaluate --data`.

    answers: by the id of the record; whole: all records of the file. Raise ValueError if none is answered.
    """
    pairs = [Pair(record, answers[record.id]) for record in records if answers[record.id].error is None]
    if not pairs:
        raise ValueError(f"none of {len(records)} records could be answered: {answers[records[0].id].error}")
    return OWN_DATA.score(pairs, whole)


def check_metric(questions: Questions, metric: str | None) -> None:
    """Raise ValueError if an evaluation with these questions does not measure --metric_for_best_model."""
    if metric and metric.removeprefix("eval_") not in questions.measured:
        known = ", ".join(f"eval_{name}" for name in questions.measured)
        raise ValueError(f"--metric_for_best_model {metric}: evaluation measures {known}; give one of them")


def check_lengths(questions: Questions, tokenizer: QWenTokenizer, longest: int) -> None:
    """Raise ValueError if a prompt has more than `longest` tokens, the trained length.

    Sharded weights answer prompts in step, and one beyond that length can only be answered by itself.
    """
    lengths = [len(encode(prompt, tokenizer).ids) for prompt in questions.prompts]
    pairs = zip(questions.records, lengths, strict=True)
    names = [f"{record.id} ({length:,})" for record, length in pairs if length > longest]
    if names:
        more = ", .." if len(names) > NUM_NAMED else ""
        raise ValueError(
            f"--eval_generate: {len(names)} prompts have more than {longest:,} tokens: {', '.join(names[:NUM_NAMED])}"
            f"{more}; ZeRO-3 and FSDP cannot answer these, so shorten them, or use DDP or ZeRO-2"
        )
