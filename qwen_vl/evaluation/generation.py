"""Answers of a model to many conversations: greedy, in left-padded batches."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from qwen_vl.data import image_files
from qwen_vl.data.chatml import Record
from qwen_vl.families import v1 as family
from qwen_vl.model import QWenLMHeadModel
from qwen_vl.model.chat_qwen import SYSTEM, History, decode_answer, make_context
from qwen_vl.model.image_loading_qwen import SearchDirs
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.model.logits_qwen import LogitsError
from qwen_vl.model.tokenization_qwen import QWenTokenizer


def split(conversation: Record) -> tuple[History, str, str]:
    """Return (history, query, answer) of a record. The model sees the first two; the answer is the last assistant turn.

    Raise ValueError if the record does not end with a question and its answer.
    """
    turns = conversation["conversations"]
    start = 1 if turns and turns[0]["from"] == "assistant" else 0  # as in training: it answers no question
    pairs = [
        (asked["value"], said["value"]) for asked, said in zip(turns[start::2], turns[start + 1 :: 2], strict=False)
    ]
    if not pairs or (len(turns) - start) % 2:
        raise ValueError(f"{conversation['id']}: ends without an answer; evaluation needs a last assistant turn")
    return pairs[:-1], *pairs[-1]


@torch.inference_mode()
def answer(
    model: QWenLMHeadModel,
    tokenizer: QWenTokenizer,
    conversations: Sequence[Record],
    *,
    search_dirs: SearchDirs = (),
    batch_size: int = 32,
    max_new_tokens: int = 64,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Return the model's greedy answers to the last questions of `conversations`, in their order.

    search_dirs: the folders of relative images. on_batch(done, total) is called after each batch.
    Raise ImageError if an image cannot be opened, ValueError for a record without an answer, LogitsError if the
    weights give logits that are not finite.
    """
    size = family.image_size(model.config)
    opened: dict[str, torch.Tensor] = {}  # several questions may share an image
    prompts = []
    for conversation in conversations:
        history, query, _ = split(conversation)
        prompts.append(make_context(tokenizer, query, history, SYSTEM))
    order = sorted(
        range(len(prompts)), key=lambda i: len(prompts[i].ids)
    )  # similar lengths together need little padding
    config = _greedy(model.generation_config, tokenizer, max_new_tokens)
    answers = [""] * len(prompts)
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        for reference in (reference for row in rows for reference in prompts[row].references):
            if reference not in opened:
                opened[reference] = pixels(image_files.read(reference, search_dirs), size)
        images = [opened[reference] for row in rows for reference in prompts[row].references]
        inputs: dict[str, Any] = pad_left([prompts[row].ids for row in rows], tokenizer.eod_id)
        if images:
            inputs["pixel_values"] = torch.stack(images)  # [images, 3, size, size], in row order
        inputs = {key: value.to(model.device) for key, value in inputs.items()}
        try:
            output = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
        except LogitsError as error:
            names = ", ".join(str(conversations[row].get("id")) for row in rows)
            raise LogitsError(f"answering {names:.80}: {error}") from error
        for row, ids in zip(rows, output.tolist(), strict=True):
            answers[row] = decode_answer(ids, tokenizer)
        if on_batch is not None:
            on_batch(min(start + batch_size, len(order)), len(order))
    model.train(was_training)
    return answers


def pad_left(rows: Sequence[list[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Return input_ids and attention_mask [rows, longest] of left-padded rows."""
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[pad_id] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
    }


def _greedy(generation_config: GenerationConfig, tokenizer: QWenTokenizer, max_new_tokens: int) -> GenerationConfig:
    """Return a copy of the generation config for greedy answers that end where chat answers end."""
    config = copy.deepcopy(generation_config)
    config.update(do_sample=False, num_beams=1, top_k=None, top_p=None, temperature=None, max_new_tokens=max_new_tokens)
    config.eos_token_id = [tokenizer.eod_id, tokenizer.im_end_id, tokenizer.im_start_id]
    config.pad_token_id = tokenizer.eod_id
    return config
