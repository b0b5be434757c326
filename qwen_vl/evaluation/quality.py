"""The quality of a model before and after a change of weights: perplexity and greedy answers on held-out data."""

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.dtypes import LoadedDtype
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.collator import Batch, ConversationCollator
from qwen_vl.data.dataset import ConversationDataset
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.tokenization_qwen import QWenTokenizer
from qwen_vl.terminal import markdown_table

from . import generation, metrics, probe_prompts

MODEL_INPUTS = ("input_ids", "labels", "attention_mask", "pixel_values")


class Quality(NamedTuple):
    """The perplexity of the recorded answers, the answers of one model, and the share of them that is right."""

    perplexity: float
    answers: list[str]
    correct: float


def samples_of(
    path: str | os.PathLike[str],
    tokenizer: QWenTokenizer,
    image_size: int,
    *,
    image_folder: str | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    loss_on: str = "reference",
) -> list[Batch]:
    """Return model inputs with labels, one row each, of at most `limit` conversations, spread evenly over a file.

    Raise DataError or OSError if the file cannot be read.
    """
    records, folders = probe_prompts.load(path, image_folder=image_folder, limit=limit)
    data = ConversationDataset(records, tokenizer, EncodeOptions(max_length, loss_on=loss_on), search_dirs=folders)
    collate = ConversationCollator(tokenizer, image_size)
    return [collate([data[index]]) for index in range(len(data))]


@torch.no_grad()
def perplexity(model: QWenLMHeadModel, samples: Iterable[Mapping[str, Any]]) -> float:
    """Return exp of the mean cross-entropy of all targets of the samples."""
    total, count = 0.0, 0
    for sample in samples:
        inputs = {key: sample[key].to(model.device) for key in MODEL_INPUTS if key in sample}
        losses = model(**inputs, per_target_loss=True).loss  # [targets]
        total, count = total + losses.double().sum().item(), count + len(losses)
    return math.exp(total / count)


def measure(
    model_path: str | os.PathLike[str],
    data_path: str | os.PathLike[str],
    *,
    image_folder: str | None = None,
    limit: int | None = None,
    dtype: LoadedDtype,
    device: str | torch.device,
    max_new_tokens: int = 64,
    batch_size: int = 16,
) -> Quality:
    """Return the Quality of a model folder on the conversations of a file. The model is freed afterwards."""
    model = loading.load_model(model_path, dtype=dtype, device=device).eval()
    folder = ModelFolder.open(model_path)
    if folder.quantization is None:
        model = model.to(device)
    tokenizer = folder.tokenizer
    image_size = family.image_size(model.config)
    samples = samples_of(data_path, tokenizer, image_size, image_folder=image_folder, limit=limit, loss_on="answers")
    records, folders = probe_prompts.load(data_path, image_folder=image_folder, limit=limit)
    said = generation.answer(
        model, tokenizer, records, search_dirs=folders, batch_size=batch_size, max_new_tokens=max_new_tokens
    )
    right = metrics.share_that_agree(said, [generation.split(record)[2] for record in records])
    return Quality(perplexity(model, samples), said, right)


def table(before: Quality, after: Quality) -> str:
    """Return the comparison of two Qualities as a Markdown table."""
    same = sum(one == other for one, other in zip(before.answers, after.answers, strict=True))
    count = len(before.answers)
    rows = [
        ("perplexity of the recorded answers", f"{before.perplexity:.4f}", f"{after.perplexity:.4f}"),
        ("greedy answers that are the recorded ones", f"{before.correct:.1%}", f"{after.correct:.1%}"),
        ("greedy answers that are as before", "", f"{same} of {count} ({same / count:.1%})"),
    ]
    return markdown_table(("held-out conversations", "before", "after"), rows)
