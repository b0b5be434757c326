"""The questions with which two models are compared: built in, or the last ones of a conversation file."""

import base64
import io

import torch
from PIL import Image

from qwen_vl.data import conversations
from qwen_vl.model.chat_qwen import make_context
from qwen_vl.model.image_loading_qwen import open_picture
from qwen_vl.model.image_processing_qwen import pixels

from . import generation

QUESTIONS = ("What is in the picture? 图中有什么？", "框出图中最亮的地方", "Where is the darkest part?")
SIDE = 64


def gradients(side):
    """The three bands of a generated picture: brighter downwards, to one side, upwards."""
    ramp = Image.linear_gradient("L").resize((side, side))
    return [ramp, ramp.rotate(90), ramp.rotate(180)]


def built_in():
    """Conversations of one question each about generated pictures, which stand in the text as data URIs."""
    bands, records = gradients(SIDE), []
    for number, question in enumerate(QUESTIONS):
        file = io.BytesIO()
        Image.merge("RGB", bands[number:] + bands[:number]).save(file, "PNG")
        uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        turns = [{"from": "user", "value": f"Picture 1: <img>{uri}</img>\n{question}"}]
        records.append({"id": f"built-in/{number}", "conversations": [*turns, {"from": "assistant", "value": "-"}]})
    return records


def load(path=None, *, image_folder=None, limit=None):
    """(conversations, folders of their pictures): of a file, at most `limit` of them evenly spread, or built in.

    Raises DataError and OSError as reading does, ValueError for a record that does not end with an answer.
    """
    if path is None:
        return built_in(), ()
    records = conversations.read(path, image_folder=image_folder)
    if not records:
        raise ValueError(f"{path}: no conversation in it")
    if limit and len(records) > limit:
        records = [records[index * len(records) // limit] for index in range(limit)]
    for record in records:
        generation.split(record)
    return records, conversations.search_dirs(path, image_folder)


def inputs_of(record, tokenizer, image_size, search_dirs=()):
    """Model inputs for the last question of a conversation: input_ids [1, length] and, with pictures, pixel_values."""
    history, query, _ = generation.split(record)
    prompt = make_context(tokenizer, query, history)
    inputs = {"input_ids": torch.tensor([prompt.ids])}
    if prompt.references:
        opened = [open_picture(reference, search_dirs=search_dirs) for reference in prompt.references]
        inputs["pixel_values"] = torch.stack(
            [pixels(picture, image_size) for picture in opened]
        )  # [pictures, 3, size, size]
    return inputs
