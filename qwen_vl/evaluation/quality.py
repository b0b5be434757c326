"""What a change of weights costs: perplexity and greedy answers on held-out conversations, before and after."""

import math
import os
from typing import NamedTuple

import torch

from qwen_vl.checkpoint import loading
from qwen_vl.checkpoint.dtypes import LoadedDtype
from qwen_vl.checkpoint.folder import ModelFolder
from qwen_vl.data.chatml import EncodeOptions
from qwen_vl.data.collator import ConversationCollator
from qwen_vl.data.dataset import ConversationDataset
from qwen_vl.families import v1 as family
from qwen_vl.terminal import markdown_table

from . import generation, metrics, probe_prompts

MODEL_INPUTS = ("input_ids", "labels", "attention_mask", "pixel_values")


class Quality(NamedTuple):
    """Of one model: the perplexity of the recorded answers, its own answers, and the share of them that is right."""

    perplexity: float
    answers: list
    correct: float


def samples_of(path, tokenizer, image_size, *, image_folder=None, limit=None, max_length=None, loss_on="reference"):
    """Model inputs with labels, one row each, of at most `limit` conversations of a file, evenly spread over it.

    Raises DataError and OSError as reading does.
    """
    records, folders = probe_prompts.load(path, image_folder=image_folder, limit=limit)
    data = ConversationDataset(records, tokenizer, EncodeOptions(max_length, loss_on=loss_on), search_dirs=folders)
    collate = ConversationCollator(tokenizer, image_size)
    return [collate([data[index]]) for index in range(len(data))]


@torch.no_grad()
def perplexity(model, samples):
    """exp of the mean cross-entropy of all targets of the samples."""
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
    """Return the Quality of a model folder on the conversations of a file; the model is gone afterwards."""
    model = loading.load_model(model_path, dtype=dtype, device=device).eval()
    folder = ModelFolder.open(model_path)
    if folder.quantization is None:
        model = model.to(device)
    tokenizer = folder.tokenizer
    options = {"image_folder": image_folder, "limit": limit}
    samples = samples_of(data_path, tokenizer, family.image_size(model.config), loss_on="answers", **options)
    records, folders = probe_prompts.load(data_path, **options)
    said = generation.answer(
        model, tokenizer, records, search_dirs=folders, batch_size=batch_size, max_new_tokens=max_new_tokens
    )
    right = metrics.exact_match(said, [generation.split(record)[2] for record in records])
    return Quality(perplexity(model, samples), said, right)


def table(before, after):
    """The comparison of two Qualities as Markdown."""
    same = sum(one == other for one, other in zip(before.answers, after.answers, strict=True))
    count = len(before.answers)
    rows = [
        ("perplexity of the recorded answers", f"{before.perplexity:.4f}", f"{after.perplexity:.4f}"),
        ("greedy answers that are the recorded ones", f"{before.correct:.1%}", f"{after.correct:.1%}"),
        ("greedy answers that are as before", "", f"{same} of {count} ({same / count:.1%})"),
    ]
    return markdown_table(("held-out conversations", "before", "after"), rows)
