"""Answers of a model to many conversations: greedy, in batches padded on the left."""

import copy

import torch

from qwen_vl.families import v1 as family
from qwen_vl.model.chat_qwen import SYSTEM, decode_answer, make_context
from qwen_vl.model.image_loading_qwen import open_picture
from qwen_vl.model.image_processing_qwen import pixels
from qwen_vl.model.logits_qwen import LogitsError


def split(conversation):
    """(history, query, answer) of a record: what the model sees, and the last assistant turn that it should say.

    A record that does not end with a question and its answer is a ValueError.
    """
    turns = conversation["conversations"]
    start = 1 if turns and turns[0]["from"] == "assistant" else 0  # as in training: nobody asked for it
    pairs = [
        (asked["value"], said["value"]) for asked, said in zip(turns[start::2], turns[start + 1 :: 2], strict=False)
    ]
    if not pairs or (len(turns) - start) % 2:
        raise ValueError(f"{conversation['id']}: ends without an answer; evaluation needs a last assistant turn")
    return pairs[:-1], *pairs[-1]


@torch.inference_mode()
def answer(model, tokenizer, conversations, *, search_dirs=(), batch_size=32, max_new_tokens=64, on_batch=None):
    """The model's greedy answers to the last questions of `conversations`, in their order: a list of str.

    search_dirs: where relative pictures are looked for. on_batch(done, total) is called after each batch.
    Raises PictureError for a picture that cannot be opened, ValueError for a record without an answer, LogitsError
    for weights whose logits are not finite.
    """
    size = family.image_size(model.config)
    opened = {}  # one picture has many questions
    prompts = []
    for conversation in conversations:
        history, query, _ = split(conversation)
        prompts.append(make_context(tokenizer, query, history, SYSTEM))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))  # little padding
    config = _greedy(model.generation_config, tokenizer, max_new_tokens)
    answers = [None] * len(prompts)
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        for reference in (reference for row in rows for reference in prompts[row].references):
            if reference not in opened:
                opened[reference] = pixels(open_picture(reference, search_dirs=search_dirs), size)
        pictures = [opened[reference] for row in rows for reference in prompts[row].references]
        inputs = pad_left([prompts[row].ids for row in rows], tokenizer.eod_id)
        if pictures:
            inputs["pixel_values"] = torch.stack(pictures)  # [pictures, 3, size, size], in row order
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


def pad_left(rows, pad_id):
    """input_ids and attention_mask [rows, longest] with the padding before each row."""
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[pad_id] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
    }


def _greedy(generation_config, tokenizer, max_new_tokens):
    """The model's generation config, changed to greedy answers that end where chat answers end."""
    config = copy.deepcopy(generation_config)
    config.update(do_sample=False, num_beams=1, top_k=None, top_p=None, temperature=None, max_new_tokens=max_new_tokens)
    config.eos_token_id = [tokenizer.eod_id, tokenizer.im_end_id, tokenizer.im_start_id]
    config.pad_token_id = tokenizer.eod_id
    return config
